import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { copyFileSync, existsSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { checkBlob } from "../../src/blob/check-blob.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { mount } from "./mount.ts";
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
const VOLUME = "a".repeat(32);

void test("durability rule 12: units that became ready during the sync of the data are not in the map it writes", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  const syncing = gate();
  const hold = gate();
  let syncs = 0;
  const fs = withFile(/data$/, (file) => ({
    datasync: async () => {
      if (++syncs === 2) {
        syncing.open();
        await hold.opened; // the first is the creation's
      }
      await file.datasync();
    },
  }));
  const { blob, dataDir } = await openBlob(t, reader, { fs, clock: new ManualClock() });
  await blob.fetch(0, UNIT);
  const first = blob.sync();
  await syncing.opened;
  await blob.fetch(2 * UNIT, UNIT);
  const second = blob.sync();
  hold.open();
  await first;
  assert.equal(blob.isDurable(0, UNIT), true);
  assert.equal(blob.isDurable(2 * UNIT, UNIT), false);
  await second;
  assert.equal(blob.isDurable(2 * UNIT, UNIT), true);
  assert.equal(syncs, 3, "a sync that was asked for during one that runs needs one of its own");
  assert.equal(existsSync(join(dataDir, "blobs", blob.id, "map.tmp")), false);
});

void test("durability rule 12: a failed sync takes back every unit written since the last good one, and they are fetched anew", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  let broken = false;
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (broken ? Promise.reject(new IoError("EIO", "write-back failed")) : file.datasync()),
  }));
  const { blob, log } = await openBlob(t, reader, { fs, clock: new ManualClock() });
  await blob.fetch(0, UNIT);
  await blob.sync();
  await blob.fetch(UNIT, 3 * UNIT);
  broken = true;
  await assert.rejects(blob.sync(), /write-back failed/);
  assert.equal(blob.isReady(0, UNIT), true);
  assert.equal(blob.readyBytes, UNIT);
  assert.match(log.join(), /3 units/);
  broken = false;
  await blob.sync();
  assert.equal(blob.isDurable(UNIT, 1), false, "the next sync succeeds, but not for what the kernel forgot");
  await blob.fetch(0, 4 * UNIT);
  await blob.sync();
  assert.equal(blob.isDurable(0, 4 * UNIT), true);
  assert.deepEqual(
    reader.requests.map(({ offset, length }) => [offset / UNIT, length / UNIT]),
    [
      [0, 1],
      [1, 3],
      [1, 3],
    ],
  );
});

void test("durability rule 12: a unit that was on its way while a sync failed is written anew before it counts", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  let broken = false;
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (broken ? Promise.reject(new IoError("ENOSPC", "write-back failed")) : file.datasync()),
  }));
  const { blob } = await openBlob(t, reader, { fs, clock: new ManualClock() });
  await blob.fetch(7 * UNIT, UNIT);
  const [delivered, hold] = [gate(), gate()];
  const read = reader.read.bind(reader);
  reader.read = async (offset, length, sink, options) => {
    await read(offset, length, sink, options);
    if (reader.requests.length !== 2) return;
    delivered.open();
    await hold.opened; // all bytes are written, the promise is still open
  };
  const fetching = blob.fetch(0, UNIT);
  await delivered.opened;
  broken = true;
  await assert.rejects(blob.sync(), { errno: "ENOSPC" });
  broken = false;
  hold.open();
  await fetching;
  assert.equal(reader.requests.length, 3);
  assert.equal(blob.isReady(0, UNIT), true);
  assert.deepEqual(await readCacheFile(blob, 0, UNIT), reader.content.subarray(0, UNIT));
});

void test("a map that could not be written changes nothing, and is written later by itself", async (t) => {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  const clock = new ManualClock();
  let full = true;
  const fs = withCalls({
    open: (path, mode) =>
      full && path.endsWith("map.tmp")
        ? Promise.reject(new IoError("ENOSPC", "disk full"))
        : realFileSystem.open(path, mode),
  });
  const { blob, log } = await openBlob(t, reader, { fs, clock });
  await blob.fetch(0, 2 * UNIT);
  await assert.rejects(blob.sync(), { errno: "ENOSPC" });
  assert.equal(blob.readyBytes, 2 * UNIT);
  assert.equal(blob.isDurable(0, 1), false);
  clock.advance(2000);
  await until(() => log.length > 0 && clock.sleeping > 0);
  assert.match(log.join(), /could not be saved: disk full/);
  full = false;
  clock.advance(2000);
  await until(() => blob.isDurable(0, 2 * UNIT));
});

void test("the range map is saved by itself some time after units became ready, and when enough of them did in the background", async (t) => {
  const MiB = 1024 * KiB;
  const reader = new MemoryReader(Buffer.alloc(140 * MiB, 7));
  const clock = new ManualClock();
  const { blob } = await openBlob(t, reader, { clock });
  await blob.fetch(0, 70 * MiB);
  await until(() => clock.sleeping > 0);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(blob.isDurable(0, UNIT), false); // the disk is for who waits
  clock.advance(2000);
  await until(() => blob.isDurable(0, 70 * MiB));
  await blob.fetch(70 * MiB, 70 * MiB, { background: true });
  await until(() => blob.isDurable(70 * MiB, 60 * MiB));
});

/** A blob of eight units, five of them durable, closed. */
async function prepare(t: TestContext): Promise<{ dataDir: string; dir: string; id: string; content: Buffer }> {
  const reader = new MemoryReader(randomContent(8 * UNIT));
  const { blob, cache, dataDir } = await openBlob(t, reader);
  await blob.fetch(0, 5 * UNIT);
  await cache.close();
  return { dataDir, dir: join(dataDir, "blobs", blob.id), id: blob.id, content: reader.content };
}

const damages: Record<string, { damage: (dir: string) => void; reason: RegExp }> = {
  "a data file that was copied back": {
    damage: (dir) => {
      copyFileSync(join(dir, "data"), join(dir, "copy"));
      renameSync(join(dir, "copy"), join(dir, "data"));
    },
    reason: /inode/,
  },
  "a data file that is gone": { damage: (dir) => rmSync(join(dir, "data")), reason: /the data file is missing/ },
  "a data file cut short": { damage: (dir) => truncateSync(join(dir, "data"), UNIT), reason: /has 65536 bytes, not/ },
  "a damaged map": {
    damage: (dir) => {
      const map = readFileSync(join(dir, "map"));
      map[96] ^= 0x80;
      writeFileSync(join(dir, "map"), map);
    },
    reason: /checksum/,
  },
};

for (const [name, { damage, reason }] of Object.entries(damages)) {
  void test(`durability rule 12: with ${name} the map is not believed, and everything is fetched anew`, async (t) => {
    const { dataDir, dir, id, content } = await prepare(t);
    damage(dir);
    const problems = await checkBlob(realFileSystem, dir);
    assert.equal(problems.length, 1);
    assert.match(problems[0].message, reason);
    const reader = new MemoryReader(content);
    const { cache, log } = await openCache(t, { dataDir, openSource: () => Promise.resolve(reader) });
    const blob = await cache.open(id);
    assert.match(log.join(), reason);
    assert.equal(blob.readyBytes, 0);
    assert.equal(existsSync(join(dir, "map.rejected")), true, "nothing is deleted");
    await blob.fetch(0, 8 * UNIT);
    assert.deepEqual(await readCacheFile(blob, 0, 8 * UNIT), content);
    await cache.close();
    assert.deepEqual(await checkBlob(realFileSystem, dir), []);
  });
}

void test("a range map that is seen is made durable before it is believed: its writer may have been killed too early", async (t) => {
  const { dataDir, dir, id } = await prepare(t);
  let synced = false;
  const fs = withCalls({
    syncDirectory: async (path) => {
      await realFileSystem.syncDirectory(path);
      synced ||= path === dir;
    },
  });
  const { cache } = await openCache(t, { dataDir, fs });
  const blob = await cache.open(id);
  assert.equal(blob.isDurable(0, UNIT), true);
  assert.equal(synced, true);
});

void test("repair says what an unbelievable map costs, and puts it aside", async (t) => {
  const { dir, dataDir, id } = await prepare(t);
  const { cache } = await openCache(t, { dataDir });
  await (await cache.open(id)).pin(VOLUME);
  await cache.close();
  damages["a damaged map"].damage(dir);
  const [problem] = await checkBlob(realFileSystem, dir);
  assert.equal(problem.severity, "error", "a detached volume relies on it");
  assert.match(problem.repair!.loss ?? "", new RegExp(`fetched again from http://example.test/image.raw.*${VOLUME}`));
  await problem.repair!.run();
  assert.equal(existsSync(join(dir, "map")), false);
  const [left] = await checkBlob(realFileSystem, dir);
  assert.match(left.message, /no range map, but volumes aaa/);
});

void test("durability rule 11: a pin survives, is seen by everybody, and forbids removal until it is taken back", async (t) => {
  const { dataDir, dir, id } = await prepare(t);
  const first = await openCache(t, { dataDir });
  const blob = await first.cache.open(id);
  assert.equal(blob.isPinnedBy(VOLUME), false);
  await blob.pin(VOLUME);
  await blob.pin(VOLUME);
  assert.equal(existsSync(join(dir, "pins", VOLUME)), true);
  await first.cache.close();
  const second = await openCache(t, { dataDir });
  await assert.rejects(second.cache.remove(id), { code: "in-use" });
  const again = await second.cache.open(id);
  assert.equal(again.isPinnedBy(VOLUME), true);
  await again.unpin(VOLUME);
  assert.equal(again.isPinnedBy(VOLUME), false);
  await second.cache.release(id);
  await second.cache.remove(id);
  assert.equal(existsSync(dir), false);
});

void test("durability rule 11: a pin whose directory could not be synced is none, and can be made again", async (t) => {
  let broken = true;
  const fs = withCalls({
    syncDirectory: (path) =>
      broken && path.endsWith("pins")
        ? Promise.reject(new IoError("EIO", "sync failed"))
        : realFileSystem.syncDirectory(path),
  });
  const { blob } = await openBlob(t, new MemoryReader(randomContent(UNIT)), { fs });
  await assert.rejects(blob.pin(VOLUME), /sync failed/);
  assert.equal(blob.isPinnedBy(VOLUME), false);
  broken = false;
  await blob.pin(VOLUME);
  assert.equal(blob.isPinnedBy(VOLUME), true);
});

void test("a full file system fails that fetch alone, and fetches work again when there is space", async (t) => {
  const dataDir = mount(t, "tmpfs", ["-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
  if (dataDir === undefined) return;
  const reader = new MemoryReader(randomContent(128 * UNIT));
  const { blob } = await openBlob(t, reader, { dataDir });
  await blob.fetch(0, 8 * UNIT);
  writeFileSync(join(dataDir, "filler"), Buffer.alloc(2 * 1024 * KiB));
  await assert.rejects(blob.fetch(8 * UNIT, 64 * UNIT), { errno: "ENOSPC" });
  assert.equal(blob.readyBytes, 8 * UNIT);
  assert.deepEqual(await readCacheFile(blob, 0, 8 * UNIT), reader.content.subarray(0, 8 * UNIT));
  rmSync(join(dataDir, "filler"));
  await blob.fetch(8 * UNIT, 8 * UNIT);
  assert.deepEqual(await readCacheFile(blob, 0, 16 * UNIT), reader.content.subarray(0, 16 * UNIT));
  await blob.sync();
});

void test("after kill -9 in mid-fill everything that is ready has the source's bytes, and filling goes on", async (t) => {
  const reader = new MemoryReader(patternContent(64 * 1024 * KiB));
  const { cache, dataDir } = await openCache(t);
  const { id } = await cache.create(testObject(reader.size));
  await cache.close();
  let readyBefore = 0;
  for (let round = 0; round < 3; round++) {
    const child = spawn(process.execPath, [join(import.meta.dirname, "fill-child.ts"), dataDir, id], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    t.after(() => child.kill("SIGKILL"));
    await new Promise<void>((resolve) =>
      child.stdout.on("data", (text: Buffer) => text.includes("durable") && resolve()),
    );
    child.kill("SIGKILL");
    await new Promise((resolve) => child.once("exit", resolve));
    const opened = await openCache(t, { dataDir });
    assert.deepEqual(opened.log, []);
    const blob = await opened.cache.open(id);
    assert.ok(blob.readyBytes > readyBefore, "what was durable before the kill is there");
    readyBefore = blob.readyBytes;
    for (let at = 0; at < blob.size;) {
      const run = Math.min(blob.readyRun(at, blob.size), blob.size - at);
      if (blob.isReady(at, run))
        assert.ok((await readCacheFile(blob, at, run)).equals(reader.content.subarray(at, at + run)));
      at += run;
    }
    await opened.cache.close();
  }
});

/** What fill-child.ts fills from: every 8 bytes are their own offset. */
function patternContent(length: number): Buffer {
  const content = Buffer.alloc(length);
  for (let at = 0; at < length; at += 8) content.writeDoubleLE(at + 1, at);
  return content;
}
