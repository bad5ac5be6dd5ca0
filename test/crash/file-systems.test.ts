import assert from "node:assert/strict";
import { closeSync, existsSync, mkdirSync, openSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import koffi from "koffi";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { readLogHeader } from "../../src/volume/log/log-reader.ts";
import { runtimePoisonPath } from "../../src/volume/paths.ts";
import { LoopDisk } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { newestLog, newId, pretendPowerCut, temporaryDirectory, volumeEnvironment } from "../support/volume-env.ts";
import { CrashWorld } from "./crash-world.ts";

/*
 * Real file systems that lose what they had not written: a shutdown without a log flush drops the journal's running
 * transaction and every dirty page, as a power cut does, but the machine lives on and its boot id stays the same. So a
 * start sees another mount ("records count where there is data"), or, with another boot id in the logs' headers, a power
 * cut ("records count up to the last commit").
 */

const rounds = Number(process.env["ULLAGE_CRASH_ROUNDS"] ?? 6);
const seed = Number(process.env["ULLAGE_SEED"] ?? Date.now() % 1_000_000);
const diskBytes = 384 * 1024 * 1024;

const ioctl = koffi.load("libc.so.6").func("int ioctl(int, unsigned long, void *)");

/** EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same call; 2: without flushing the log. */
function cutPower(dir: string): void {
  const fd = openSync(dir, "r");
  try {
    const flags = Buffer.alloc(4);
    flags.writeUInt32LE(2);
    if (ioctl(fd, 0x8004587d, flags) !== 0) throw new Error(`shutdown of ${dir}: errno ${koffi.errno()}`);
  } finally {
    closeSync(fd);
  }
}

interface Rig {
  disk: LoopDisk;
  world: CrashWorld;
  runtimeDir: string;
  id: string;
  env: ReturnType<typeof volumeEnvironment>;
}

async function newRig(t: TestContext, kind: "ext4" | "xfs", imageBytes: number): Promise<Rig> {
  const disk = new LoopDisk(t, kind, diskBytes);
  const dataDir = join(disk.dir, "data");
  mkdirSync(dataDir);
  const id = newId();
  const runtimeDir = temporaryDirectory(t);
  const env = volumeEnvironment(t, { dataDir });
  const world = new CrashWorld(t, seed, {
    dataDir,
    runtimeDir,
    id,
    size: 12 * 1024 * 1024 + 512,
    imageBytes,
    limits: {
      logReserveBytes: 4096,
      logExtendBytes: 4096,
      checkpointLogBytes: 12_000,
      sliceChunks: 1,
      dirtyBytes: 600_000,
    },
  });
  await world.create();
  return { disk, world, runtimeDir, id, env };
}

async function cutsInMidLoad(
  t: TestContext,
  kind: "ext4" | "xfs",
  imageBytes: number,
  rebooted: boolean,
): Promise<void> {
  if (!requireTool(t, "root", "loop", "losetup", "mount", `mkfs.${kind}`)) return;
  const { disk, world, id, env } = await newRig(t, kind, imageBytes);
  for (let round = 1; round <= rounds; round++) {
    const client = world.start();
    try {
      const state = await world.serving(client);
      if (rebooted) assert.equal(state, "ok", "there were no remote writers");
      await world.verify(client);
      const working = world.work(client, world.random.between(2, 8), 5000);
      await sleep(world.random.between(20, 300));
      // The process must not see the errors that follow: it is as dead as the power.
      await client.kill("SIGSTOP");
      cutPower(disk.dir);
      await client.kill();
      await working;
      world.oracle.crash("unflushed");
      disk.unmount();
      disk.mount();
      if (rebooted) pretendPowerCut(env, id);
      else await isAnotherMountOfTheSameBoot(env, id);
    } catch (error) {
      throw new Error(`seed ${seed}, round ${round}`, { cause: error });
    }
  }
  const last = world.start();
  await world.serving(last);
  await world.verify(last);
  await last.ask("close");
  await last.leave();
}

async function isAnotherMountOfTheSameBoot(env: Rig["env"], id: string): Promise<void> {
  const file = await realFileSystem.open(newestLog(env, id), "read");
  try {
    const now = file.binding();
    const { binding } = await readLogHeader(file).catch(() => ({ binding: undefined }));
    if (binding === undefined) return; // it was being created
    assert.deepEqual({ ...binding, mountId: now.mountId }, now);
    assert.notEqual(binding.mountId, now.mountId);
  } finally {
    await file.close();
  }
}

for (const kind of ["ext4", "xfs"] as const) {
  void test(`rule 7: ${kind} loses its page cache in mid-load, same boot: every sector is as of the last flush or later, every start succeeds`, (t) =>
    cutsInMidLoad(t, kind, 0, false));

  void test(`rules 1 and 7: ${kind} loses power in mid-load: every sector is as of the last flush or later, every start succeeds`, (t) =>
    cutsInMidLoad(t, kind, 5 * 1024 * 1024 + 300, true));

  void test(`rule 6: a process that sees ${kind} go down in mid-load is refused until the loss is accepted, and then has its last flush`, async (t) => {
    if (!requireTool(t, "root", "loop", "losetup", "mount", `mkfs.${kind}`)) return;
    const { disk, world, runtimeDir, id } = await newRig(t, kind, 0);
    for (let round = 1; round <= 2; round++) {
      const client = world.start();
      await world.serving(client);
      await world.verify(client);
      const working = world.work(client, 4, 5000).catch(() => undefined); // until it meets EIO
      await sleep(world.random.between(20, 300));
      cutPower(disk.dir);
      await working;
      await world.write(client, 0, 4096).catch(() => undefined); // so that there is something to sync
      await assert.rejects(world.flush(client), /EIO/);
      while (!existsSync(runtimePoisonPath(runtimeDir, id))) await sleep(5); // the data disk takes no mark
      await client.kill();
      world.oracle.crash("unflushed");
      disk.unmount();
      disk.mount();
      const refused = world.start();
      const said = await refused.started();
      assert.equal(said.kind === "refused" && said.code, "poisoned");
      await refused.leave();
      const accepted = world.start({ acceptLoss: true });
      assert.equal(await world.serving(accepted), "ok");
      await world.verify(accepted);
      await accepted.kill();
    }
  });
}
