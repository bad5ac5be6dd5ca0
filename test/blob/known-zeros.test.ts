import assert from "node:assert/strict";
import { test } from "node:test";
import type { ZeroTaker } from "../../src/backend/backend.ts";
import { SourceError } from "../../src/base/errors.ts";
import type { BlobMeta } from "../../src/blob/blob-meta.ts";
import { KnownZeros } from "../../src/blob/known-zeros.ts";
import { gate, ManualClock, until } from "./support.ts";

const unit = 64 * 1024;
const MiB = 1024 * 1024;

/** Runs of a disk, by their lengths: data, zeros, data, … */
type Disk = number[];

/** Zeros of a disk in memory, whose tables can be held and broken. */
function zerosOf(disk: Disk, of: Partial<BlobMeta> = {}) {
  const size = disk.reduce((sum, length) => sum + length, 0);
  const clock = new ManualClock();
  const closing = new AbortController();
  const world = {
    questions: [] as [number, number][],
    opened: 0,
    complete: false,
    settled: false,
    /** The file's runs of data and holes, from its beginning on. */
    file: [] as Disk,
    seeks: 0,
    beforeOpening: (): Promise<void> | void => undefined,
    beforeRun: (_at: number): Promise<void> | void => undefined,
  };
  const tellZeros = async (offset: number, length: number, take: ZeroTaker): Promise<void> => {
    world.questions.push([offset, length]);
    let at = 0;
    for (const [index, run] of disk.entries()) {
      const from = Math.max(at, offset);
      const to = Math.min((at += run), offset + length);
      if (from >= to) continue;
      await world.beforeRun(from);
      take(to - from, index % 2 === 1);
    }
  };
  const identity = { size, version: 'etag:"1"', strong: true };
  const meta = { id: "0".repeat(32), url: "http://example.test/image", imageFormat: "qcow2", identity, size };
  const zeros = new KnownZeros({
    meta: { ...meta, unitBytes: unit, createdAt: "", ...of },
    clock,
    closing: closing.signal,
    file: {
      seekData: (offset) => (world.seeks++, seek(world.file, offset, 0) ?? -1),
      seekHole: (offset) => seek(world.file, offset, 1) ?? size,
    },
    isComplete: () => world.complete,
    isSettled: () => world.settled,
    reader: async () => {
      world.opened++;
      await world.beforeOpening();
      return { size, read: () => Promise.reject(new Error("data was read")), tellZeros };
    },
  });
  return { clock, world, closing, size, zeros };
}

/** Where the first run of a kind begins, or goes on, behind an offset. */
function seek(file: Disk, offset: number, kind: 0 | 1): number | undefined {
  let end = 0;
  for (const [index, run] of file.entries()) {
    end += run;
    if (end > offset && index % 2 === kind) return Math.max(offset, end - run);
  }
  return undefined;
}

/** The units, as `z` or `.`. */
function unitsOf(zeros: KnownZeros, size: number): string {
  let units = "";
  for (let at = 0; at < size;) {
    const run = zeros.run(at, size - at);
    units += (zeros.has(at) ? "z" : ".").repeat(Math.ceil(run / unit));
    at += run;
  }
  return units;
}

const unreachable = (transient: boolean): SourceError =>
  new SourceError("source-unreachable", "the source is unreachable", { transient });

void test("a unit counts as zeros when all of it is told to be, in one piece or in several, and the last one up to the end", async () => {
  const { zeros, size } = zerosOf([unit + 1, 2 * unit, unit - 1, unit / 2, 0, unit / 2, unit, unit + 100]);
  assert.equal(await zeros.learn(0, size), size);
  assert.equal(unitsOf(zeros, size), "..z.z.zz");
  assert.equal(zeros.learn(5, 10), undefined, "all of it was told");
});

void test("several who ask about one place ask one question, and who asks about a little learns what is around it", async () => {
  const { zeros, world, size } = zerosOf([unit, 199 * MiB, unit]);
  const told = await Promise.all([zeros.learn(10 * MiB, 512), zeros.learn(20 * MiB, 4096), zeros.learn(10 * MiB, 1)]);
  assert.deepEqual(told, [512, 4096, 1]);
  assert.deepEqual(world.questions, [[0, 64 * MiB]]);
  assert.equal(zeros.learn(0, 64 * MiB), undefined);
  assert.equal(await zeros.learn(60 * MiB, size - 60 * MiB), size - 60 * MiB);
  assert.deepEqual(world.questions.at(-1), [64 * MiB, size - 64 * MiB]);
  assert.equal(unitsOf(zeros, size), `.${"z".repeat(199 * 16)}.`);
});

void test("nobody waits for more than a moment: for what a slow source has told by then it counts, and the rest comes later", async () => {
  const { zeros, world, clock, size } = zerosOf([unit, unit, unit, 5 * unit]);
  const held = gate();
  world.beforeRun = (at) => (at >= 3 * unit ? held.opened : undefined);
  const told = zeros.learn(unit, size - unit)!;
  await until(() => zeros.has(unit));
  clock.advance(1000);
  assert.equal(await told, 2 * unit);
  const rest = zeros.learn(3 * unit, 5 * unit);
  assert.ok(rest !== undefined, "as something had come, it is worth while to wait");
  held.open();
  assert.equal(await rest, 5 * unit);
  assert.equal(world.questions.length, 1);
  assert.equal(unitsOf(zeros, size), ".z.zzzzz");
});

void test("a source that says nothing holds up who came first, and for a moment only; when it answers after all, it is asked again", async () => {
  const { zeros, world, clock, size } = zerosOf([unit, 3 * unit]);
  const held = gate();
  world.beforeOpening = () => held.opened;
  const told = zeros.learn(0, size)!;
  await until(() => clock.sleeping === 1);
  clock.advance(1000);
  assert.equal(await told, 0);
  for (let n = 0; n < 3; n++) assert.equal(zeros.learn(0, size), undefined);
  held.open();
  await until(() => zeros.learn(0, size) === undefined && zeros.has(unit));
  assert.equal(unitsOf(zeros, size), ".zzz");
  assert.equal(world.opened, 1);
});

void test("after a failure nobody is held up and nothing asked for a while, and then it is tried again", async () => {
  const { zeros, world, clock, size } = zerosOf([unit, 3 * unit, unit, unit]);
  for (const place of ["beforeOpening", "beforeRun"] as const) {
    const asked = world.opened;
    world[place] = () => Promise.reject(unreachable(true));
    assert.equal(await zeros.learn(0, size), 0);
    clock.advance(9999);
    assert.equal(zeros.learn(0, size), undefined);
    world[place] = () => undefined;
    clock.advance(1);
    assert.equal(world.opened, asked + 1);
  }
  assert.equal(await zeros.learn(0, size), size);
  assert.equal(unitsOf(zeros, size), ".zzz.z");
});

void test("damage is asked about once; what was told before it holds", async () => {
  const { zeros, world, size } = zerosOf([unit, 3 * unit, unit, unit]);
  world.beforeRun = (at) => (at >= 4 * unit ? Promise.reject(unreachable(false)) : undefined);
  assert.equal(await zeros.learn(0, size), size);
  assert.equal(unitsOf(zeros, size), ".zzz..");
  assert.equal(zeros.learn(0, size), undefined);
  assert.equal(world.questions.length, 1);
});

void test("of what is complete no source is opened", async () => {
  const { zeros, world, size } = zerosOf([unit, unit]);
  world.complete = true;
  assert.equal(zeros.learn(0, size), undefined);
  assert.equal(world.opened, 0);
});

void test("a raw disk's holes are told by an NBD export and a file of this host; others are asked about in the cache, when all is there", async () => {
  for (const url of ["nbd://example.test/disk", "/images/disk.raw"]) {
    const { zeros, size } = zerosOf([unit, unit], { imageFormat: "raw", url });
    assert.equal(await zeros.learn(0, size), size);
    assert.equal(unitsOf(zeros, size), ".z");
  }
  for (const kind of [{ imageFormat: "raw" }, { unpacked: true }, { unpacked: true, url: "/images/disk.qcow2.gz" }]) {
    const { zeros, world, size } = zerosOf([2 * unit], kind);
    for (const complete of [false, true]) {
      world.complete = complete;
      assert.equal(zeros.learn(0, size), undefined);
    }
    world.settled = true;
    world.file = [unit, unit];
    assert.equal(await zeros.learn(0, size), size);
    assert.equal(unitsOf(zeros, size), ".z");
    assert.equal(world.opened, 0);
  }
});

void test("when something is evicted of a disk whose source can't be asked, the rest is told when all is there again", async () => {
  const { zeros, world, size } = zerosOf([2000 * unit], { imageFormat: "raw" });
  world.complete = world.settled = true;
  world.file = Array.from({ length: 2000 }, () => unit);
  const told = zeros.learn(0, size)!;
  world.settled = world.complete = false;
  const some = await told;
  assert.ok(some > 0 && some < size, `${some}`);
  assert.equal(zeros.learn(0, size), undefined);
  world.complete = world.settled = true;
  assert.equal(await zeros.learn(0, size), size);
  assert.match(unitsOf(zeros, size), /^(\.z)+$/);
  assert.equal(world.opened, 0);
});

void test("of a blob that is settled in its file the holes are told, and its source is not opened", async () => {
  const { zeros, world, size } = zerosOf([8 * unit]);
  world.complete = true;
  assert.equal(zeros.learn(0, size), undefined, "a hole in a file that is not settled may be anything");
  world.settled = true;
  world.file = [unit + 4096, 2 * unit, unit, 4 * unit];
  assert.equal(await zeros.learn(0, size), size);
  assert.equal(unitsOf(zeros, size), "..z..zzz");
  assert.equal(zeros.learn(0, size), undefined);
  assert.equal(world.opened, 0);
});

void test("when something is evicted while the holes are told, no hole is believed any more, and the tables tell the rest", async () => {
  const runs = 1000;
  const { zeros, world, size } = zerosOf([2 * runs * unit]);
  world.complete = world.settled = true;
  world.file = Array.from({ length: 2 * runs }, () => unit);
  const told = zeros.learn(0, size);
  assert.ok(world.seeks > 0 && world.seeks < runs / 2, "others have had their turn");
  world.settled = world.complete = false;
  world.file = [0, size];
  assert.equal(await told, size);
  const units = unitsOf(zeros, size);
  assert.match(units, /^(\.z)+\.+$/);
  assert.equal(units.replaceAll(".", "").length, world.seeks - 1); // the last one was for the next hole's end
  assert.equal(world.questions.length, 1);
});

void test("the file of a blob that is being closed is left alone", async () => {
  const { zeros, world, size, closing } = zerosOf([2000 * unit]);
  world.complete = world.settled = true;
  world.file = Array.from({ length: 2000 }, () => unit);
  const learning = zeros.learn(0, size);
  closing.abort(new Error("the blob is being closed"));
  world.beforeOpening = () => Promise.reject(closing.signal.reason as Error);
  const { seeks } = world;
  await learning;
  assert.equal(world.seeks, seeks);
});
