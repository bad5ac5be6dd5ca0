import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { newId, temporaryDirectory } from "../support/volume-env.ts";
import { CrashWorld } from "./crash-world.ts";
import { ProcessDied } from "./engine-client.ts";

/** How often a process is killed in each test; more for a soak. */
const rounds = Number(process.env["ULLAGE_CRASH_ROUNDS"] ?? 20);
const seed = Number(process.env["ULLAGE_SEED"] ?? Date.now() % 1_000_000);

async function newWorld(t: TestContext, imageBytes: number): Promise<CrashWorld> {
  const dir = temporaryDirectory(t);
  const [dataDir, runtimeDir] = [join(dir, "data"), join(dir, "run")];
  mkdirSync(dataDir);
  mkdirSync(runtimeDir);
  const world = new CrashWorld(t, seed, {
    dataDir,
    runtimeDir,
    id: newId(),
    size: 16 * 1024 * 1024 + 1536,
    imageBytes,
    // Small, so that checkpoints, slices and syncs happen all the time.
    limits: {
      logReserveBytes: 4096,
      logExtendBytes: 4096,
      checkpointLogBytes: 6000,
      sliceChunks: 1,
      dirtyBytes: 400_000,
    },
  });
  await world.create();
  return world;
}

/** Kills, starts and checks, again and again. */
async function lives(world: CrashWorld): Promise<void> {
  const { random, oracle } = world;
  for (let round = 1; round <= rounds; round++) {
    const client = world.start();
    try {
      if (random.chance(0.25)) {
        // While it starts: somewhere between the first line of its code and the first request.
        await Promise.race([client.started(), sleep(random.between(40, 400))]);
        await sleep(random.below(20));
        await client.kill();
        oracle.crash("nothing");
        continue;
      }
      assert.equal(await world.serving(client), "ok", "nothing was lost, so nobody is refused");
      await world.verify(client);
      const working = world.work(client, random.between(1, 8), random.between(20, 400));
      if (random.chance(0.7)) await Promise.race([working, sleep(random.below(150))]);
      else await working;
      await client.kill();
      await working;
      oracle.crash("nothing");
    } catch (error) {
      throw new Error(`seed ${seed}, round ${round}`, { cause: error });
    }
  }
  const last = world.start();
  await world.serving(last);
  await world.verify(last);
  await last.ask("close");
  await last.leave();
  const closed = world.start();
  await world.serving(closed);
  await world.verify(closed);
  await closed.kill();
}

void test("kill -9 at any moment loses no answered write; what was not answered is old or new", async (t) => {
  await lives(await newWorld(t, 0));
});

void test("the same on a volume that is filled from an image while it is used and killed", async (t) => {
  await lives(await newWorld(t, 9 * 1024 * 1024 + 777));
});

void test("a process that was killed lets go of the volume; one that lives does not", async (t) => {
  const world = await newWorld(t, 0);
  const first = world.start();
  await world.serving(first);
  const second = world.start();
  const refused = await second.started();
  assert.equal(refused.kind === "refused" && refused.code, "locked");
  await second.leave();
  await first.kill();
  await assert.rejects(first.ask("flush"), ProcessDied);
  const third = world.start();
  await world.serving(third);
  await third.kill();
});
