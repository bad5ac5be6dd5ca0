import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { FileSystem } from "../../src/base/file-system.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { BlobCache, BlobCacheOptions } from "../../src/blob/cache.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import { decodeRangeMap } from "../../src/blob/range-map-file.ts";
import { gate, MemoryReader, openCache, randomContent, testObject, until, withCalls, withFile } from "./support.ts";

const UNIT = 64 * 1024;
const MiB = 1024 * 1024;

interface World {
  cache: BlobCache;
  dataDir: string;
  log: string[];
  /** What volumes need; true: ranges may go. */
  needed: Map<string, boolean>;
}

async function world(t: TestContext, overrides: Partial<BlobCacheOptions> = {}): Promise<World> {
  const needed = new Map<string, boolean>();
  const opened = await openCache(t, {
    // As much as the tests want: what the machine's disk has left is not theirs to say.
    cacheLimits: { capacityBytes: null, reserve: 0 },
    ...overrides,
  });
  opened.cache.setNeeds({ needed: () => needed });
  return { ...opened, needed };
}

/** A blob that is all there, durably, and open. */
async function filled(cache: BlobCache, reader: MemoryReader, url: string): Promise<CachedBlob> {
  const blob = await cache.create({ ...testObject(reader.size), url, unitBytes: UNIT }, reader);
  await blob.fetch(0, reader.size);
  await blob.sync();
  return blob;
}

/** As a volume reads: what was lost while it read is read again. */
async function read(blob: CachedBlob, offset: number, length: number): Promise<Buffer> {
  const buffer = new IoBuffer(length);
  for (let attempt = 0; attempt < 50; attempt++) {
    blob.noteRead(offset, length);
    await blob.fetch(offset, length);
    const { losses } = blob;
    if (!blob.isReady(offset, length)) continue;
    await blob.file.read(buffer, 0, length, offset);
    if (blob.losses === losses) return buffer.bytes;
  }
  throw new Error("never stayed");
}

void test("blobs that no volume needs go whole, the least recently used first, until the low mark is reached", async (t) => {
  const { cache, needed, dataDir } = await world(t);
  const ids: string[] = [];
  for (let each = 0; each < 4; each++) {
    const blob = await filled(cache, new MemoryReader(randomContent(MiB)), `http://example.test/${each}`);
    ids.push(blob.id);
    await cache.release(blob.id);
    await new Promise((resolve) => setTimeout(resolve, 5)); // the order is by a clock of milliseconds
  }
  needed.set(ids[0], false);
  await cache.release((await cache.open(ids[1])).id); // used again: the youngest now
  cache.space.limits = { capacityBytes: 3 * MiB, reserve: 0 };
  await cache.space.relieve();
  assert.deepEqual(new Set(cache.list().map(({ id }) => id)), new Set([ids[0], ids[1]]));
  assert.deepEqual(new Set(readdirSync(join(dataDir, "blobs"))), new Set([ids[0], ids[1]]));
  assert.ok(cache.diskBytes <= 3 * MiB);
});

void test("what is open, needed or pinned never goes whole, however full it is", async (t) => {
  const { cache, needed } = await world(t);
  const open = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/open");
  const wanted = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/needed");
  const pinned = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/pinned");
  await pinned.pin("0123456789abcdef0123456789abcdef");
  needed.set(wanted.id, false);
  await cache.release(wanted.id);
  await cache.release(pinned.id);
  cache.space.limits = { capacityBytes: 1, reserve: 0 };
  await cache.space.relieve();
  assert.equal(cache.list().length, 3);
  assert.equal(open.readyBytes, MiB);
});

void test("ranges that nobody read lately go, take no space any more, and are fetched again", async (t) => {
  const { cache, needed } = await world(t);
  const reader = new MemoryReader(randomContent(4 * MiB));
  const blob = await filled(cache, reader, "http://example.test/a");
  needed.set(blob.id, true);
  for (let at = 0; at < MiB; at += UNIT) blob.noteRead(at, UNIT);
  cache.space.limits = { capacityBytes: 3 * MiB, reserve: 0 };
  await cache.space.relieve();
  assert.ok(blob.readyBytes < 3 * MiB, `${blob.readyBytes} bytes stayed`);
  assert.ok(blob.file.allocated() <= 3 * MiB);
  assert.ok(blob.isReady(0, MiB), "what was read lately stayed");
  const requests = reader.requests.length;
  assert.ok((await read(blob, 0, 4 * MiB)).equals(reader.content));
  assert.ok(reader.requests.length > requests);
});

void test("ranges of closed blobs go before those of open ones; they stay as long unused as they were", async (t) => {
  const { cache, needed } = await world(t);
  const open = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/open");
  needed.set(open.id, true);
  const closed: MemoryReader[] = [];
  const ids: string[] = [];
  for (let each = 0; each < 3; each++) {
    const reader = new MemoryReader(randomContent(MiB));
    const blob = await filled(cache, reader, `http://example.test/${each}`);
    if (each === 2) await blob.pin("0123456789abcdef0123456789abcdef");
    needed.set(blob.id, true);
    closed.push(reader);
    ids.push(blob.id);
    await cache.release(blob.id);
    await new Promise((resolve) => setTimeout(resolve, 5)); // the order is by a clock of milliseconds
  }
  const { usedAt } = (await cache.look(ids[0]))!;
  for (const left of [MiB, 0]) {
    await cache.space.free(MiB);
    assert.equal((await cache.look(ids[0]))!.diskBytes, 0);
    assert.equal((await cache.look(ids[1]))!.diskBytes, left, "the least recently used went first");
    assert.equal((await cache.look(ids[2]))!.diskBytes, MiB, "what a detached volume needs stays");
    assert.equal(open.readyBytes, MiB);
    assert.deepEqual(cache.opened(), [open]);
  }
  assert.equal((await cache.look(ids[0]))!.usedAt, usedAt);
  const blob = await cache.open(ids[0]);
  blob.attach(closed[0]);
  assert.ok((await read(blob, 0, MiB)).equals(closed[0].content));
});

void test("whoever needs room while the cache is only looked at for too much gets it all the same", async (t) => {
  const held = gate();
  let looks = 0;
  const space = async (): Promise<{ free: number; total: number }> => {
    looks++;
    await held.opened;
    return { free: 1000 * MiB, total: 1000 * MiB };
  };
  const { cache, needed } = await world(t, { fs: withCalls({ space }) });
  const blob = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/a");
  await cache.release(blob.id);
  needed.clear();
  const looked = cache.space.relieve();
  const room = cache.space.makeRoom();
  await until(() => looks === 1);
  held.open();
  assert.equal(await looked, 0);
  assert.equal(await room, true);
});

void test("a closed blob that can't be opened is told of, and the next ones are made smaller", async (t) => {
  const { cache, needed, dataDir, log } = await world(t);
  const ids: string[] = [];
  for (let each = 0; each < 3; each++) {
    const blob = await filled(cache, new MemoryReader(randomContent(MiB)), `http://example.test/${each}`);
    needed.set(blob.id, true);
    if (each === 1) await blob.pin("0123456789abcdef0123456789abcdef");
    ids.push(blob.id);
    await cache.release(blob.id);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  for (const id of [ids[0], ids[1]]) writeFileSync(join(dataDir, "blobs", id, "meta.json"), "nothing");
  assert.equal(await cache.space.free(MiB), MiB);
  assert.equal((await cache.look(ids[2]))!.diskBytes, 0);
  const told = log.filter((line) => line.includes("can't be made smaller"));
  assert.equal(told.length, 1, "one that is pinned is not even opened");
  assert.match(told[0], new RegExp(`blob ${ids[0]} `));
});

void test("ranges of a blob that a volume wants whole, is pinned, or was passed to another process stay", async (t) => {
  for (const how of ["wanted whole", "pinned", "passed on"]) {
    const { cache, needed } = await world(t);
    const blob = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/a");
    needed.set(blob.id, how !== "wanted whole");
    if (how === "pinned") await blob.pin("0123456789abcdef0123456789abcdef");
    if (how === "passed on") blob.share();
    cache.space.limits = { capacityBytes: 1, reserve: 0 };
    await cache.space.relieve();
    assert.equal(blob.readyBytes, MiB, how);
  }
});

void test("the map on disk says that a range is gone before its space is freed", async (t) => {
  let map: Buffer | undefined;
  const fs = withFile(/\/data$/, (file) => ({
    punch: (offset, length) => {
      const dir = join(file.path, "..");
      map ??= readFileSync(join(dir, "map"));
      return file.punch(offset, length);
    },
  }));
  const { cache, needed } = await world(t, { fs });
  const blob = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/a");
  needed.set(blob.id, true);
  await blob.evict(MiB);
  assert.ok(map !== undefined);
  const bits = map.subarray(96, map.length - 4);
  assert.ok(bits.every((byte) => byte === 0));
  assert.equal(blob.readyBytes, 0);
});

/** A file system whose disk is full: nothing new has room. `mapWrite` is what writes to an old map do, while it is. */
function fullDisk(mapWrite: () => Promise<void> = () => Promise.resolve()) {
  const disk = { full: false, errno: "ENOSPC" };
  const over = withFile(/\/map$/, (file) => ({
    async write(...args) {
      await file.write(...args);
      if (disk.full) await mapWrite();
    },
  }));
  const fs: FileSystem = {
    ...over,
    open: (path, mode) =>
      disk.full && mode === "create" ? Promise.reject(new IoError(disk.errno, "no new files")) : over.open(path, mode),
  };
  return { disk, fs };
}

void test("when the map can't be written nothing is evicted and nothing is lost", async (t) => {
  const { disk, fs } = fullDisk();
  disk.errno = "EIO";
  const { cache, needed } = await world(t, { fs });
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await filled(cache, reader, "http://example.test/a");
  needed.set(blob.id, true);
  disk.full = true;
  await assert.rejects(blob.evict(MiB), { errno: "EIO" });
  disk.full = false;
  assert.equal(blob.readyBytes, MiB);
  assert.ok(blob.isDurable(0, MiB));
  const requests = reader.requests.length;
  assert.ok((await read(blob, 0, MiB)).equals(reader.content));
  assert.equal(reader.requests.length, requests);
});

void test("a disk that is too full for a new map is made room on all the same, and its map says what is left", async (t) => {
  const { disk, fs } = fullDisk();
  const opened = await world(t, { fs });
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await filled(opened.cache, reader, "http://example.test/a");
  opened.needed.set(blob.id, true);
  disk.full = true;
  assert.equal(await blob.evict(MiB / 2), MiB / 2);
  assert.equal(blob.file.allocated(), MiB / 2);
  const path = join(opened.dataDir, "blobs", blob.id, "map");
  const map = decodeRangeMap(readFileSync(path), path, blob.meta, blob.file.binding().inode);
  assert.deepEqual(map, { bits: Uint8Array.of(0, 0xff) });
  disk.full = false;
  assert.ok((await read(blob, 0, MiB)).equals(reader.content));
});

void test("a map that is written over is on disk before any space is freed", async (t) => {
  const { disk, fs } = fullDisk();
  const steps: string[] = [];
  const noted: FileSystem = {
    ...fs,
    async open(path, mode) {
      const file = await fs.open(path, mode);
      const step = { map: "datasync", data: "punch" }[path.split("/").at(-1)!];
      return new Proxy(file, {
        get(target, key) {
          const value: unknown = Reflect.get(target, key, target);
          if (typeof value !== "function") return value;
          if (disk.full && key === step) steps.push(step);
          return value.bind(target) as unknown;
        },
      });
    },
  };
  const { cache, needed } = await world(t, { fs: noted });
  const blob = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/a");
  needed.set(blob.id, true);
  disk.full = true;
  await blob.evict(MiB);
  disk.full = false;
  assert.deepEqual(steps, ["datasync", "punch"]);
});

void test("a map that was torn on a full disk is none, until it is written anew", async (t) => {
  const { disk, fs } = fullDisk(() => Promise.reject(new IoError("EIO", "half of it")));
  const { cache, needed } = await world(t, { fs });
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await filled(cache, reader, "http://example.test/a");
  needed.set(blob.id, true);
  disk.full = true;
  await assert.rejects(blob.evict(MiB), { errno: "EIO" });
  disk.full = false;
  assert.equal(blob.readyBytes, MiB);
  assert.equal(blob.isDurable(0, 1), false);
  await blob.sync();
  assert.ok(blob.isDurable(0, MiB));
});

void test("whoever asks for a range on its way out waits, and gets it again", async (t) => {
  let held: (() => void) | undefined;
  const fs = withFile(/\/data$/, (file) => ({
    punch: async (offset, length) => {
      await new Promise<void>((resolve) => (held = resolve));
      return file.punch(offset, length);
    },
  }));
  const { cache, needed } = await world(t, { fs });
  const reader = new MemoryReader(randomContent(UNIT));
  const blob = await filled(cache, reader, "http://example.test/a");
  needed.set(blob.id, true);
  const evicting = blob.evict(UNIT);
  await until(() => held !== undefined);
  const requests = reader.requests.length;
  const reading = read(blob, 0, UNIT);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(reader.requests.length, requests, "fetched into a range that is about to be punched");
  held!();
  await evicting;
  assert.ok((await reading).equals(reader.content));
});

void test("durability rule 13: readers beside evictions never see anything but the image", async (t) => {
  const { cache, needed } = await world(t);
  const reader = new MemoryReader(randomContent(2 * MiB));
  const blob = await filled(cache, reader, "http://example.test/a");
  needed.set(blob.id, true);
  const stop = new AbortController();
  let reads = 0;
  const readers = Array.from({ length: 6 }, async () => {
    while (!stop.signal.aborted) {
      const offset = 4096 * Math.floor(Math.random() * (reader.size / 4096));
      assert.ok((await read(blob, offset, 4096)).equals(reader.content.subarray(offset, offset + 4096)));
      reads++;
    }
  });
  const failed = Promise.all(readers).catch((error: unknown) => {
    stop.abort();
    throw error;
  });
  failed.catch(() => undefined);
  for (let round = 0; round < 60 && !stop.signal.aborted; round++) {
    await blob.evict(512 * 1024);
    if (round % 7 === 0) await blob.sync();
    await new Promise(setImmediate);
  }
  stop.abort();
  await failed;
  assert.ok(reads > 0);
});

void test("a read that finds the disk full makes room among what nobody needs, once, and goes on", async (t) => {
  let full = false;
  const fs = withFile(/\/data$/, (file) => ({
    write: (buffer, at, length, offset) =>
      full ? Promise.reject(new IoError("ENOSPC", "disk full")) : file.write(buffer, at, length, offset),
  }));
  const { cache } = await world(t, {
    fs: {
      ...fs,
      rename: (from, to) => realFileSystem.rename(from, to).then(() => void (full &&= !to.endsWith(".removed"))),
    },
  });
  const old = await filled(cache, new MemoryReader(randomContent(MiB)), "http://example.test/old");
  await cache.release(old.id);
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await cache.create({ ...testObject(MiB), url: "http://example.test/new", unitBytes: UNIT }, reader);
  full = true;
  assert.ok((await read(blob, 0, 4096)).equals(reader.content.subarray(0, 4096)));
  assert.deepEqual(
    cache.list().map(({ id }) => id),
    [blob.id],
  );
  full = true; // and now there is nothing left to evict
  await assert.rejects(blob.fetch(512 * 1024, 4096), { errno: "ENOSPC" });
  full = false;
  await blob.fetch(512 * 1024, 4096);
});

void test("a cache is opened from its index, and remembers what was fetched and when it was used", async (t) => {
  const first = await world(t);
  const reader = new MemoryReader(randomContent(MiB));
  const blob = await filled(first.cache, reader, "http://example.test/a");
  const { id } = blob;
  await first.cache.close();
  assert.ok(existsSync(join(first.dataDir, "blobs.json")));
  const meta = join(first.dataDir, "blobs", id, "meta.json");
  const { cache } = await openCache(t, {
    dataDir: first.dataDir,
    fs: withCalls({
      readFile: (path) => (path === meta ? Promise.reject(new Error("was read")) : realFileSystem.readFile(path)),
    }),
  });
  assert.equal(cache.list()[0]?.id, id);
  const look = await cache.look(id);
  assert.equal(look?.stats.foregroundBytes, MiB);
  assert.ok(look.usedAt > 0);
  assert.ok(cache.diskBytes >= MiB);
});

void test("an index that is damaged, missing or older than the blobs costs a look, and nothing else", async (t) => {
  const first = await world(t);
  const { id } = await filled(first.cache, new MemoryReader(randomContent(MiB)), "http://example.test/a");
  await first.cache.close();
  const index = join(first.dataDir, "blobs.json");
  for (const damage of [
    () => writeFileSync(index, "{"),
    () => rmSync(index),
    () => writeFileSync(index, '{"blobs":[]}'),
  ]) {
    damage();
    const { cache } = await openCache(t, { dataDir: first.dataDir });
    assert.equal(cache.list()[0]?.id, id);
    assert.ok(cache.diskBytes >= MiB);
    assert.ok((await cache.open(id)).isReady(0, MiB));
    await cache.close();
  }
});
