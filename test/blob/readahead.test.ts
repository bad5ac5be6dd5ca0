import assert from "node:assert/strict";
import { test } from "node:test";
import { Readahead } from "../../src/blob/readahead.ts";
import { MemoryReader, openBlob, randomContent, until } from "./support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

/** Reads in sequence; every range that was asked for ahead, as [offset, length]. */
function readThrough(readahead: Readahead, from: number, to: number, step: number): [number, number][] {
  const asked: [number, number][] = [];
  for (let at = from; at < to; at += step) {
    if (readahead.note(at, step)) asked.push([readahead.offset, readahead.length]);
  }
  return asked;
}

void test("a sequential reader gets a window that doubles up to 8 MiB, without gaps or repetitions", () => {
  const asked = readThrough(new Readahead(), 0, 64 * MiB, 64 * KiB);
  let end = asked[0][0];
  for (const [offset, length] of asked) {
    assert.equal(offset, end);
    end = offset + length;
  }
  assert.equal(asked[0][1], 256 * KiB);
  assert.equal(Math.max(...asked.map(([, length]) => length)) <= 8 * MiB, true);
  assert.ok(end >= 64 * MiB + 4 * MiB, "the window has grown to its full size");
});

void test("a short run of reads asks for nothing ahead", () => {
  assert.deepEqual(readThrough(new Readahead(), 10 * MiB, 10 * MiB + 96 * KiB, 4 * KiB), []);
});

void test("random reads ask for nothing ahead", () => {
  const readahead = new Readahead();
  let seed = 1;
  for (let n = 0; n < 20_000; n++) {
    seed = (seed * 48_271) % 2_147_483_647;
    assert.equal(readahead.note((seed % 1_000_000) * 4 * MiB, 128 * KiB), false);
  }
});

void test("a reader that stops being sequential starts again with a small window", () => {
  const readahead = new Readahead();
  readThrough(readahead, 0, 16 * MiB, 64 * KiB);
  assert.equal(readThrough(readahead, 1024 * MiB, 1025 * MiB, 64 * KiB)[0][1], 256 * KiB);
});

void test("several interleaved sequential readers are told apart, with a stray read now and then", () => {
  const readahead = new Readahead();
  const windows = [0, 0, 0, 0];
  for (let n = 0; n < 100; n++) {
    for (let reader = 0; reader < 4; reader++) {
      if (readahead.note(reader * 1024 * MiB + n * 128 * KiB, 128 * KiB)) windows[reader] += readahead.length;
    }
    if (n % 10 === 0) readahead.note(100_000 * MiB + n * 77 * MiB, 4 * KiB);
  }
  for (const bytes of windows) assert.ok(bytes >= 12 * MiB, `${bytes}`);
});

void test("reads in flight that overtake each other are one stream", () => {
  const readahead = new Readahead();
  let asked = 0;
  for (let at = 0; at < 4 * MiB; at += 16 * KiB) {
    for (const swapped of [2, 0, 3, 1]) if (readahead.note(at + swapped * 4 * KiB, 4 * KiB)) asked++;
  }
  assert.ok(asked > 0);
});

void test("what is read in sequence is fetched ahead in the background, to the blob's end and no further", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader, { unitBytes: 256 * KiB });
  await blob.fetch(0, 64 * KiB);
  for (let at = 0; at <= 2 * MiB; at += 64 * KiB) {
    await until(() => blob.isReady(at, 64 * KiB)); // who asked for it himself might be faster
    blob.noteRead(at, 64 * KiB);
  }
  await until(() => blob.readyBytes === 4 * MiB);
  assert.deepEqual(
    reader.requests.filter(({ background }) => !background).map(({ offset }) => offset),
    [0],
  );
  const { requests } = blob.stats;
  blob.noteRead(2 * MiB, 64 * KiB);
  assert.equal(blob.stats.requests, requests);
});

void test("a failed readahead bothers nobody", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader, { unitBytes: 256 * KiB });
  await blob.fetch(0, 512 * KiB);
  reader.before = () => Promise.reject(new Error("down"));
  for (let at = 0; at < 512 * KiB; at += 64 * KiB) blob.noteRead(at, 64 * KiB);
  await until(() => blob.stats.errors > 0);
  reader.before = () => undefined;
  await blob.fetch(512 * KiB, 1);
});
