import assert from "node:assert/strict";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { MemoryReader, gate, openBlob, openCache, randomContent, readCacheFile, until } from "./support.ts";

const KiB = 1024;
const UNIT = 64 * KiB;

void test("a fetched range is ready and has the source's bytes, rounded out to units", async (t) => {
  const reader = new MemoryReader(randomContent(10 * UNIT + 1000));
  const { blob } = await openBlob(t, reader);
  assert.equal(blob.isReady(0, 1), false);
  await blob.fetch(UNIT + 5, 10);
  assert.equal(blob.isReady(UNIT, UNIT), true);
  assert.equal(blob.isReady(UNIT - 1, 2), false);
  assert.equal(blob.readyBytes, UNIT);
  assert.equal(blob.readyRun(0, 10 * UNIT), UNIT);
  assert.equal(blob.readyRun(UNIT, 10 * UNIT), UNIT);
  assert.deepEqual(await readCacheFile(blob, UNIT, UNIT), reader.content.subarray(UNIT, 2 * UNIT));
  assert.deepEqual(reader.requests, [{ offset: UNIT, length: UNIT, background: false }]);
});

void test("the short last unit counts short, and the file has zeros from there to the next block", async (t) => {
  const reader = new MemoryReader(randomContent(UNIT + 1000));
  const { blob } = await openBlob(t, reader);
  await blob.fetch(UNIT, 4096);
  assert.equal(blob.readyBytes, 1000);
  assert.equal(blob.isReady(UNIT, 1 << 20), true);
  assert.equal(blob.readyRun(UNIT, 4096), 4096);
  assert.deepEqual(
    await readCacheFile(blob, UNIT, 8192),
    Buffer.concat([reader.content.subarray(UNIT), Buffer.alloc(4096 - 1000)]),
  );
});

void test("a hundred readers of one cold unit cause one request to the source", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  await Promise.all(Array.from({ length: 100 }, (_, n) => blob.fetch(n * 100, 100, { background: n % 2 === 0 })));
  assert.equal(reader.requests.length, 1);
  assert.equal(blob.isReady(0, UNIT), true);
});

void test("missing neighbours of one request are one request to the source, around what is ready", async (t) => {
  const reader = new MemoryReader(randomContent(16 * UNIT));
  const { blob } = await openBlob(t, reader);
  await blob.fetch(3 * UNIT, 1);
  await blob.fetch(0, 16 * UNIT);
  assert.deepEqual(
    reader.requests.slice(1).map(({ offset, length }) => [offset / UNIT, length / UNIT]),
    [
      [0, 3],
      [4, 12],
    ],
  );
  assert.deepEqual(await readCacheFile(blob, 0, 16 * UNIT), reader.content);
});

void test("a failed fetch marks nothing ready, fails exactly its waiters, and is tried anew by the next", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = async (offset) => {
    if (offset !== 0) return;
    await hold.opened;
    throw new Error("reset by peer");
  };
  const failing = [blob.fetch(0, 10), blob.fetch(100, 10)];
  const other = blob.fetch(UNIT, 10);
  await until(() => reader.requests.length === 2);
  hold.open();
  for (const result of await Promise.allSettled(failing)) assert.equal(result.status, "rejected");
  await other;
  assert.equal(blob.isReady(0, 1), false);
  assert.equal(blob.stats.errors, 1);
  reader.before = () => undefined;
  await blob.fetch(0, 10);
  assert.deepEqual(await readCacheFile(blob, 0, UNIT), reader.content.subarray(0, UNIT));
});

void test("a blob opens from disk alone, and serves what is durable while its source is down", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  const first = await openBlob(t, reader);
  await first.blob.fetch(2 * UNIT, 2 * UNIT);
  await first.cache.close();
  const { cache, log } = await openCache(t, { dataDir: first.dataDir });
  const blob = await cache.open(first.blob.id);
  assert.deepEqual(log, []);
  assert.equal(blob.readyBytes, 2 * UNIT);
  assert.equal(blob.isDurable(2 * UNIT, 2 * UNIT), true);
  assert.deepEqual(await readCacheFile(blob, 2 * UNIT, 2 * UNIT), reader.content.subarray(2 * UNIT, 4 * UNIT));
  await assert.rejects(blob.fetch(0, 1), /unreachable/);
  await assert.rejects(blob.fetch(0, 1), /unreachable/);
});

void test("the zeros behind a blob's end are written, whatever a crash has left there", async (t) => {
  const reader = new MemoryReader(randomContent(UNIT + 1000));
  const { blob } = await openBlob(t, reader);
  blob.file.writeNow(IoBuffer.from(Buffer.alloc(4096, 0xee)), 0, 4096, UNIT);
  await blob.fetch(UNIT, 1000);
  assert.deepEqual((await readCacheFile(blob, UNIT, 4096)).subarray(1000), Buffer.alloc(3096));
});
