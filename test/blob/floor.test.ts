import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { SourceError } from "../../src/base/errors.ts";
import type { BlobCache } from "../../src/blob/cache.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import { gate, ManualClock, MemoryReader, openCache, randomContent, testObject, until, withCalls } from "./support.ts";

const UNIT = 64 * 1024;
const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

interface World {
  cache: BlobCache;
  clock: ManualClock;
  log: string[];
  /** What the file system says of itself. */
  disk: { free: number; total: number; asked: number };
}

async function world(t: TestContext, disk: { free: number; total: number }): Promise<World> {
  const counted = { ...disk, asked: 0 };
  const clock = new ManualClock();
  const fs = withCalls({
    space: async () => {
      counted.asked++;
      return { free: counted.free, total: counted.total };
    },
  });
  const opened = await openCache(t, { fs, clock, cacheLimits: { capacityBytes: null, reserve: 0.05 } });
  return { ...opened, clock, disk: counted };
}

const open = (cache: BlobCache, reader: MemoryReader, url = "http://example.test/a"): Promise<CachedBlob> =>
  cache.create({ ...testObject(reader.size), url, unitBytes: UNIT }, reader);

const optional = { optional: true };

async function through(blob: CachedBlob, offset: number, length: number): Promise<Buffer> {
  const buffer = IoBuffer.from(Buffer.alloc(length + 20, 0xee));
  await blob.readThrough(offset, length, buffer, 10);
  assert.ok(
    buffer.bytes.subarray(0, 10).every((byte) => byte === 0xee),
    "what lies before is left alone",
  );
  assert.ok(
    buffer.bytes.subarray(length + 10).every((byte) => byte === 0xee),
    "what lies behind is left alone",
  );
  return Buffer.from(buffer.bytes.subarray(10, length + 10));
}

void test("below the floor what can be done without is refused, before its source is asked; what can't be is fetched", async (t) => {
  const { cache, clock, disk, log } = await world(t, { free: 5 * MiB, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const blob = await open(cache, reader);
  for (let each = 0; each < 3; each++) await assert.rejects(blob.fetch(0, UNIT, optional), { errno: "ENOSPC" });
  assert.deepEqual(reader.requests, []);
  await blob.fetch(UNIT, UNIT);
  await blob.fetch(UNIT, UNIT, optional); // it is there
  disk.free = 5 * MiB + UNIT;
  clock.advance(1001); // until then the disk is not asked again
  await blob.fetch(0, UNIT, optional);
  assert.ok(blob.isReady(0, 2 * UNIT));
  assert.equal(log.filter((line) => line.includes("what is read of images is not kept")).length, 1);
  assert.equal(log.filter((line) => line.includes("the disk has room again")).length, 1);
});

void test("the floor is the reserve, 1 GiB at most, and none when there is no reserve", async (t) => {
  for (const [total, free, reserve, fits] of [
    [10 * GiB, 0.5 * GiB, 0.05, false],
    [10 * GiB, 0.5 * GiB + 1, 0.05, true],
    [1000 * GiB, GiB, 0.05, false],
    [1000 * GiB, GiB + 1, 0.05, true],
    [10 * GiB, 1, 0, true],
    [10 * GiB, 0, 0, false],
  ] as const) {
    const { cache } = await world(t, { free, total });
    cache.space.limits = { capacityBytes: null, reserve };
    const demanded = cache.space.claim(1, true);
    if (fits) await demanded;
    else await assert.rejects(demanded, { errno: "ENOSPC" }, `${free} of ${total}`);
  }
});

void test("requests under way count: however many come at once, they do not take more than there is", async (t) => {
  const { cache, clock, disk } = await world(t, { free: 6 * MiB, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(4 * MiB));
  const blob = await open(cache, reader);
  const { free } = disk;
  Object.defineProperty(disk, "free", { get: () => free - blob.readyBytes });
  const held = gate();
  reader.before = () => held.opened;
  const fetches: Promise<void>[] = [];
  for (let at = 0; at < 4 * MiB; at += UNIT) {
    fetches.push(blob.fetch(at, UNIT, optional));
    if (at === 4 * UNIT || at === 8 * UNIT) {
      await until(() => reader.requests.length > 0);
      clock.advance(1001); // the disk is looked at again, with all of these under way
    }
  }
  held.open();
  const results = await Promise.allSettled(fetches);
  assert.equal(results.filter(({ status }) => status === "fulfilled").length, 16);
  assert.equal(blob.readyBytes, MiB);
});

void test("what is kept in memory only takes no room, and gives none", async (t) => {
  const { cache, disk } = await world(t, { free: 5 * MiB + UNIT, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const options = { ...testObject(reader.size), unitBytes: UNIT };
  const uncached = await cache.create({ ...options, url: "http://example.test/memory", uncached: true }, reader);
  await uncached.fetch(0, 4 * UNIT, optional);
  assert.equal(disk.asked, 0);
  const blob = await open(cache, reader);
  await blob.fetch(0, UNIT, optional);
  disk.free -= UNIT;
  await assert.rejects(blob.fetch(UNIT, UNIT, optional), { errno: "ENOSPC" });
});

void test("the disk is asked once a second, and after as many bytes as it had above the floor", async (t) => {
  const { cache, clock, disk } = await world(t, { free: 6 * MiB, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(4 * MiB));
  const blob = await open(cache, reader);
  for (let at = 0; at < MiB; at += UNIT) await blob.fetch(at, UNIT, optional);
  assert.equal(disk.asked, 1);
  await blob.fetch(MiB, UNIT, optional); // that MiB is used up
  assert.equal(disk.asked, 2);
  clock.advance(1001);
  disk.free = 5 * MiB;
  await assert.rejects(blob.fetch(2 * MiB, UNIT, optional), { errno: "ENOSPC" });
});

void test("before anybody is refused what nobody needs is thrown out", async (t) => {
  const { cache, disk } = await world(t, { free: 5 * MiB, total: 100 * MiB });
  cache.setNeeds({ needed: () => new Map() });
  const old = await open(cache, new MemoryReader(randomContent(MiB)), "http://example.test/old");
  await old.fetch(0, MiB);
  await cache.release(old.id);
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await open(cache, reader);
  const { free } = disk;
  Object.defineProperty(disk, "free", { get: () => (cache.metaOf(old.id) === undefined ? free + MiB : free) });
  await blob.fetch(0, UNIT, optional);
  assert.equal(cache.metaOf(old.id), undefined);
});

void test("a read through brings exactly its bytes, keeps none, and is counted", async (t) => {
  const { cache } = await world(t, { free: 0, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(3 * UNIT + 100));
  const blob = await open(cache, reader);
  await blob.fetch(UNIT, UNIT); // that it is there changes nothing
  const before = blob.stats.foregroundBytes;
  for (const [offset, length] of [
    [0, 4096],
    [UNIT - 7, UNIT + 14],
    [3 * UNIT, 100],
  ]) {
    assert.ok((await through(blob, offset, length)).equals(reader.content.subarray(offset, offset + length)));
  }
  assert.equal(blob.stats.foregroundBytes, before + 4096 + UNIT + 14 + 100);
  assert.equal(blob.readyBytes, UNIT);
  assert.equal(reader.requests.at(-1)!.background, false);
});

void test("a source that fails, or sends too little or too much, fails the read through, and is told of", async (t) => {
  const { cache } = await world(t, { free: 0, total: 100 * MiB });
  const reader = new MemoryReader(randomContent(2 * UNIT));
  const blob = await open(cache, reader);
  const read = reader.read.bind(reader);
  const cases: [string, MemoryReader["read"]][] = [
    ["source-short", (offset, length, sink) => read(offset, length - 1, sink)],
    ["source-protocol", (offset, length, sink) => read(offset, length + 1, sink)],
    ["source-unreachable", () => Promise.reject(new SourceError("source-unreachable", "gone", { transient: true }))],
  ];
  for (const [index, [code, broken]] of cases.entries()) {
    reader.read = broken;
    await assert.rejects(through(blob, 0, 4096), { code });
    assert.equal(blob.sourceTrouble?.error.code, code);
    assert.equal(blob.stats.errors, index + 1);
  }
  reader.read = read;
  assert.ok((await through(blob, 0, 4096)).equals(reader.content.subarray(0, 4096)));
  assert.equal(blob.sourceTrouble, undefined);
});
