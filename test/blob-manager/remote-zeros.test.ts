import assert from "node:assert/strict";
import { closeSync, openSync } from "node:fs";
import { test, type TestContext } from "node:test";
import { RangeMap } from "../../src/blob/range-map.ts";
import { RemoteZeros } from "../../src/blob/remote/remote-zeros.ts";
import { SharedReadiness } from "../../src/blob/shared-readiness.ts";
import { gate, ManualClock, until } from "../blob/support.ts";

const unit = 64 * 1024;
const units = 16;
const size = units * unit;

/** Zeros over memory that is written to as a manager does; what it answers is held, or fails, as a test wants. */
function world(t: TestContext) {
  const made = SharedReadiness.create(units, { zeros: true });
  t.after(() => made.close());
  const told = new RangeMap(size, unit, made.zeros!.told);
  const zeros = new RangeMap(size, unit, made.zeros!.zeros);
  const tell = (first: number, end: number): void => {
    zeros.addRun(first, end);
    told.addRun(first, end);
    made.zeros!.toldUnits = units - told.missing;
  };
  const clock = new ManualClock();
  const manager = { asked: [] as [number, number][], answer: (): Promise<void> | void => undefined };
  const remote = new RemoteZeros({
    size,
    unitBytes: unit,
    clock,
    shared: SharedReadiness.adopt(made.fd, units).zeros!,
    ask: async (offset, length) => {
      assert.ok(manager.asked.push([offset, length]) < 10, "asked again and again");
      await manager.answer();
    },
  });
  return { remote, tell, clock, manager };
}

void test("what the manager's answer leaves open is not asked again at once", async (t) => {
  const { remote, tell, manager } = world(t);
  manager.answer = () => tell(0, 4);
  assert.equal(await remote.learn(0, size), 4 * unit);
  assert.equal(await remote.learn(8 * unit, unit), 0);
  assert.deepEqual(manager.asked, [
    [0, size],
    [8 * unit, unit],
  ]);
  assert.equal(remote.learn(unit, 3 * unit), undefined, "all of it is told");
  assert.deepEqual([remote.has(0), remote.run(0, size), remote.has(4 * unit)], [true, 4 * unit, false]);
});

void test("a manager that does not answer holds up who came first, for a moment; when it answers, it is asked again", async (t) => {
  const { remote, tell, clock, manager } = world(t);
  const held = gate();
  manager.answer = () => held.opened;
  const first = remote.learn(0, unit)!;
  await until(() => clock.sleeping === 1);
  clock.advance(999);
  const second = remote.learn(unit, unit)!;
  clock.advance(1);
  assert.equal(await first, 0);
  assert.equal(remote.learn(0, unit), undefined);
  clock.advance(999);
  assert.equal(await second, 0);
  assert.equal(manager.asked.length, 1);
  held.open();
  await until(() => remote.learn(0, unit) !== undefined);
  tell(0, units);
  assert.equal(remote.learn(0, size), undefined);
});

void test("as long as the manager tells more and more of a range, it is waited for", async (t) => {
  const { remote, tell, clock, manager } = world(t);
  const held = gate();
  manager.answer = () => held.opened;
  const first = remote.learn(0, size)!;
  await until(() => clock.sleeping === 1);
  tell(0, 2);
  clock.advance(1000);
  assert.equal(await first, 2 * unit);
  const rest = remote.learn(2 * unit, size - 2 * unit)!;
  tell(2, units);
  held.open();
  assert.equal(await rest, size - 2 * unit);
  assert.equal(manager.asked.length, 1);
});

void test("after a question that failed nobody is held up for a while", async (t) => {
  const { remote, clock, manager } = world(t);
  manager.answer = () => Promise.reject(new Error("the manager can't be reached"));
  assert.equal(await remote.learn(0, unit), 0);
  clock.advance(9999);
  assert.equal(remote.learn(0, unit), undefined);
  clock.advance(1);
  assert.notEqual(remote.learn(0, unit), undefined);
  assert.equal(manager.asked.length, 2);
});

void test("readiness of an older manager has no room for zeros; one whose size does not fit is refused", (t) => {
  const older = SharedReadiness.create(units);
  const newer = SharedReadiness.create(units, { zeros: true });
  t.after(() => [older, newer].forEach((each) => each.close()));
  assert.equal(SharedReadiness.adopt(older.fd, units).zeros, undefined);
  assert.notEqual(SharedReadiness.adopt(newer.fd, units).zeros, undefined);
  assert.throws(() => SharedReadiness.adopt(older.fd, units + 1), /belongs to something else/);
  assert.throws(() => SharedReadiness.adopt(older.fd, units * 1024), /has 4112 bytes only/);
  const ordinary = openSync(import.meta.filename, "r");
  t.after(() => closeSync(ordinary));
  assert.throws(() => SharedReadiness.adopt(ordinary, units), /is not sealed/);
});
