import assert from "node:assert/strict";
import { test } from "node:test";
import type { Blob } from "../../src/blob/blob.ts";
import {
  gate,
  MemoryReader,
  openBlob,
  openCache,
  randomContent,
  readCacheFile,
  until,
  testObject,
  withFile,
} from "./support.ts";

const unit = 64 * 1024;

/** A source whose tables know of zeros in [from, to). */
class SparseReader extends MemoryReader {
  readonly #from: number;
  readonly #to: number;
  questions = 0;

  constructor(content: Buffer, from: number, to: number) {
    super(content.fill(0, from, to));
    this.#from = from;
    this.#to = to;
  }

  zeroRun(offset: number, length: number): Promise<number> {
    this.questions++;
    return Promise.resolve(offset >= this.#from ? Math.max(0, Math.min(this.#to, offset + length) - offset) : 0);
  }
}

void test("known zeros become ready at once, far beyond what was asked for, without a request or space", async (t) => {
  const reader = new SparseReader(randomContent(400 * unit + 100), 10 * unit, 400 * unit + 100);
  const { blob } = await openBlob(t, reader);
  await blob.fetch(20 * unit + 5, 10);
  assert.equal(reader.requests.length, 0);
  assert.equal(blob.isReady(20 * unit, 380 * unit + 100), true);
  assert.equal(blob.isReady(19 * unit, 1), false);
  assert.equal(blob.file.allocated(), 0);
  await blob.sync();
  assert.equal(blob.isDurable(20 * unit, 380 * unit + 100), true);
  await blob.fetch(0, blob.size);
  assert.deepEqual(await readCacheFile(blob, 0, blob.size), reader.content);
});

void test("zeros that begin or end within a unit are read with it", async (t) => {
  const reader = new SparseReader(randomContent(8 * unit), unit + 1000, 5 * unit + 1000);
  const { blob } = await openBlob(t, reader);
  for (let n = 0; n < 8; n++) await blob.fetch(n * unit, unit);
  assert.deepEqual(await readCacheFile(blob, 0, blob.size), reader.content);
  assert.deepEqual(
    reader.requests.map(({ offset }) => offset / unit),
    [0, 1, 5, 6, 7],
  );
});

void test("what a failed request has left in the cache file is not there when its range turns out to be zeros", async (t) => {
  const reader = new SparseReader(randomContent(4 * unit), 0, 4 * unit);
  const known = reader.zeroRun.bind(reader);
  reader.zeroRun = () => Promise.reject(new Error("the table can't be read now"));
  const { blob } = await openBlob(t, reader);
  reader.content.fill(0xee);
  reader.before = (offset) => {
    if (offset === 0) throw new Error("cut");
  };
  const read = reader.read.bind(reader);
  reader.read = async (offset, length, sink, options) => {
    await read(offset, Math.min(length, 2 * unit), sink, options);
    throw new Error("cut in the middle");
  };
  reader.before = () => undefined;
  await assert.rejects(blob.fetch(0, 4 * unit), /cut in the middle/);
  reader.zeroRun = known;
  await blob.fetch(0, 4 * unit);
  assert.deepEqual(await readCacheFile(blob, 0, blob.size), Buffer.alloc(4 * unit));
});

void test("where holes can't be punched, known zeros are written", async (t) => {
  const reader = new SparseReader(randomContent(4 * unit), 0, 4 * unit);
  const fs = withFile(/data$/, () => ({ punch: () => Promise.resolve(false) }));
  const { blob } = await openBlob(t, reader, { fs });
  await blob.fetch(0, 4 * unit);
  assert.ok(reader.requests.length > 0);
  assert.deepEqual(await readCacheFile(blob, 0, blob.size), Buffer.alloc(4 * unit));
});

void test("zeros that were taken for ready while a sync failed are looked at again", async (t) => {
  let fail = false;
  const reader = new SparseReader(randomContent(8 * unit), 0, 8 * unit);
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (fail ? Promise.reject(new Error("EIO")) : file.datasync()),
  }));
  const { blob } = await openBlob(t, reader, { fs });
  await blob.fetch(0, unit);
  fail = true;
  await assert.rejects(blob.sync());
  assert.equal(blob.readyBytes, 0);
  fail = false;
  await blob.fetch(0, unit);
  assert.equal(blob.readyBytes, 8 * unit);
});

void test("zeros that were being punched while a sync failed do not count before they are punched again", async (t) => {
  const reader = new SparseReader(randomContent(8 * unit), 4 * unit, 8 * unit);
  const held = gate();
  let punches = 0;
  let fail = false;
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (fail ? Promise.reject(new Error("EIO")) : file.datasync()),
    punch: async (offset, length) => {
      if (++punches === 1) await held.opened;
      return file.punch(offset, length);
    },
  }));
  const { blob } = await openBlob(t, reader, { fs });
  await blob.fetch(0, unit);
  const zeros = blob.fetch(4 * unit, unit);
  await until(() => punches === 1);
  fail = true;
  await assert.rejects(blob.sync());
  fail = false;
  held.open();
  await zeros;
  assert.equal(punches, 2);
  assert.equal(blob.isReady(4 * unit, 4 * unit), true);
});

void test("what was told to be zeros can be read while the source is down, in this life of the blob", async (t) => {
  const content = randomContent(8 * unit).fill(0, 2 * unit, 6 * unit);
  const reader = Object.assign(new MemoryReader(content), {
    tellZeros: (offset: number, length: number, take: (length: number, zero: boolean) => void) => {
      assert.deepEqual([offset, length], [0, 8 * unit]);
      for (const part of [2, 4, 2]) take(part * unit, part === 4);
      return Promise.resolve();
    },
  });
  let down = false;
  const { cache } = await openCache(t, {
    openSource: () => (down ? Promise.reject(new Error("the source is down")) : Promise.resolve(reader)),
  });
  const blob = await cache.create({ ...testObject(reader.size), imageFormat: "qcow2" });
  assert.equal(await blob.zeros.learn(3 * unit, unit), unit);
  assert.deepEqual([blob.readyBytes, reader.requests.length], [0, 0]);
  down = true;
  reader.before = () => Promise.reject(new Error("the source is down"));
  await blob.fetch(3 * unit, 2 * unit);
  assert.equal(reader.requests.length, 0);
  assert.equal(blob.isReady(3 * unit, 3 * unit), true);
  assert.deepEqual(await readCacheFile(blob, 3 * unit, 2 * unit), Buffer.alloc(2 * unit));
  await assert.rejects(blob.fetch(0, unit), /down/);
  down = false;
  reader.before = () => undefined;
  await blob.fetch(0, blob.size);
  assert.deepEqual(await readCacheFile(blob, 0, blob.size), content);
});

/** For each unit whether it is known to be zeros. */
const told = ({ zeros, size }: Blob): string =>
  Array.from({ length: size / unit }, (_, index) => (zeros!.has(index * unit) ? "z" : ".")).join("");

void test("a hole counts as zeros once every unit is durably ready, also after a restart without the source", async (t) => {
  const reader = new MemoryReader(randomContent(64 * unit).fill(0, 16 * unit, 48 * unit));
  const disk = gate();
  let held = Promise.resolve();
  const fs = withFile(/\/data$/, (file) => ({ datasync: () => held.then(() => file.datasync()) }));
  const { cache, dataDir } = await openCache(t, { fs, openSource: () => Promise.resolve(reader) });
  const blob = await cache.create({ ...testObject(reader.size), imageFormat: "qcow2", unitBytes: unit });
  held = disk.opened;
  await blob.fetch(0, blob.size);
  assert.equal(blob.readyBytes, blob.size);
  assert.equal(blob.zeros.learn(0, blob.size), undefined, "what is ready may have been lost on its way to the disk");
  disk.open();
  await blob.sync();
  await cache.close();
  const again = await (await openCache(t, { dataDir })).cache.open(blob.id);
  assert.equal(await again.zeros.learn(0, again.size), again.size);
  assert.equal(told(again), ".".repeat(16) + "z".repeat(32) + ".".repeat(16));
});

void test("what an eviction has freed, or is just freeing, does not count as zeros", async (t) => {
  const reader = new MemoryReader(randomContent(64 * unit));
  let evicted: Blob | undefined;
  const during: unknown[] = [];
  const fs = withFile(/\/data$/, (file) => ({
    punch: async (offset, length) => {
      const done = await file.punch(offset, length);
      if (evicted !== undefined) during.push(await evicted.zeros!.learn(0, evicted.size));
      return done;
    },
  }));
  const { cache } = await openCache(t, { fs, openSource: () => Promise.resolve(reader) });
  cache.setNeeds({ needed: () => new Map() });
  const blob = await cache.create({ ...testObject(reader.size), imageFormat: "qcow2", unitBytes: unit });
  await blob.fetch(0, blob.size);
  await blob.sync();
  evicted = blob;
  assert.equal(await blob.evict(blob.size), blob.size);
  assert.ok(during.length > 0);
  assert.equal(told(blob), ".".repeat(64));
});
