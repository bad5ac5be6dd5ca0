import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  createVolume,
  expectFilled,
  filled,
  openVolume,
  pretendPowerCut,
  type TestEnvironment,
  volumeEnvironment,
  write,
} from "../support/volume-env.ts";
import { type Call, failing, FaultyFileSystem, gate, holdOnce, ofHead, ofLog, until } from "./faulty-file-system.ts";

interface World {
  faulty: FaultyFileSystem;
  env: TestEnvironment;
  id: string;
  volume: Volume;
}

async function newWorld(t: TestContext): Promise<World> {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { fs: faulty.fs });
  const id = await createVolume(env, 4 * chunkBytes);
  const volume = await openVolume(env, id);
  await volume.checkpoint(); // recovery's own is done with
  t.after(() => faulty.kill());
  return { faulty, env, id, volume };
}

/** Ends this life as a power cut would, and opens the next one. */
async function nextLife(t: TestContext, world: World): Promise<Volume> {
  await world.faulty.kill();
  pretendPowerCut(world.env, world.id);
  const faulty = new FaultyFileSystem();
  t.after(() => faulty.kill());
  return openVolume({ ...world.env, fs: faulty.fs }, world.id);
}

const dataSync = (call: Call): boolean => call.name === "datasync" && ofHead(call);
const logSync = (call: Call): boolean => call.name === "datasync" && ofLog(call);

void test("rule 1: a write that is answered while the data sync runs is not covered by that round", async (t) => {
  const world = await newWorld(t);
  const { volume, faulty } = world;
  await write(volume, 0, filled(1));
  const sync = holdOnce(faulty, dataSync);
  const flushed = volume.flush();
  await sync.reached;
  await write(volume, blockBytes, filled(2));
  sync.open();
  await flushed;
  // In reality the second block may be a hole now: the recovered map must not give it to the head.
  const next = await nextLife(t, world);
  await expectFilled(next, 0, blockBytes, 1);
  await expectFilled(next, blockBytes, blockBytes, 0);
});

void test("rule 1: a flush that is asked for while a round runs waits for the next round", async (t) => {
  const world = await newWorld(t);
  const { volume, faulty } = world;
  await write(volume, 0, filled(1));
  const sync = holdOnce(faulty, dataSync);
  const first = volume.flush();
  await sync.reached;
  await write(volume, blockBytes, filled(2));
  const syncs: Call[] = [];
  faulty.after = (call) => {
    if (dataSync(call)) syncs.push(call);
  };
  const second = volume.flush();
  sync.open();
  await first;
  await second;
  assert.equal(syncs.length, 2);
  const next = await nextLife(t, world);
  await expectFilled(next, 0, blockBytes, 1);
  await expectFilled(next, blockBytes, blockBytes, 2);
});

void test("rule 1: everything answered before a flush is there after a power cut, what came later is not", async (t) => {
  const world = await newWorld(t);
  const { volume } = world;
  await write(volume, 0, filled(1, 4 * blockBytes));
  await volume.trim(blockBytes, blockBytes);
  await volume.flush();
  await volume.trim(0, blockBytes);
  await write(volume, 8 * blockBytes, filled(2));
  const next = await nextLife(t, world);
  // The trimmed block may show zeros or what was flushed; the page cache shows the punched hole.
  await expectFilled(next, blockBytes, blockBytes, 0);
  await expectFilled(next, 2 * blockBytes, 2 * blockBytes, 1);
  await expectFilled(next, 8 * blockBytes, blockBytes, 0);
});

void test("flushes that wait at the same time share one round", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await write(volume, 0, filled(1));
  const sync = holdOnce(faulty, dataSync);
  const first = volume.flush();
  await sync.reached;
  const syncs: string[] = [];
  faulty.after = (call) => {
    if (call.name === "datasync") syncs.push(call.path);
  };
  await write(volume, blockBytes, filled(2));
  const rest = Array.from({ length: 50 }, () => volume.flush());
  sync.open();
  await Promise.all([first, ...rest]);
  assert.deepEqual(syncs.length, 4, "two rounds, each of data and log");
});

void test("a flush with nothing to commit syncs the data alone; with nothing written, nothing", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await write(volume, 0, filled(1));
  await volume.flush();
  const syncs: Call[] = [];
  faulty.after = (call) => {
    if (call.name === "datasync") syncs.push(call);
  };
  await write(volume, 0, filled(2)); // the head owns the block: no record
  await volume.flush();
  assert.deepEqual(syncs.map(ofHead), [true]);
  await volume.flush();
  assert.equal(syncs.length, 1);
});

void test("rule 24: a flush after a trim commits, though no data changed", async (t) => {
  const world = await newWorld(t);
  const { volume } = world;
  await write(volume, 0, filled(1, 2 * blockBytes));
  await volume.flush();
  await volume.trim(0, blockBytes);
  await volume.flush();
  const next = await nextLife(t, world);
  await expectFilled(next, 0, blockBytes, 0);
  assert.equal(next.mapRuns(0, blockBytes, 1)[0].kind, "zero");
});

void test("rule 21d: a failed round wakes everybody who waits for it, and for the next one", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await write(volume, 0, filled(1));
  const reached = gate();
  const held = gate();
  faulty.before = (call) => {
    if (!dataSync(call)) return undefined;
    reached.open();
    return held.opened.then(() => failing("EIO", () => true)(call));
  };
  const first = volume.flush();
  await reached.opened;
  const waiting = [volume.flush(), volume.flush()];
  held.open();
  for (const flush of [first, ...waiting]) await assert.rejects(flush, { errno: "EIO" });
});

void test("rule 21: a write that waits for its range, or a read, does not wait for a running flush", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await write(volume, 0, filled(1));
  for (const stage of [dataSync, logSync]) {
    const sync = holdOnce(faulty, stage);
    await write(volume, 5 * blockBytes, filled(4));
    await volume.trim(5 * blockBytes, blockBytes);
    await write(volume, 5 * blockBytes, filled(5));
    const flushed = volume.flush();
    await sync.reached;
    await write(volume, 100, filled(6, 50));
    await volume.trim(2 * blockBytes, blockBytes);
    await expectFilled(volume, 100, 50, 6);
    sync.open();
    await flushed;
  }
});

void test("rule 16: with sync=always an answered write has been flushed", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await volume.changeSettings({ sync: "always", remoteAfterPowerLoss: "refuse" });
  const sync = holdOnce(faulty, dataSync);
  let answered = false;
  const writing = write(volume, 0, filled(1)).then(() => (answered = true));
  await sync.reached;
  await new Promise(setImmediate);
  assert.equal(answered, false);
  sync.open();
  await writing;
});

void test("a disk that takes no commit fails the flush and no more; the next flush can succeed", async (t) => {
  const world = await newWorld(t);
  const { volume, faulty } = world;
  await write(volume, 0, filled(1));
  faulty.before = failing("ENOSPC", (call) => call.name === "write" && ofLog(call), 1);
  await assert.rejects(volume.flush(), { errno: "ENOSPC" });
  assert.equal(volume.info().state, "ok");
  await volume.flush();
  await expectFilled(await nextLife(t, world), 0, blockBytes, 1);
});

void test("rule 8: a log that can neither take a record nor be cut back poisons the volume", async (t) => {
  const { volume, faulty } = await newWorld(t);
  await write(volume, 0, filled(1));
  faulty.before = failing("EIO", (call) => ofLog(call) && (call.name === "write" || call.name === "truncate"));
  await assert.rejects(write(volume, blockBytes, filled(2)), { errno: "EIO" });
  assert.equal(volume.info().state, "poisoned");
  await expectFilled(volume, 0, blockBytes, 1);
  await expectFilled(volume, blockBytes, blockBytes, 0);
  await assert.rejects(volume.flush(), { errno: "EIO" });
});

void test("rule 28: much unsynced data starts a flush by itself", async (t) => {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { fs: faulty.fs, limits: { dirtyBytes: 1024 * 1024 } });
  const id = await createVolume(env, 4 * chunkBytes);
  const volume = await openVolume(env, id);
  await volume.checkpoint();
  let syncs = 0;
  faulty.after = (call) => {
    if (dataSync(call)) syncs++;
  };
  for (let n = 0; n < 24; n++) await write(volume, n * 65536, filled(n, 65536));
  await until(() => syncs > 0);
  for (let n = 0; n < 24; n++) await expectFilled(volume, n * 65536, 65536, n);
  await volume.close();
});
