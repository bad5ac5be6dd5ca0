import assert from "node:assert/strict";
import { test } from "node:test";
import { UllageError } from "../../src/base/errors.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { BlobCache } from "../../src/blob/cache.ts";
import { Hydration } from "../../src/volume/hydration/hydration.ts";
import type { HydrationTarget } from "../../src/volume/hydration/hydration-scan.ts";
import { HydrationSlots } from "../../src/volume/hydration/hydration-slots.ts";
import { Random } from "../sim/random.ts";
import { SimDisk, type SimDiskOptions } from "../sim/sim-disk.ts";
import { SimScheduler } from "../sim/sim-scheduler.ts";

/*
 * Hydration of a volume whose guest overwrites more and more of it, on a simulated disk, killed or cut off at any call.
 * What the guest overwrote but did not flush is needed again after a power cut. Once `detached` was reported, the
 * source is gone for good: everything that the volume needs in any later life must be there (durability rule 11).
 */

const UNIT = 4096;
const UNITS = 24;
const SIZE = UNITS * UNIT;
const VOLUME = "c".repeat(32);

class GuestVolume implements HydrationTarget {
  readonly id = VOLUME;
  readonly #world: World;
  readonly #blob: Blob;
  /** Units that the map in memory takes from the blob. */
  readonly needed: Set<number>;

  constructor(world: World, blob: Blob) {
    this.#world = world;
    this.#blob = blob;
    this.needed = new Set(world.durablyNeeded);
  }

  blobs(): Blob[] {
    return [this.#blob];
  }

  neededRun(_blob: Blob, from: number): { offset: number; length: number } | undefined {
    for (let unit = Math.floor(from / UNIT); unit < UNITS; unit++) {
      if (this.needed.has(unit)) return { offset: Math.max(from, unit * UNIT), length: UNIT };
    }
    return undefined;
  }

  async flush(): Promise<void> {
    const cut = new Set(this.needed);
    await this.#world.scheduler.pause("flush");
    this.#world.durablyNeeded = cut;
  }
}

interface World {
  scheduler: SimScheduler;
  disk: SimDisk;
  random: Random;
  id: string | undefined;
  durablyNeeded: Set<number>;
  /** What the map in memory needed when the process was killed: it survives that. */
  volume: GuestVolume | undefined;
  detached: boolean;
}

function makeWorld(seed: number): World {
  const scheduler = new SimScheduler(seed);
  const random = new Random(seed + 77_777);
  const profile: Partial<SimDiskOptions> = random.pick([
    {},
    { syncErrors: 0.15, faulty: (path) => path.endsWith("data") },
    { writeErrors: 0.03, metadataErrors: 0.03, syncErrors: 0.03 },
  ]);
  const disk = new SimDisk(scheduler, profile);
  const durablyNeeded = new Set(Array.from({ length: UNITS }, (_, unit) => unit));
  return { scheduler, disk, random, id: undefined, durablyNeeded, volume: undefined, detached: false };
}

async function live(world: World): Promise<void> {
  const { scheduler, random } = world;
  const { clock } = scheduler;
  const fs = world.disk.start();
  const cache = await BlobCache.open({
    fs,
    clock,
    dataDir: "/",
    randomBytes: (length) => random.bytes(length),
    log: () => undefined,
    openSource: () =>
      Promise.resolve({
        size: SIZE,
        async read(_offset, length, sink) {
          await scheduler.pause("source");
          if (world.detached || random.chance(0.1)) throw new Error("the source is gone");
          await sink(Buffer.alloc(length, 1));
        },
      }),
  });
  const identity = { size: SIZE, version: "1", strong: true };
  const blob =
    world.id === undefined
      ? await cache.create({ url: "sim://object", imageFormat: "raw", identity, size: SIZE, unitBytes: UNIT })
      : await cache.open(world.id);
  world.id = blob.id;
  const volume = new GuestVolume(world, blob);
  world.volume = volume;
  if (world.detached) {
    assert.ok(blob.isPinnedBy(VOLUME), "detached was reported, and the pin is gone");
    for (const unit of volume.needed)
      assert.ok(blob.isReady(unit * UNIT, UNIT), `unit ${unit} is gone with its source`);
  }
  const space = () => Promise.resolve({ free: 1, total: 1, room: Infinity });
  const hydration = await Hydration.open(volume, { clock, slots: new HydrationSlots(), space, log: () => undefined });
  hydration.onChange(({ state }) => (world.detached ||= state === "detached"));
  hydration.start();
  await Promise.all([hydration.wait(), guest(world, volume), somebodyElse(world, blob)]);
  await hydration.close();
  await cache.close();
}

/** Overwrites units now and then, and seldom flushes. */
async function guest({ scheduler, random }: World, volume: GuestVolume): Promise<void> {
  for (let n = 0; n < 40; n++) {
    await scheduler.pause("guest");
    if (random.chance(0.15)) volume.needed.delete(random.below(UNITS));
    if (random.chance(0.03)) await volume.flush();
  }
}

/** Another volume on the same blob, whose syncs may fail. */
async function somebodyElse({ scheduler, random }: World, blob: Blob): Promise<void> {
  for (let n = 0; n < 10; n++) {
    await scheduler.pause("somebody else");
    await (random.chance(0.5) ? blob.sync() : blob.fetch(random.below(UNITS) * UNIT, UNIT)).catch(() => undefined);
  }
}

/** @returns whether the volume was detached in the end */
async function runSeed(seed: number): Promise<boolean> {
  const world = makeWorld(seed);
  const { disk, random, scheduler } = world;
  for (let life = 0; life < 5; life++) {
    if (life < 4) disk.crashAfter(random.below(250));
    try {
      const living = live(world);
      living.catch(() => undefined);
      if ((await scheduler.run(living)) === "settled") await living;
    } catch (error) {
      if (!(error instanceof UllageError)) throw error;
    }
    if (random.chance(0.3)) {
      if (world.volume !== undefined) world.durablyNeeded = new Set(world.volume.needed);
      disk.kill();
    } else disk.powerCut();
  }
  return world.detached;
}

void test("durability rule 11: once detached was reported, no crash makes the volume need its source again", async () => {
  const only = process.env["ULLAGE_SEED"];
  const count = only === undefined ? Number(process.env["ULLAGE_SEEDS"] ?? 400) : 1;
  let detached = 0;
  for (let n = 0; n < count; n++) {
    const seed = only === undefined ? n : Number(only);
    try {
      if (await runSeed(seed)) detached++;
    } catch (error) {
      throw new Error(`seed ${seed} (ULLAGE_SEED=${seed} replays it)`, { cause: error });
    }
  }
  if (only === undefined) assert.ok(detached > count / 2, `only ${detached} of ${count} worlds got as far as detached`);
});
