import assert from "node:assert/strict";
import { test } from "node:test";
import { IoError, SourceError } from "../../src/base/errors.ts";
import type { File } from "../../src/base/file-system.ts";
import { diskPlaces } from "../../src/base/pool-slots.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import {
  ManualClock,
  MemoryReader,
  gate,
  openBlob,
  openCache,
  randomContent,
  readCacheFile,
  testObject,
  until,
  withCalls,
  withFile,
} from "./support.ts";

const KiB = 1024;
const UNIT = 64 * KiB;

void test("a foreground fetch waits for the background flight that has its unit, and makes no second one", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const background = blob.fetch(0, 4 * UNIT, { background: true });
  await until(() => reader.requests.length === 1);
  const foreground = blob.fetch(UNIT, 1);
  hold.open();
  await Promise.all([background, foreground]);
  assert.deepEqual(reader.requests, [{ offset: 0, length: 4 * UNIT, background: true }]);
});

void test("a queued background fetch that a foreground one needs goes first, as a foreground request", async (t) => {
  const reader = new MemoryReader(randomContent(64 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = (offset) => (offset === 60 * UNIT ? undefined : hold.opened);
  const fetches: Promise<void>[] = [];
  for (let unit = 0; unit < 64; unit += 2) fetches.push(blob.fetch(unit * UNIT, UNIT, { background: true }));
  await until(() => reader.requests.length === 16);
  assert.equal(
    reader.requests.every(({ background }) => background),
    true,
  );
  await blob.fetch(60 * UNIT, UNIT);
  assert.deepEqual(reader.requests[16], { offset: 60 * UNIT, length: UNIT, background: false });
  hold.open();
  await Promise.all(fetches);
  assert.equal(reader.requests.length, 32);
});

/** So many units in the foreground, far from all others, that the next one has to wait. */
function takeAllPlaces(blob: CachedBlob, from: number): Promise<void>[] {
  return Array.from({ length: 32 }, (_, n) => blob.fetch((from + 2 * n) * UNIT, UNIT));
}

void test("small fetches that wait for their turn become few large requests, as far as they lie behind each other", async (t) => {
  const reader = new MemoryReader(randomContent(256 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const fetches = takeAllPlaces(blob, 150);
  await until(() => reader.requests.length === 32);
  for (let unit = 0; unit < 40; unit++) if (unit !== 20) fetches.push(blob.fetch(unit * UNIT, UNIT));
  hold.open();
  await Promise.all(fetches);
  const runs = reader.requests.slice(32).map(({ offset, length }) => [offset / UNIT, length / UNIT]);
  assert.deepEqual(runs, [
    [0, 16],
    [16, 4],
    [21, 16],
    [37, 3],
  ]);
  assert.deepEqual(await readCacheFile(blob, 0, 20 * UNIT), reader.content.subarray(0, 20 * UNIT));
});

void test("a request that is under way grows no more", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = (offset) => (offset === 0 ? hold.opened : undefined);
  const first = blob.fetch(0, UNIT);
  await until(() => reader.requests.length === 1);
  await blob.fetch(UNIT, UNIT);
  hold.open();
  await first;
});

void test("what somebody waits for does not join what others only want soon, and it goes on when they leave", async (t) => {
  const reader = new MemoryReader(randomContent(256 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const fetches = takeAllPlaces(blob, 150);
  for (let n = 0; n < 8; n++) fetches.push(blob.fetch((80 + 2 * n) * UNIT, UNIT, { soon: true }));
  await until(() => reader.requests.length === 40);
  fetches.push(blob.fetch(0, UNIT, { soon: true }), blob.fetch(UNIT, UNIT));
  const leaving = new AbortController();
  const left = assert.rejects(blob.fetch(2 * UNIT, UNIT, { signal: leaving.signal }), /enough/);
  leaving.abort(new Error("enough"));
  await left;
  hold.open();
  await Promise.all(fetches);
  const runs = reader.requests.slice(40).map(({ offset, length }) => [offset / UNIT, length / UNIT]);
  assert.deepEqual(
    runs.toSorted(([a], [b]) => a - b),
    [
      [0, 1],
      [1, 2],
    ],
  );
});

void test("a file of this host is asked for no more at once than there are threads for, and a few", async (t) => {
  const reader = new MemoryReader(randomContent(64 * UNIT));
  const { cache } = await openCache(t, { openSource: () => Promise.resolve(reader) });
  const blob = await cache.create({ ...testObject(reader.size), url: "/images/disk.raw", unitBytes: UNIT });
  const hold = gate();
  reader.before = () => hold.opened;
  const fetches = Array.from({ length: 20 }, (_, n) => blob.fetch(2 * n * UNIT, UNIT));
  await until(() => reader.requests.length >= diskPlaces.total + 2);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(reader.requests.length, diskPlaces.total + 2);
  hold.open();
  await Promise.all(fetches);
});

void test("while somebody waits for the source, the background starts nothing; once he has his bytes, all it may", async (t) => {
  const clock = new ManualClock();
  const reader = new MemoryReader(randomContent(64 * UNIT));
  const { blob } = await openBlob(t, reader, { clock });
  const hold = gate();
  reader.before = (offset) => (offset === 0 ? hold.opened : undefined);
  const foreground = blob.fetch(0, 1);
  const background = Array.from({ length: 10 }, (_, n) => blob.fetch((4 + n * 2) * UNIT, 1, { background: true }));
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(reader.requests.length, 1);
  hold.open();
  await foreground;
  await until(() => clock.sleeping > 0);
  clock.advance(1000);
  await Promise.all(background);
});

void test("a source that does not answer somebody holds up the background for a moment only", async (t) => {
  const clock = new ManualClock();
  const reader = new MemoryReader(randomContent(64 * UNIT));
  const { blob } = await openBlob(t, reader, { clock });
  const hold = gate();
  reader.before = (offset) => (offset === 0 ? hold.opened : undefined);
  const foreground = blob.fetch(0, 1);
  const background = blob.fetch(4 * UNIT, 1, { background: true });
  await until(() => clock.sleeping > 0);
  clock.advance(2000);
  await background;
  hold.open();
  await foreground;
});

void test("when a reader is expected, the background waits for a moment", async (t) => {
  const clock = new ManualClock();
  const reader = new MemoryReader(randomContent(64 * UNIT));
  const { blob, cache } = await openBlob(t, reader, { clock });
  const finish = gate();
  reader.before = () => finish.opened;
  cache.expectReads();
  const background = Array.from({ length: 10 }, (_, n) => blob.fetch((4 + n * 2) * UNIT, 1, { background: true }));
  await until(() => clock.sleeping > 0);
  assert.equal(reader.requests.length, 0);
  const first = blob.fetch(0, 1);
  await until(() => reader.requests.length === 1);
  assert.equal(reader.requests[0].offset, 0);
  clock.advance(100);
  finish.open();
  await first;
  await until(() => clock.sleeping > 0);
  clock.advance(1000);
  await Promise.all(background);
});

void test("who comes to wait for what the background began makes it hurry", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const fetches = [blob.fetch(0, 1, { background: true }), blob.fetch(0, 1, { soon: true })];
  await until(() => reader.options.length === 1);
  const { hurry } = reader.options[0];
  assert.equal(hurry?.aborted, false);
  fetches.push(blob.fetch(0, 1));
  assert.equal(hurry.aborted, true);
  hold.open();
  await Promise.all(fetches);
});

void test("a foreground fetch does not fail with the background flight that it joined", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = async () => {
    await hold.opened;
    if (reader.requests.length === 1) throw new Error("background gives up early");
  };
  const background = blob.fetch(0, 1, { background: true });
  await until(() => reader.requests.length === 1);
  const foreground = blob.fetch(0, 1);
  hold.open();
  await assert.rejects(background, /gives up early/);
  await foreground;
  assert.deepEqual(
    reader.requests.map((request) => request.background),
    [true, false],
  );
});

/** From here on the unit can't be had. */
function damage(reader: MemoryReader, unit: number): void {
  const { before } = reader;
  reader.before = async (offset, length, signal) => {
    await before(offset, length, signal);
    if (offset > unit * UNIT || offset + length <= unit * UNIT) return;
    throw new SourceError("image-damaged", "a cluster that can't be unpacked", { transient: false });
  };
}

void test("what can't be had of an image fails who asks for it, and nobody who asks for what is around it", async (t) => {
  const reader = new MemoryReader(randomContent(16 * UNIT));
  const { blob } = await openBlob(t, reader, { missBytes: 4 * UNIT });
  damage(reader, 5);
  const [damaged, ...around] = [5, 4, 6, 7].map((unit) => blob.fetch(unit * UNIT, UNIT));
  await Promise.all([assert.rejects(damaged, { code: "image-damaged" }), ...around]);
  assert.deepEqual(await readCacheFile(blob, 6 * UNIT, 2 * UNIT), reader.content.subarray(6 * UNIT, 8 * UNIT));
  assert.equal(blob.isReady(5 * UNIT, 1), false);
});

void test("small fetches that became one request fail one by one, also while there is room for one only", async (t) => {
  const reader = new MemoryReader(randomContent(256 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  const room = gate();
  reader.before = (offset) => (offset === 150 * UNIT ? room.opened : offset > 150 * UNIT ? hold.opened : undefined);
  const others = takeAllPlaces(blob, 150);
  await until(() => reader.requests.length === 32);
  damage(reader, 5);
  const larger = Array.from({ length: 8 }, (_, n) => blob.fetch(0, (14 - n) * UNIT));
  const failing = [...larger, blob.fetch(5 * UNIT, UNIT)].map((one) => assert.rejects(one, { code: "image-damaged" }));
  const around = Array.from({ length: 16 }, (_, unit) => unit).filter((unit) => unit !== 5);
  const fetches = around.map((unit) => blob.fetch(unit * UNIT, UNIT));
  room.open();
  await Promise.all([...failing, ...fetches]).finally(() => hold.open());
  await Promise.all(others);
});

void test("an aborted fetch stops waiting, and the flight goes on for the others", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const leaving = new AbortController();
  const first = blob.fetch(0, 1, { signal: leaving.signal });
  const second = blob.fetch(0, 1);
  await until(() => reader.requests.length === 1);
  leaving.abort(new Error("client went away"));
  await assert.rejects(first, /client went away/);
  hold.open();
  await second;
  assert.equal(reader.requests.length, 1);
});

void test("a flight that everybody left is aborted, and its units are fetched anew only once it has ended", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  let aborted = false;
  reader.before = async (_offset, _length, signal) => {
    signal?.addEventListener("abort", () => (aborted = true));
    if (reader.requests.length === 1) await hold.opened;
  };
  const leaving = new AbortController();
  const first = blob.fetch(0, 1, { signal: leaving.signal });
  await until(() => reader.requests.length === 1);
  leaving.abort(new Error("gone"));
  await assert.rejects(first, /gone/);
  assert.equal(aborted, true);
  const second = blob.fetch(0, 1);
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(reader.requests.length, 1, "bytes of the aborted flight could still land in the unit");
  hold.open();
  await second;
  assert.equal(reader.requests.length, 2);
  assert.deepEqual(await readCacheFile(blob, 0, UNIT), reader.content.subarray(0, UNIT));
  assert.equal(blob.stats.errors, 0);
});

void test("bytes that a failed read has delivered are not ready, however many", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  reader.read = async (offset, length, sink) => {
    await sink(Buffer.alloc(length, 0xee));
    throw new Error(`the object at ${offset} is not the pinned one`);
  };
  await assert.rejects(blob.fetch(0, 4 * UNIT), /not the pinned one/);
  assert.equal(blob.readyBytes, 0);
});

void test("a source that sends too little or too much is an error, and nothing is ready", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  reader.read = async (_offset, length, sink) => sink(Buffer.alloc(length - 1));
  await assert.rejects(blob.fetch(0, 1), { code: "source-short" });
  reader.read = async (_offset, length, sink) => sink(Buffer.alloc(length + 1));
  await assert.rejects(blob.fetch(0, 1), { code: "source-protocol" });
  assert.equal(blob.readyBytes, 0);
});

void test("chunks of any size end up where they belong", async (t) => {
  const reader = new MemoryReader(randomContent(40 * UNIT + 17));
  const { blob } = await openBlob(t, reader);
  for (const [n, chunkBytes] of [1000, 65_536, 262_144, 300_001, 4_000_000].entries()) {
    reader.chunkBytes = chunkBytes;
    await blob.fetch(n * 8 * UNIT, 8 * UNIT + 17);
  }
  assert.equal(blob.readyBytes, reader.size);
  assert.deepEqual(await readCacheFile(blob, 0, reader.size), reader.content);
});

void test("large chunks are written from where they are, with holes where they are empty, and never over what is ready", async (t) => {
  const content = randomContent(64 * UNIT + 17);
  content.fill(0, 8 * UNIT, 24 * UNIT);
  const reader = new MemoryReader(content);
  reader.chunkBytes = 50 * UNIT + 123;
  const { blob } = await openBlob(t, reader);
  await blob.fetch(UNIT * 3, UNIT);
  reader.content.fill(0xee, 3 * UNIT, 4 * UNIT); // would be seen if it were fetched, or written, again
  await blob.fillByStreaming((sink, options) => reader.read(0, reader.size, sink, options));
  const expected = Buffer.from(reader.content);
  assert.notDeepEqual(await readCacheFile(blob, 3 * UNIT, UNIT), expected.subarray(3 * UNIT, 4 * UNIT));
  for (const [from, end] of [
    [0, 3],
    [4, 65],
  ]) {
    const length = Math.min(end * UNIT, reader.size) - from * UNIT;
    assert.deepEqual(
      await readCacheFile(blob, from * UNIT, length),
      expected.subarray(from * UNIT, from * UNIT + length),
    );
  }
  await blob.sync();
  const allocated = blob.file.allocated();
  assert.ok(allocated <= (64 - 12) * UNIT, `${allocated} bytes`);
  const behind = Math.ceil(reader.size / 4096) * 4096 - reader.size;
  assert.deepEqual(await readCacheFile(blob, reader.size, behind), Buffer.alloc(behind));
});

void test("a huge fetch is split into bounded requests", async (t) => {
  const reader = new MemoryReader(Buffer.alloc(70 * 1024 * KiB, 1));
  const { blob } = await openBlob(t, reader);
  await blob.fetch(0, 35 * 1024 * KiB);
  await blob.fetch(35 * 1024 * KiB, 35 * 1024 * KiB, { background: true });
  const longest = (background: boolean): number =>
    Math.max(...reader.requests.filter((request) => request.background === background).map(({ length }) => length));
  assert.equal(longest(false), 8 * 1024 * KiB);
  assert.equal(longest(true), 1024 * KiB);
  assert.equal(blob.readyBytes, reader.size);
});

void test("empty parts of an image take no space, and hide what a failed request left there", async (t) => {
  const reader = new MemoryReader(Buffer.alloc(8 * UNIT));
  const { blob } = await openBlob(t, reader);
  const read = reader.read.bind(reader);
  reader.read = async (_offset, length, sink) => {
    await sink(Buffer.alloc(length, 0xee));
    throw new Error("broken");
  };
  await assert.rejects(blob.fetch(0, 2 * UNIT), /broken/);
  reader.read = read;
  await blob.fetch(0, 8 * UNIT);
  await blob.sync();
  assert.equal(blob.file.allocated(), 0);
  assert.deepEqual(await readCacheFile(blob, 0, 8 * UNIT), reader.content);
});

void test("a write error of the cache file is that request's error, and the next one works", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  let full = true;
  const fs = withFile(/data$/, (file) => ({
    write: (...args: Parameters<File["write"]>) =>
      full ? Promise.reject(new IoError("ENOSPC", "disk full")) : file.write(...args),
  }));
  const { blob } = await openBlob(t, reader, { fs });
  await assert.rejects(blob.fetch(0, 8 * UNIT), { errno: "ENOSPC" });
  assert.equal(blob.readyBytes, 0);
  full = false;
  await blob.fetch(0, 8 * UNIT);
  assert.deepEqual(await readCacheFile(blob, 0, 8 * UNIT), reader.content);
});

void test("the source is opened at the first miss, once, and again after it could not be opened", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  let opened = 0;
  const { blob } = await openBlob(t, reader, {
    openSource: async () => {
      opened++;
      if (opened === 1) throw new Error("no route to host");
      return reader;
    },
  });
  assert.equal(opened, 0);
  const results = await Promise.allSettled([blob.fetch(0, 1), blob.fetch(2 * UNIT, 1)]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ["rejected", "rejected"],
  );
  assert.equal(opened, 1);
  await Promise.all([blob.fetch(0, 1), blob.fetch(2 * UNIT, 1)]);
  assert.equal(opened, 2);
});

void test("a source of another size than the pinned object's is refused", async (t) => {
  const { blob } = await openBlob(t, new MemoryReader(randomContent(4 * UNIT)), {
    openSource: () => Promise.resolve(new MemoryReader(randomContent(3 * UNIT))),
  });
  await assert.rejects(blob.fetch(0, 1), { code: "source-changed" });
});

void test("streaming makes everything ready at the end and nothing before, and readers wait for it", async (t) => {
  const reader = new MemoryReader(randomContent(20 * UNIT + 5));
  const { blob } = await openBlob(t, reader, { openSource: () => Promise.reject(new Error("no ranges here")) });
  const hold = gate();
  const progress: number[] = [];
  const filling = blob.fillByStreaming(
    async (sink) => {
      await sink(reader.content.subarray(0, 10 * UNIT));
      await hold.opened;
      await sink(reader.content.subarray(10 * UNIT));
    },
    { onProgress: (bytes) => progress.push(bytes) },
  );
  await until(() => progress.length === 1);
  let read = false;
  const waiting = blob.fetch(UNIT, 1).then(() => (read = true));
  await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(blob.readyBytes, 0);
  assert.equal(read, false);
  hold.open();
  await Promise.all([filling, waiting]);
  assert.deepEqual(progress, [10 * UNIT, reader.size]);
  assert.equal(blob.readyBytes, reader.size);
  assert.deepEqual(await readCacheFile(blob, 0, reader.size), reader.content);
});

void test("streaming leaves alone what is ready already, and a broken stream makes nothing ready and takes no space", async (t) => {
  const reader = new MemoryReader(randomContent(20 * UNIT));
  const { blob } = await openBlob(t, reader);
  await blob.fetch(3 * UNIT, UNIT);
  const filling = blob.fillByStreaming(async (sink) => {
    await sink(Buffer.alloc(20 * UNIT, 0xee));
    throw new Error("the object changed");
  });
  await assert.rejects(filling, /the object changed/);
  assert.equal(blob.readyBytes, UNIT);
  assert.ok(blob.file.allocated() < 2 * UNIT, `it takes ${blob.file.allocated()} bytes`);
  assert.deepEqual(await readCacheFile(blob, 3 * UNIT, UNIT), reader.content.subarray(3 * UNIT, 4 * UNIT));
});

void test("an aborted stream ends, and fetches by range work again", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob } = await openBlob(t, reader);
  const leaving = new AbortController();
  const filling = blob.fillByStreaming(
    (_sink, { signal }) =>
      new Promise((_resolve, reject) => signal!.addEventListener("abort", () => reject(signal!.reason as Error))),
    { signal: leaving.signal },
  );
  setImmediate(() => leaving.abort(new Error("enough")));
  await assert.rejects(filling, /enough/);
  await blob.fetch(0, 4 * UNIT);
  assert.equal(blob.readyBytes, reader.size);
});

void test("closing a blob ends the fetches that hang, and lets nothing start", async (t) => {
  const reader = new MemoryReader(randomContent(40 * UNIT));
  const { blob, cache } = await openBlob(t, reader);
  reader.before = (_offset, _length, signal) =>
    new Promise((_resolve, reject) => signal!.addEventListener("abort", () => reject(signal!.reason as Error)));
  const hanging = Array.from({ length: 20 }, (_, n) => blob.fetch(2 * n * UNIT, 1, { background: n % 2 === 0 }));
  const settled = Promise.allSettled(hanging);
  await until(() => reader.requests.length > 0);
  await cache.close();
  for (const result of await settled) assert.equal(result.status, "rejected");
  await assert.rejects(blob.fetch(0, 1), { code: "closed" });
});

void test("real file system errors reach the caller with their errno", async (t) => {
  const fs = withCalls({
    open: (path, mode) =>
      path.endsWith("data") ? Promise.reject(new IoError("EROFS", "read-only")) : realFileSystem.open(path, mode),
  });
  await assert.rejects(openBlob(t, new MemoryReader(randomContent(UNIT)), { fs }), { errno: "EROFS" });
});
