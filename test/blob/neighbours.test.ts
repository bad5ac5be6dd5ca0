import assert from "node:assert/strict";
import { test } from "node:test";
import { MISS_BYTES, Neighbours } from "../../src/blob/neighbours.ts";
import { gate, MemoryReader, openBlob, randomContent, until } from "./support.ts";

const MiB = 1024 * 1024;

void test("a miss brings what is around it first, then the other half of its window", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader, { missBytes: MISS_BYTES });
  for (const place of [3, 11, 5, 13, 7, 9, 4, 12]) blob.noteRead(place * MISS_BYTES, 4096); // he goes about
  const hold = gate();
  reader.before = () => hold.opened;
  for (const offset of [100_000, 4 * MiB - 4096]) {
    blob.noteRead(offset, 4096);
    void blob.fetch(offset, 4096).catch(() => undefined);
  }
  await until(() => reader.requests.length === 4);
  hold.open();
  assert.deepEqual(
    reader.requests.map(({ offset, length }) => [offset, length]).sort(([a], [b]) => a - b),
    [0, MISS_BYTES, 4 * MiB - 2 * MISS_BYTES, 4 * MiB - MISS_BYTES].map((offset) => [offset, MISS_BYTES]),
  );
  assert.deepEqual(
    reader.requests.map(({ background }) => background),
    [false, false, true, true],
  );
});

void test("a few places that are missed, however often, bring nothing else", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader, { missBytes: MISS_BYTES });
  const hold = gate();
  reader.before = () => hold.opened;
  const reads = Array.from({ length: 300 }, (_, index) => {
    const offset = Math.floor(index / 100) * MiB;
    blob.noteRead(offset, 4096);
    return blob.fetch(offset, 4096);
  });
  await until(() => reader.requests.length === 3);
  hold.open();
  await Promise.all(reads);
  assert.equal(reader.requests.length, 3);
});

void test("what is ready around a miss is not fetched again", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader, { missBytes: MISS_BYTES });
  await blob.fetch(0, 64 * 1024, { background: true });
  await blob.fetch(128 * 1024, 4096);
  assert.deepEqual(
    reader.requests.map(({ offset, length }) => [offset, length]),
    [
      [0, 64 * 1024],
      [64 * 1024, 192 * 1024],
    ],
  );
});

void test("a blob that ends in the middle of a window has no more", async (t) => {
  const reader = new MemoryReader(randomContent(100_000));
  const { blob } = await openBlob(t, reader, { missBytes: MISS_BYTES });
  blob.noteRead(0, 4096);
  await blob.fetch(0, 4096);
  await new Promise(setImmediate);
  assert.deepEqual(
    reader.requests.map(({ offset, length }) => [offset, length]),
    [[0, 100_000]],
  );
});

void test("neighbours that nobody reads are soon fetched for a miss in sixteen only; once they are read, for each again", () => {
  const neighbours = new Neighbours(MISS_BYTES, 64 * 1024);
  let window = 0;
  const missAndFetch = (): boolean => {
    const at = window++ * 2 * MISS_BYTES;
    neighbours.noteRead(at, 4096);
    const beside = neighbours.missed(at, 4096);
    if (beside >= 0) neighbours.fetching(beside);
    return beside >= 0;
  };
  const count = (misses: number): number => Array.from({ length: misses }, missAndFetch).filter(Boolean).length;
  assert.equal(count(8 + 16), 16);
  count(1000);
  assert.equal(count(160), 10);
  for (let each = 0; each < 320; each++) if (missAndFetch()) neighbours.noteRead((window * 2 - 1) * MISS_BYTES, 4096);
  assert.equal(count(16), 16);
});
