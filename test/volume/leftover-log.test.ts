import assert from "node:assert/strict";
import { closeSync, openSync, unlinkSync, writeSync } from "node:fs";
import { test } from "node:test";
import { logPath, volumeDir } from "../../src/volume/paths.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  logNumbers,
  pretendPowerCut,
  write,
} from "../support/volume-env.ts";
import { type Call, failing, gate } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

/*
 * A log that failed its first sync, and could not be removed: its header can be read from the page cache, where it is
 * clean, and is not on the disk (durability rules 6 and 9).
 */

const ofLog2 = (call: Call): boolean => call.path.endsWith("/intent.2");
const failsSync = (call: Call): boolean => call.name === "datasync" && ofLog2(call);
const failsRemoval = (call: Call): boolean => call.name === "unlink" && ofLog2(call);

/** Lets the calls through, and knows what of the leftover's header the disk has: only what was written and synced again. */
class Disk {
  #written = false;
  #durable = false;

  readonly see = (call: Call): undefined => {
    if (!ofLog2(call)) return;
    if (call.name === "write" && call.offset === 0) this.#written = true;
    if (call.name === "unlink" || (call.name === "datasync" && this.#written)) this.#durable = true;
  };

  cutPower(lives: Lives): void {
    pretendPowerCut(lives.env, lives.id);
    if (this.#durable) return;
    const file = openSync(logPath(volumeDir(lives.env.dataDir, lives.id), 2), "r+");
    writeSync(file, Buffer.alloc(4096), 0, 4096, 0);
    closeSync(file);
  }
}

void test("rule 9: a start that leaves a log behind which it could neither sync nor remove costs no flushed write", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const [sync, removal] = [failing("EIO", failsSync), failing("EIO", failsRemoval)];
  await assert.rejects(
    lives.open((call) => (sync(call), removal(call))),
    /datasync/, // what went wrong first
  );
  assert.deepEqual(logNumbers(lives.env, lives.id), [1, 2]);
  const disk = new Disk();
  const volume = await lives.open(disk.see);
  await write(volume, 0, filled(7));
  await volume.flush();
  await lives.kill();
  disk.cutPower(lives);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 7);
});

void test("rule 9: after a power cut such a start costs nothing either", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  pretendPowerCut(lives.env, lives.id);
  const [sync, removal] = [failing("EIO", failsSync), failing("EIO", failsRemoval)];
  await assert.rejects(lives.open((call) => (sync(call), removal(call))));
  const disk = new Disk();
  const died = gate();
  // It dies when its own log is there, and its checkpoint is not.
  const opening = lives.open((call) => {
    disk.see(call);
    if (!/\/map\.\d+\.tmp$/.test(call.path) || call.name !== "open") return undefined;
    died.open();
    void lives.kill();
    return undefined;
  });
  opening.catch(() => undefined);
  await died.opened;
  await lives.kill();
  assert.deepEqual(logNumbers(lives.env, lives.id), [1, 2, 3]);
  disk.cutPower(lives);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 0);
});

void test("rule 6: when the leftover's header can't be made durable, nothing builds on it", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const [sync, removal] = [failing("EIO", failsSync), failing("EIO", failsRemoval)];
  await assert.rejects(lives.open((call) => (sync(call), removal(call))));
  await assert.rejects(lives.open(failing("EIO", failsSync)), /a sync failed during recovery/);
  assert.deepEqual(logNumbers(lives.env, lives.id), [1, 2]);
  await assert.rejects(lives.open(), { code: "poisoned" });
});

void test("a start on a full disk tries again in the place of a log that it could not remove", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const full = failing("ENOSPC", (call) => call.name === "write" && ofLog2(call), 1);
  const removal = failing("ENOSPC", failsRemoval, 1);
  const volume = await lives.open((call) => (full(call), removal(call)));
  await write(volume, 0, filled(7));
  await expectFilled(volume, 0, blockBytes, 7);
});

void test("rule 10: a checkpoint that leaves a log behind changes nothing, and the next one removes it", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(7));
  const ofLog3 = (call: Call): boolean => call.path.endsWith("/intent.3");
  const sync = failing("EIO", (call) => call.name === "datasync" && ofLog3(call), 1);
  const removal = failing("EIO", (call) => call.name === "unlink" && ofLog3(call), 1);
  lives.faulty.before = (call) => (sync(call), removal(call));
  await assert.rejects(volume.checkpoint(), /datasync/);
  assert.deepEqual(logNumbers(lives.env, lives.id), [1, 2, 3]);
  await volume.flush();
  await volume.checkpoint();
  assert.deepEqual(logNumbers(lives.env, lives.id), [3]);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 7);
});

/** A header that can't be read any more. */
function spoil(lives: Lives, log: number): void {
  const file = openSync(logPath(volumeDir(lives.env.dataDir, lives.id), log), "r+");
  writeSync(file, Buffer.alloc(4096), 0, 4096, 0);
  closeSync(file);
}

void test("rule 10: a log whose header is gone is as good as none at the end of the chain, and damage in the middle of it", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  // Lives that end when their log is there, and their checkpoint is not.
  for (const logs of [
    [1, 2],
    [1, 2, 3],
  ]) {
    pretendPowerCut(lives.env, lives.id);
    const died = gate();
    const opening = lives.open((call) => {
      if (!/\/map\.\d+\.tmp$/.test(call.path) || call.name !== "open") return undefined;
      died.open();
      void lives.kill();
      return undefined;
    });
    opening.catch(() => undefined);
    await died.opened;
    await lives.kill();
    assert.deepEqual(logNumbers(lives.env, lives.id), logs);
  }
  spoil(lives, 2);
  await assert.rejects(lives.open(), { code: "corrupt" }, "though nothing behind it was committed");
  assert.deepEqual(logNumbers(lives.env, lives.id), [1, 2, 3], "and nothing is touched");
  spoil(lives, 3);
  await assert.rejects(lives.open(), { code: "corrupt" }, "nor is there anything that could be read");
  unlinkSync(logPath(volumeDir(lives.env.dataDir, lives.id), 3));
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 0);
});
