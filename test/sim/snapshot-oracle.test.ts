import assert from "node:assert/strict";
import { test } from "node:test";
import { OracleError } from "./oracle-error.ts";
import { Oracle, type OracleOperation, stamp } from "./oracle.ts";
import type { SnapshotOracle } from "./snapshot-oracle.ts";

/** Two sectors; content 0 is what was there before. */
const size = 1024;
const content = (name: number, sector: number): Buffer => stamp(name, sector * 512, 512);
const newOracle = (): Oracle => new Oracle((sector) => content(0, sector));
const issue = (oracle: Oracle, name: number, sector: number): OracleOperation =>
  oracle.issue(sector * 512, 512, content(name, sector));
const write = (oracle: Oracle, name: number, sector: number): void => oracle.settle(issue(oracle, name, sector), true);

function shows(snapshot: SnapshotOracle, names: [number, number]): boolean {
  try {
    names.forEach((name, sector) => snapshot.check(sector * 512, content(name, sector)));
    return true;
  } catch (error) {
    if (error instanceof OracleError) return false;
    throw error;
  }
}

/** Which pairs of contents a snapshot may show. */
function allowed(make: () => SnapshotOracle, names: number[]): string[] {
  const pairs = names.flatMap((one) => names.map((other): [number, number] => [one, other]));
  return pairs.filter((pair) => shows(make(), pair)).map((pair) => pair.join(""));
}

void test("a snapshot has all that was answered before it was asked for, and nothing that came after its answer", () => {
  const taken = (): SnapshotOracle => {
    const oracle = newOracle();
    write(oracle, 1, 0);
    const snapshot = oracle.snapshotStart(size);
    oracle.snapshotEnd(snapshot);
    write(oracle, 2, 0);
    write(oracle, 2, 1);
    return snapshot;
  };
  assert.deepEqual(allowed(taken, [0, 1, 2]), ["10"]);
});

void test("what runs beside it may be in it or not, but as of one moment for all sectors", () => {
  const inOrder = (): SnapshotOracle => {
    const oracle = newOracle();
    const snapshot = oracle.snapshotStart(size);
    write(oracle, 1, 0);
    write(oracle, 2, 1);
    oracle.snapshotEnd(snapshot);
    return snapshot;
  };
  assert.deepEqual(allowed(inOrder, [0, 1, 2]), ["00", "10", "12"]);
  const atOnce = (): SnapshotOracle => {
    const oracle = newOracle();
    const snapshot = oracle.snapshotStart(size);
    const one = issue(oracle, 1, 0);
    const two = issue(oracle, 2, 1);
    oracle.settle(one, true);
    oracle.settle(two, true);
    oracle.snapshotEnd(snapshot);
    return snapshot;
  };
  assert.deepEqual(allowed(atOnce, [0, 1, 2]), ["00", "02", "10", "12"]);
});

void test("a crash ends it: it is what it may have been by then, whatever the crash takes from the volume", () => {
  for (const loss of ["nothing", "unflushed", "unflushed, cache kept"] as const) {
    const taken = (): SnapshotOracle => {
      const oracle = newOracle();
      write(oracle, 1, 0);
      const snapshot = oracle.snapshotStart(size);
      issue(oracle, 2, 1);
      oracle.crash(loss);
      write(oracle, 3, 0);
      oracle.snapshotEnd(snapshot);
      return snapshot;
    };
    assert.deepEqual(allowed(taken, [0, 1, 2, 3]), ["10", "12"], loss);
  }
});

void test("a flush that ends while it is taken does not make it forget what was there when it began", () => {
  const taken = (): SnapshotOracle => {
    const oracle = newOracle();
    const snapshot = oracle.snapshotStart(size);
    write(oracle, 1, 0);
    oracle.flushDone(oracle.flushStart());
    oracle.snapshotEnd(snapshot);
    return snapshot;
  };
  assert.deepEqual(allowed(taken, [0, 1]), ["00", "10"]);
});

void test("what it has shown once, it shows for ever", () => {
  const oracle = newOracle();
  const snapshot = oracle.snapshotStart(size);
  write(oracle, 1, 0);
  oracle.snapshotEnd(snapshot);
  assert.ok(shows(snapshot, [1, 0]));
  assert.ok(shows(snapshot, [1, 0]));
  assert.ok(!shows(snapshot, [0, 0]));
  assert.deepEqual(snapshot.content(0), content(1, 0));
  assert.deepEqual(snapshot.content(2), Buffer.alloc(512), "behind its end are zeros");
});
