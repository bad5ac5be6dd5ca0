import assert from "node:assert/strict";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { mkdir, rename, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { Backend, Identity } from "../../src/backend/backend.ts";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { MountCalls } from "../../src/backend/file/mount-calls.ts";
import { AlternativesBackend } from "../../src/backend/wrappers/alternatives.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { failsWith, pattern } from "./support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

/** A file of `size` bytes with nothing in it but some bytes of data at each of `places`: offset, length. */
function writeSparse(path: string, size: number, places: Iterable<[number, number]>): void {
  const file = openSync(path, "w");
  ftruncateSync(file, size);
  for (const [at, length] of places) writeSync(file, pattern(length, at + 1), 0, length, at);
  closeSync(file);
}

/** What is told of a range, neighbours that are alike put together: [offset, zero]. */
async function told(
  backend: Backend,
  identity: Identity,
  offset = 0,
  length = identity.size,
): Promise<[number, boolean][]> {
  const runs: [number, boolean][] = [];
  let at = offset;
  await backend.tellZeros!(identity, offset, length, (bytes, zero) => {
    if (runs.at(-1)?.[1] !== zero) runs.push([at, zero]);
    at += bytes;
  });
  assert.equal(at, offset + length, "told of all of it, and of nothing else");
  return runs;
}

void test("holes are told, in the middle and at the end, across what is asked about at once; short ones are read", async (t) => {
  const path = join(await temporaryDirectory(t), "disk");
  const places: [number, number][] = [
    [0, 64 * KiB],
    [MiB, 4 * KiB],
    [MiB + 36 * KiB, 4 * KiB],
    [2 * GiB - 64 * KiB, 128 * KiB],
  ];
  writeSparse(path, 3 * GiB + 100 * KiB, places);
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(1);
  assert.deepEqual(await told(backend, identity), [
    [0, false],
    [64 * KiB, true],
    [MiB, false],
    [MiB + 40 * KiB, true],
    [2 * GiB - 64 * KiB, false],
    [2 * GiB + 64 * KiB, true],
  ]);
  assert.deepEqual(await told(backend, identity, 70 * KiB, MiB), [
    [70 * KiB, true],
    [MiB, false],
    [MiB + 40 * KiB, true],
  ]);
  assert.equal(await backend.zeroRun(identity, 64 * KiB, 10 * GiB, { background: true }), MiB - 64 * KiB);
  assert.equal(await backend.zeroRun(identity, 2 * GiB + MiB, GiB - MiB, { background: true }), GiB - MiB);
  assert.equal(await backend.zeroRun(identity, 0, 100, { background: true }), 0);
  await backend.close();
});

void test("a file without holes, and an empty one, have none to tell", async (t) => {
  const directory = await temporaryDirectory(t);
  for (const content of [pattern(300_001), Buffer.alloc(0)]) {
    const path = join(directory, `${content.length}`);
    await writeFile(path, content);
    const backend = new LocalFileBackend(path);
    const { identity } = await backend.probe(1);
    assert.deepEqual(await told(backend, identity), content.length === 0 ? [] : [[0, false]]);
    await backend.close();
  }
});

void test("who waits for bytes does not wait for what is told of holes", async (t) => {
  const path = join(await temporaryDirectory(t), "disk");
  writeSparse(path, 10 * MiB, [[0, 4 * KiB]]);
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(1);
  assert.equal(await backend.zeroRun(identity, 5 * MiB, MiB), 0, "not known yet");
  await told(backend, identity);
  assert.equal(await backend.zeroRun(identity, 5 * MiB, MiB), MiB);
  await backend.close();
});

void test("of a file in ten thousand pieces what is told is true, and what is not told counts as data", async (t) => {
  const path = join(await temporaryDirectory(t), "disk");
  const pieces = Array.from({ length: 10_000 }, (_, n): [number, number] => [n * 72 * KiB, 4 * KiB]);
  writeSparse(path, GiB, pieces);
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(1);
  const runs = await told(backend, identity);
  const holes = runs.filter(([, zero]) => zero);
  assert.ok(holes.length > 1000 && holes.length < 10_000, `${holes.length}`);
  for (const [at, zero] of runs) assert.equal(at % (72 * KiB), zero ? 4 * KiB : 0);
  await backend.close();
});

void test("of a file that is not the pinned one nothing is told, and nothing is kept of it", async (t) => {
  const directory = await temporaryDirectory(t);
  const [path, other] = ["disk", "other"].map((name) => join(directory, name));
  await writeFile(path, pattern(MiB));
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(1);
  writeSparse(other, MiB, []);
  await rename(other, path);
  await failsWith("source-changed", told(backend, identity));
  await failsWith("source-changed", backend.zeroRun(identity, 0, MiB, { background: true }));
  const { identity: next } = await backend.probe(1);
  assert.deepEqual(await told(backend, next), [[0, true]]);
  await utimes(path, 1, 1);
  await failsWith("source-changed", told(new LocalFileBackend(path), next));
  await backend.close();
  await failsWith("source-closed", told(backend, identity));
});

void test("with alternatives it is told where the pinned file is", async (t) => {
  const directory = await temporaryDirectory(t);
  const [here, there] = ["here", "there"].map((name) => join(directory, name));
  await mkdir(here);
  await mkdir(there);
  writeSparse(join(there, "disk"), MiB, [[0, 4 * KiB]]);
  const backend = new AlternativesBackend([here, there].map((place) => new LocalFileBackend(join(place, "disk"))));
  const { identity } = await backend.probe(1);
  assert.deepEqual(await told(backend, identity), [
    [0, false],
    [4 * KiB, true],
  ]);
  assert.equal(await backend.zeroRun(identity, 4 * KiB, 100), 100);
  await backend.close();
});

void test("of a file that a server or a program answers for nothing is told: it is read", async (t) => {
  const path = join(await temporaryDirectory(t), "disk");
  writeSparse(path, MiB, [[0, 4 * KiB]]);
  t.mock.getter(MountCalls.prototype, "isDisk", () => false);
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(1);
  assert.deepEqual(await told(backend, identity), [[0, false]]);
  await backend.close();
});
