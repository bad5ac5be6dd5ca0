import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statfsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { gzipSync } from "node:zlib";
import type { Ullage } from "../../src/daemon/ullage.ts";
import type { SourceRequest } from "../../src/daemon/views.ts";
import { startHttpSource } from "../support/http-source.ts";
import { LoopDisk } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { atEnd, openUllage, temporaryDirectory } from "./support.ts";

/* What is fetched as a whole, to be unpacked or because its server has no ranges, where there is little space for it. */

const MiB = 2 ** 20;

/** A small disk with a data directory, and what it has on disk now. */
async function smallDisk(t: TestContext, bytes: number, reserve: number, capacityBytes: number | null = null) {
  const disk = new LoopDisk(t, "ext4", bytes);
  const dataDir = join(disk.dir, "data");
  const ullage = await openUllage(t, { dataDir, cacheLimits: { capacityBytes, reserve } });
  const free = (): number => {
    const { bavail, bsize } = statfsSync(disk.dir);
    return bavail * bsize;
  };
  const blobs = (): string[] => readdirSync(join(dataDir, "blobs"));
  return { ullage, dataDir, free, total: statfsSync(disk.dir).blocks * statfsSync(disk.dir).bsize, blobs };
}

/** The least that was free, and the most that the cache had, while `work` ran. */
async function watched<T>(ullage: Ullage, free: () => number, work: Promise<T>) {
  let [leastFree, mostCached] = [Infinity, 0];
  const look = (): void => {
    leastFree = Math.min(leastFree, free());
    mostCached = Math.max(mostCached, ullage.cache.view().diskBytes);
  };
  const timer = setInterval(look, 2);
  const outcome = await work.then(
    (value) => ({ value, error: undefined }),
    (error: unknown) => ({ value: undefined, error: error as Error & { code: string; hint?: string } }),
  );
  clearInterval(timer);
  look();
  return { ...outcome, leastFree, mostCached };
}

interface Fetched {
  what: string;
  /** Of 60 MiB on disk. @returns the source */
  source(t: TestContext, disk: Buffer): Promise<{ source: string; download?: boolean }>;
}

const kinds: Fetched[] = [
  {
    what: "a gzip",
    source: async (t, disk) => {
      const path = join(await temporaryDirectory(t), "disk.gz");
      writeFileSync(path, gzipSync(disk, { level: 0 }));
      return { source: path };
    },
  },
  {
    what: "a raw image on a server without ranges",
    source: async (t, disk) => {
      const server = await startHttpSource({ content: disk });
      atEnd(t, () => server.close());
      server.onRequest = () => ({ kind: "ignore-range" });
      return { source: server.url, download: true };
    },
  },
];

for (const { what, ...kind } of kinds) {
  void test(`${what} that does not fit leaves the reserve of the disk alone, is refused, leaves nothing, and comes when there is room`, async (t) => {
    if (!requireTool(t, "loop", "losetup", "mount", "mkfs.ext4")) return;
    const disk = randomBytes(60 * MiB);
    const from = await kind.source(t, disk);
    const { ullage, dataDir, free, total, blobs } = await smallDisk(t, 128 * MiB, 0.6);
    const before = free();
    const made = ullage.createVolume({ name: "a", from });
    const { error, leastFree } = await watched(ullage, free, made);
    assert.equal(error?.code, "io-enospc");
    assert.match(error.message, /the cache's file system has \d+ bytes left, and \d+ are to be left alone/);
    assert.ok(leastFree >= total * 0.6 - 2 * MiB, `${leastFree} of ${total} were free`);
    assert.deepEqual([await ullage.listVolumes(), blobs()], [[], []]);
    assert.ok(free() >= before - 8 * MiB, `${before - free()} bytes were left behind`);
    await ullage.cache.setLimits({ reserve: 0.05 });
    await ullage.createVolume({ name: "a", from });
    const data = readFileSync(join(dataDir, "blobs", blobs()[0], "data"));
    assert.ok(data.equals(disk));
  });

  void test(`${what} that is more than the cache may have is refused, leaves nothing, and throws out what nobody needs`, async (t) => {
    const disk = randomBytes(60 * MiB);
    const from = await kind.source(t, disk);
    const dir = await temporaryDirectory(t);
    const dataDir = join(dir, "data");
    const small = join(dir, "small.gz");
    writeFileSync(small, gzipSync(randomBytes(4 * MiB)));
    const ullage = await openUllage(t, { dataDir, cacheLimits: { capacityBytes: 24 * MiB, reserve: 0 } });
    await ullage.createVolume({ name: "before", from: { source: small } });
    await ullage.removeVolume("before");
    assert.equal(readdirSync(join(dataDir, "blobs")).length, 1, "it stays for the next one");
    const { error, mostCached } = await watched(ullage, () => 0, ullage.createVolume({ name: "a", from }));
    assert.equal(error?.code, "io-enospc");
    assert.match(error.message, /as many bytes as its capacity allows/);
    assert.match(error.hint!, /cache limit/);
    assert.ok(mostCached > 20 * MiB && mostCached <= 24 * MiB, `the cache had ${mostCached} bytes`);
    assert.deepEqual([await ullage.listVolumes(), readdirSync(join(dataDir, "blobs"))], [[], []]);
    assert.equal(ullage.cache.view().diskBytes, 0);
    await ullage.cache.setLimits({ capacityBytes: null });
    await ullage.createVolume({ name: "a", from });
    assert.ok(existsSync(join(dataDir, "blobs", readdirSync(join(dataDir, "blobs"))[0], "data")));
  });
}

void test("a pull from a server without ranges that does not fit leaves nothing, not even an empty image", async (t) => {
  await using server = await startHttpSource({ content: randomBytes(60 * MiB) });
  server.onRequest = () => ({ kind: "ignore-range" });
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir, cacheLimits: { capacityBytes: 24 * MiB, reserve: 0 } });
  const message = await pulled(ullage, { source: server.url, download: true });
  assert.match(message, /as many bytes as its capacity allows/);
  assert.deepEqual([await ullage.listImages(), readdirSync(join(dataDir, "blobs"))], [[], []]);
});

/** @returns how it ended */
async function pulled(ullage: Ullage, request: SourceRequest): Promise<string> {
  const { id } = await ullage.cache.pull(request, false);
  for (;;) {
    const { state, error } = ullage.jobs.get(id);
    if (state !== "running") return error?.message ?? state;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

void test("a pull asks for room for what it has under way: the cache does not get more than its capacity", async (t) => {
  const disk = randomBytes(60 * MiB);
  await using server = await startHttpSource({ content: disk, latencyMs: 5 });
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir, cacheLimits: { capacityBytes: 24 * MiB, reserve: 0 } });
  const { value, mostCached } = await watched(ullage, () => 0, pulled(ullage, { source: server.url }));
  assert.match(value!, /as many bytes as its capacity allows/);
  assert.ok(mostCached > 22 * MiB && mostCached <= 25 * MiB, `the cache had ${mostCached} bytes`);
});
