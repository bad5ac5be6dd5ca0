import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { UllageError } from "../../src/base/errors.ts";
import { BlobCache } from "../../src/blob/cache.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import { Random } from "../sim/random.ts";
import { SimDisk, type SimDiskOptions } from "../sim/sim-disk.ts";
import { SimScheduler } from "../sim/sim-scheduler.ts";

/*
 * The blob cache on a simulated disk. In each life of a process some clients fetch, read, sync and pin at once, until
 * it is killed or the machine loses power in the middle of any call; then the next life begins. At all times: what is
 * ready before and after a read has the source's bytes; what was durable once is ready in every later life; a pin that
 * was made is there. In some worlds ranges are evicted, and then nothing that was durable need stay. In others the object is
 * pinned by its digest and its source sends wrong bytes at times: what was verified once is right, and stays verified.
 * ULLAGE_SEEDS sets how many worlds are tried, ULLAGE_SEED tries one.
 */

const UNIT = 4096;
const SIZE = 29 * UNIT + 777;
const OBJECT = {
  url: "sim://object",
  imageFormat: "raw",
  identity: { size: SIZE, version: 'etag:"1"', strong: true },
  size: SIZE,
  unitBytes: UNIT,
};

interface World {
  scheduler: SimScheduler;
  disk: SimDisk;
  random: Random;
  content: Buffer;
  /** What was seen to be durable or done, in any life. */
  id: string | undefined;
  durable: Set<number>;
  pins: Set<string>;
  kind: "plain" | "evicting" | "digest";
  verified: boolean;
}

function identityOf({ kind, content }: World) {
  const digest = createHash("sha256").update(content).digest("hex");
  return kind === "digest" ? { ...OBJECT.identity, version: `digest:sha256:${digest}` } : OBJECT.identity;
}

function makeWorld(seed: number): World {
  const scheduler = new SimScheduler(seed);
  const random = new Random(seed + 1_000_003);
  const profile: Partial<SimDiskOptions> = random.pick([
    {},
    { staleExtents: true },
    { syncErrors: 0.1, faulty: (path) => path.endsWith("data") },
    { writeErrors: 0.05, syncErrors: 0.05, metadataErrors: 0.03 },
    { punches: false },
  ]);
  const disk = new SimDisk(scheduler, { fileSystem: "ext4", ...profile });
  const content = random.bytes(SIZE);
  for (let unit = 0; unit < 30; unit += 7) content.fill(0, unit * UNIT, (unit + 1) * UNIT);

  const kind = random.pick(["plain", "plain", "evicting", "digest"] as const);
  const durable = new Set<number>();
  return { scheduler, disk, random, content, id: undefined, durable, pins: new Set(), kind, verified: false };
}

/** A source that answers late, in pieces, and sometimes delivers junk and then says so. */
function openSource(world: World) {
  const { random, scheduler } = world;
  return Promise.resolve({
    size: SIZE,
    async read(offset: number, length: number, sink: (chunk: Uint8Array) => void | Promise<void>): Promise<void> {
      const bad = random.chance(0.1);
      const lies = world.kind === "digest" && random.chance(0.03);
      for (let at = offset; at < offset + length; at += 3000) {
        await scheduler.pause("source");
        const end = Math.min(at + 3000, offset + length);
        await sink(bad || lies ? random.bytes(end - at) : world.content.subarray(at, end));
      }
      if (bad) throw new Error("the object changed under the read");
    },
  });
}

async function openCache(world: World): Promise<BlobCache> {
  const cache = await BlobCache.open({
    fs: world.disk.start(),
    clock: world.scheduler.clock,
    dataDir: "/",
    randomBytes: (length) => world.random.bytes(length),
    log: () => undefined,
    openSource: () => openSource(world),
    startHash: (algorithm) => {
      const hash = createHash(algorithm);
      return {
        update: (bytes) => Promise.resolve(void hash.update(bytes)),
        digest: () => Promise.resolve(hash.digest("hex")),
        close: () => Promise.resolve(),
      };
    },
  });
  if (world.kind === "evicting") cache.setNeeds({ needed: () => new Map() });
  return cache;
}

function checkLife(world: World, blob: CachedBlob): void {
  for (const unit of world.durable)
    assert.ok(blob.isReady(unit * UNIT, 1), `unit ${unit} was durable and is not ready`);
  for (const pin of world.pins) assert.ok(blob.isPinnedBy(pin), `pin ${pin} is gone`);
  if (world.verified) assert.equal(blob.check?.state, "verified");
}

/** Reads as a volume does: asks for readiness before and after. */
async function readAndCompare(world: World, blob: CachedBlob, unit: number): Promise<void> {
  const offset = unit * UNIT;
  if (!blob.isReady(offset, UNIT) || (blob.check !== undefined && blob.check.state !== "verified")) return;
  const { losses } = blob;
  const buffer = new IoBuffer(UNIT);
  await blob.file.read(buffer, 0, UNIT, offset);
  if (!blob.isReady(offset, UNIT) || blob.losses !== losses) return;
  const expected = Buffer.alloc(UNIT);
  world.content.copy(expected, 0, offset, Math.min(SIZE, offset + UNIT));
  assert.ok(buffer.bytes.equals(expected), `unit ${unit} is ready and has other bytes`);
}

async function oneStep(world: World, blob: CachedBlob): Promise<void> {
  const { random } = world;
  const unit = random.below(30);
  const dice = random.below(20);
  if (dice < 9) {
    await blob.fetch(unit * UNIT, random.between(1, 6 * UNIT), { background: random.chance(0.5) });
    await readAndCompare(world, blob, unit);
  } else if (dice < 11 && world.kind === "evicting") await blob.evict(random.between(1, 8) * UNIT);
  else if (dice < 12 && blob.check !== undefined) {
    await blob.fetch(0, SIZE);
    if (await blob.check.run()) world.verified = true;
  } else if (dice < 15) await readAndCompare(world, blob, unit);
  else if (dice < 18) await blob.sync();
  else if (dice === 18 && world.kind === "plain") {
    const pin = `volume${random.below(3)}`;
    await blob.pin(pin);
    world.pins.add(pin);
  } else blob.noteRead(unit * UNIT, UNIT);
  if (world.kind !== "plain") return;
  for (let n = 0; n < 30; n++) if (blob.isDurable(n * UNIT, UNIT)) world.durable.add(n);
}

/** Errors of the source and of the disk are part of the game; a failed assertion is not. */
async function client(world: World, blob: CachedBlob, failures: unknown[]): Promise<void> {
  for (let step = 0; step < 12; step++) {
    try {
      await oneStep(world, blob);
    } catch (error) {
      if (error instanceof assert.AssertionError) failures.push(error);
    }
  }
}

async function live(world: World, failures: unknown[]): Promise<void> {
  const cache = await openCache(world);
  if (world.id !== undefined) {
    assert.ok(
      cache.list().some(({ id }) => id === world.id),
      "the blob is gone",
    );
  }
  const blob =
    world.id === undefined
      ? await cache.create({ ...OBJECT, identity: identityOf(world) })
      : await cache.open(world.id);
  world.id = blob.id;
  checkLife(world, blob);
  await Promise.all(Array.from({ length: 3 }, () => client(world, blob, failures)));
  await cache.close();
}

async function runSeed(seed: number): Promise<void> {
  const world = makeWorld(seed);
  const { disk, random, scheduler } = world;
  for (let life = 0; life < 4; life++) {
    if (random.chance(0.8)) disk.crashAfter(random.below(life === 0 ? 400 : 250));
    const failures: unknown[] = [];
    try {
      const living = live(world, failures);
      living.catch(() => undefined);
      if ((await scheduler.run(living)) === "settled") await living;
    } catch (error) {
      // A faulty disk may keep a cache from being opened; wrong data is never an answer.
      if (!(error instanceof UllageError)) throw error;
    }
    if (failures.length > 0) throw failures[0];
    if (random.chance(0.4)) disk.kill();
    else if (random.chance(0.8)) disk.powerCut();
    else disk.remount();
  }
}

void test("whatever happens, what is ready has the source's bytes, and what was durable stays (durability rule 12)", async () => {
  const only = process.env["ULLAGE_SEED"];
  const count = only === undefined ? Number(process.env["ULLAGE_SEEDS"] ?? 1000) : 1;
  for (let n = 0; n < count; n++) {
    const seed = only === undefined ? n : Number(only);
    try {
      await runSeed(seed);
    } catch (error) {
      throw new Error(`seed ${seed} (ULLAGE_SEED=${seed} replays it)`, { cause: error });
    }
  }
});
