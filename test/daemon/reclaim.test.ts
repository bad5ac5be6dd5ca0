import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import type { BlockDevice } from "../../src/export/block-device.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { Gate, interposedFileSystem, type Interposer } from "./interposed-file-system.ts";
import { demandNothingUseless, uselessBlocks } from "./layer-inspection.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const block = 4096;
const root = join(import.meta.dirname, "../..");

async function put(device: BlockDevice, at: number, count: number, value: number): Promise<void> {
  await device.write(at * block, count * block, IoBuffer.from(Buffer.alloc(count * block, value)), 0);
}

async function get(device: BlockDevice, at: number): Promise<number> {
  const buffer = new IoBuffer(block);
  await device.read(at * block, block, buffer, 0);
  assert.ok(buffer.bytes.every((byte) => byte === buffer.bytes[0]));
  return buffer.bytes[0];
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let turn = 0; turn < 3000; turn++) {
    if (condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.fail(`never: ${what}`);
}

/**
 * 64 blocks of 1 in a layer that `web@s` and, for its first 16 blocks, the volume `web` refer to.
 * @returns where it is
 */
async function prepared(ullage: Ullage): Promise<BlockDevice> {
  await ullage.createVolume({ name: "web", size: 1 << 20 });
  const web = await ullage.getDevice("web");
  await put(web, 0, 64, 1);
  await ullage.createSnapshot("web", "s");
  await put(web, 16, 48, 2);
  return web;
}

void test("blocks that only a removed snapshot needed are freed inside the layer that others need, and nothing else", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  const web = await prepared(ullage);
  assert.deepEqual(await ullage.reclaim(), { reclaimedBytes: 0, layers: 1, leftAlone: 0, reasons: [] });
  await ullage.removeSnapshot("web", "s");
  const [[layer, useless]] = [...(await uselessBlocks(ullage, dataDir))];
  assert.deepEqual(
    useless,
    Array.from({ length: 48 }, (_, index) => index + 16),
  );
  assert.deepEqual(await ullage.reclaim(), { reclaimedBytes: 48 * block, layers: 1, leftAlone: 0, reasons: [] });
  await demandNothingUseless(ullage, dataDir);
  assert.equal((await stat(join(dataDir, "layers", layer))).mode & 0o777, 0o400);
  assert.deepEqual([await get(web, 0), await get(web, 15), await get(web, 16), await get(web, 63)], [1, 1, 2, 2]);
});

void test("after a removal it runs by itself", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  const told = (): { name: string; data: unknown }[] => ullage.events.read(ullage.events.first, 1000);
  await until("space-reclaimed", () => told().some(({ name }) => name === "space-reclaimed"));
  const { data } = told().find(({ name }) => name === "space-reclaimed")!;
  assert.deepEqual(data, { reclaimedBytes: 48 * block, layers: 1, leftAlone: 0, reasons: [] });
  await demandNothingUseless(ullage, dataDir);
});

void test("durability rule 4: a volume is flushed before anything that it gave up is freed", async (t) => {
  const steps: string[] = [];
  const fs = interposedFileSystem((what, path, proceed) => {
    if (what === "punch" && path.includes("/layers/")) steps.push("punch");
    if (what === "datasync" && path.includes("/intent.")) steps.push("commit");
    return proceed();
  });
  const ullage = await openUllage(t, { fs });
  const web = await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  await put(web, 0, 8, 3);
  steps.length = 0;
  const { reclaimedBytes } = await ullage.reclaim();
  assert.equal(reclaimedBytes, 56 * block);
  assert.deepEqual(steps.slice(0, 3), ["commit", "punch", "punch"]);
});

void test("durability rule 5: it waits for a read that had looked a block up, and for no later one", async (t) => {
  const gate = new Gate();
  let punches = 0;
  const hold: Interposer = async (what, path, proceed) => {
    if (what === "punch" && path.includes("/layers/")) punches++;
    if (what === "read" && path.includes("/layers/")) await gate.pass();
    return proceed();
  };
  const ullage = await openUllage(t, { fs: interposedFileSystem(hold, { coldReads: true }) });
  const web = await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  gate.close();
  const reading = get(web, 3);
  await until("the read waits", () => gate.waiting === 1);
  await put(web, 0, 8, 3); // the last reference to block 3 of the layer goes
  const reclaiming = ullage.reclaim();
  let later: Promise<number> | undefined;
  for (let turn = 0; turn < 50; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (turn === 30) later = get(web, 3);
  }
  assert.equal(punches, 0);
  gate.open();
  assert.equal(await reading, 1, "neither old nor new");
  assert.equal(await later, 3);
  assert.equal((await reclaiming).reclaimedBytes, 56 * block);
});

void test("a snapshot that is in no file yet keeps its blocks", async (t) => {
  const gate = new Gate();
  const hold: Interposer = async (what, path, proceed) => {
    if (what === "open create" && path.includes("/maps/")) await gate.pass();
    return proceed();
  };
  const ullage = await openUllage(t, { fs: interposedFileSystem(hold) });
  const web = await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  gate.close();
  await ullage.createSnapshot("web", "pending");
  await put(web, 0, 8, 4);
  await until("the frozen map waits", () => gate.waiting === 1);
  assert.equal((await ullage.reclaim()).reclaimedBytes, 48 * block); // of the layer below, as ever
  gate.open();
  const snapshot = await ullage.getSnapshotDevice("web", "pending");
  assert.deepEqual([await get(snapshot, 0), await get(snapshot, 15), await get(snapshot, 16)], [1, 1, 2]);
});

void test("volumes that are closed keep what they need: a clone that only names its base, and one with a map of its own", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await prepared(first);
  await first.createVolume({ name: "own", from: { snapshot: "web@s" } });
  await put(await first.getDevice("own"), 0, 4, 5);
  await first.createVolume({ name: "named", from: { snapshot: "web@s" } });
  await first.removeVolume("web", { snapshots: true });
  await first.close();
  const ullage = await openUllage(t, { dataDir });
  assert.equal((await ullage.reclaim()).reclaimedBytes, 0);
  assert.equal(ullage.stats().volumes.open, 0);
  const named = await ullage.getDevice("named");
  assert.deepEqual([await get(named, 0), await get(named, 63)], [1, 1]);
  await ullage.removeVolume("named");
  assert.equal((await ullage.reclaim()).reclaimedBytes, 4 * block);
  const own = await ullage.getDevice("own");
  assert.deepEqual([await get(own, 0), await get(own, 4), await get(own, 63)], [5, 1, 1]);
  await demandNothingUseless(ullage, dataDir);
});

void test("blocks whose last snapshot goes while a clone takes them over are not lost between the two", async (t) => {
  const release = Promise.withResolvers<void>();
  let state: "idle" | "armed" | "held" = "idle";
  const hold: Interposer = async (what, path, proceed) => {
    if (state === "armed" && what === "open read" && path.includes("/maps/")) {
      state = "held"; // the volumes have been looked at
      await release.promise;
    }
    return proceed();
  };
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir, fs: interposedFileSystem(hold) });
  await prepared(ullage);
  await (await ullage.getDevice("web")).flush();
  await (await ullage.getSnapshotDevice("web", "s")).flush(); // its frozen map is in its file
  state = "armed";
  const reclaiming = ullage.reclaim();
  await until("the frozen map is about to be read", () => state === "held");
  await ullage.createVolume({ name: "clone", from: { snapshot: "web@s" } });
  const clone = (await ullage.getDevice("clone")) as Volume;
  await clone.checkpoint(); // it names the frozen map no more
  await ullage.removeSnapshot("web", "s");
  assert.deepEqual(await readdir(join(dataDir, "maps")), []);
  release.resolve();
  assert.equal((await reclaiming).reclaimedBytes, 0);
  assert.deepEqual([await get(clone, 16), await get(clone, 63)], [1, 1]);
});

void test("a poisoned volume keeps all its layers, and it is said why", async (t) => {
  let fails = false;
  const fs = interposedFileSystem((what, path, proceed) => {
    if (fails && what === "datasync" && path.includes("/layers/")) throw new IoError("EIO", "injected");
    return proceed();
  });
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { fs, dataDir });
  const web = await prepared(ullage);
  await web.flush();
  await ullage.removeSnapshot("web", "s");
  await put(web, 0, 8, 3);
  fails = true;
  const { reclaimedBytes, leftAlone, reasons } = await ullage.reclaim();
  assert.deepEqual([reclaimedBytes, leftAlone, reasons.length], [0, 1, 1]);
  assert.match(reasons[0], /poisoned/);
  fails = false;
  await ullage.reopenVolume("web", true);
  // Back to the last flush: block 0 is the layer's again.
  assert.deepEqual([await get(await ullage.getDevice("web"), 0), await get(await ullage.getDevice("web"), 16)], [1, 2]);
  assert.equal((await ullage.reclaim()).reclaimedBytes, 48 * block);
});

void test("a file system that can't punch, and one that fails, free nothing and lose nothing", async (t) => {
  let answer: () => Promise<unknown> = () => Promise.resolve(false);
  const fs = interposedFileSystem((what, path, proceed) =>
    what === "punch" && path.includes("/layers/") ? answer() : proceed(),
  );
  const ullage = await openUllage(t, { fs });
  const web = await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  const cannot = await ullage.reclaim();
  assert.deepEqual([cannot.reclaimedBytes, cannot.leftAlone], [0, 1]);
  assert.match(cannot.reasons.join(), /can't free parts of files/);
  answer = () => Promise.reject(new IoError("ENOSPC", "injected ENOSPC"));
  const failed = await ullage.reclaim();
  assert.deepEqual([failed.reclaimedBytes, failed.leftAlone], [0, 1]);
  assert.match(failed.reasons.join(), /injected ENOSPC/);
  assert.deepEqual([await get(web, 0), await get(web, 63)], [1, 2]);
});

void test("what can't be read may need anything: nothing is freed", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  let damaged = "";
  const fs = interposedFileSystem((what, path, proceed) => {
    if (what === "open read" && path === damaged) throw new IoError("EIO", "injected EIO");
    return proceed();
  });
  const ullage = await openUllage(t, { dataDir, fs });
  await prepared(ullage);
  await ullage.createSnapshot("web", "other");
  await ullage.removeSnapshot("web", "s");
  const maps = (): Promise<string[]> => readdir(join(dataDir, "maps"));
  while (!(await maps()).some((name) => /^[0-9a-f]{32}$/.test(name))) await new Promise((next) => setTimeout(next, 10));
  damaged = join(dataDir, "maps", (await maps())[0]);
  await assert.rejects(ullage.reclaim(), /injected EIO/);
  assert.equal((await uselessBlocks(ullage, dataDir)).size, 1);
  damaged = "";
  assert.equal((await ullage.reclaim()).reclaimedBytes, 48 * block);
});

void test("it needs no root: a layer can be written to again only while it is opened", async (t) => {
  const opened: number[] = [];
  const fs = interposedFileSystem(async (what, path, proceed) => {
    const { mode } = await stat(path).catch(() => ({ mode: 0o600 }));
    if (what === "open write" && (mode & 0o200) === 0) throw new IoError("EACCES", `open ${path}: permission denied`);
    if (what === "punch" && path.includes("/layers/")) opened.push(mode & 0o777);
    return proceed();
  });
  const ullage = await openUllage(t, { fs });
  await prepared(ullage);
  await ullage.removeSnapshot("web", "s");
  assert.equal((await ullage.reclaim()).reclaimedBytes, 48 * block);
  assert.deepEqual(opened, [0o400]);
});

void test("check finds nothing wrong with layers that were reclaimed", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await prepared(ullage);
  await ullage.createSnapshot("web", "kept");
  await ullage.createVolume({ name: "clone", from: { snapshot: "web@kept" } });
  await ullage.removeSnapshot("web", "s");
  assert.notEqual((await ullage.reclaim()).reclaimedBytes, 0);
  await ullage.close();
  for (const command of ["check", "repair"]) {
    const { status, stdout, stderr } = spawnSync(join(root, "bin/ullage"), [command, dataDir], { encoding: "utf8" });
    assert.deepEqual([status, /: good|nothing is damaged/.test(stdout)], [0, true], stdout + stderr);
  }
});
