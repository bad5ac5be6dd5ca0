import assert from "node:assert/strict";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { volumeDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  openDescriptors,
  temporaryDirectory,
  write,
} from "../support/volume-env.ts";
import { type Call, failing, gate, ofHead, ofLog } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

const dataSync = (call: Call): boolean => call.name === "datasync" && ofHead(call);
const logSync = (call: Call): boolean => call.name === "datasync" && ofLog(call);

/** On a disk: in memory there is no cache to drop. */
const onDisk = async (t: TestContext): Promise<Lives> =>
  Lives.create(t, 4 * chunkBytes, { dataDir: temporaryDirectory(t) });

const marks = (lives: Lives): { beside: string; runtime: string } => ({
  beside: join(volumeDir(lives.env.dataDir, lives.id), "poison"),
  runtime: join(lives.env.runtimeDir, `${lives.id}.poison`),
});

void test("rules 6 and 32: any failed sync of data or log poisons, whatever its errno; nothing succeeds afterwards", async (t) => {
  for (const [errno, matches] of [
    ["EIO", dataSync],
    ["ENOSPC", dataSync],
    ["EDQUOT", logSync],
    ["ENOSPC", logSync],
  ] as const) {
    const lives = await Lives.create(t, 4 * chunkBytes);
    const volume = await lives.open();
    await volume.checkpoint();
    await write(volume, 0, filled(1));
    lives.faulty.before = failing(errno, matches, 1); // the kernel reports it once; later syncs succeed
    await assert.rejects(volume.flush(), { errno: "EIO" });
    assert.equal(volume.info().state, "poisoned");
    assert.match(volume.info().reason!, new RegExp(errno));
    await assert.rejects(volume.flush(), { errno: "EIO" });
    await assert.rejects(write(volume, 0, filled(2)), { errno: "EIO" });
    await assert.rejects(volume.trim(0, blockBytes), { errno: "EIO" });
    await assert.rejects(volume.zero(0, 100, { allocate: false, fast: false }), { errno: "EIO" });
    await assert.rejects(volume.zero(0, 100, { allocate: true, fast: false }), { errno: "EIO" });
    await assert.rejects(volume.checkpoint(), { errno: "EIO" });
    await expectFilled(volume, 0, blockBytes, 1);
    await volume.close();
    assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  }
});

void test("rule 6: poison survives every restart; only accepting the loss opens the volume, at its last flush", async (t) => {
  const lives = await onDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1, 2 * blockBytes));
  await volume.flush();
  await write(volume, blockBytes, filled(2)); // in place: what the disk holds now is unknown
  await write(volume, 2 * blockBytes, filled(3));
  await volume.trim(0, blockBytes);
  await write(volume, 0, filled(4));
  const { lineage } = volume;
  lives.faulty.before = failing("EIO", dataSync, 1);
  await assert.rejects(volume.flush(), { errno: "EIO" });
  await volume.close();
  const { beside, runtime } = marks(lives);
  assert.match(readFileSync(beside, "utf8"), /EIO/);
  assert.match(readFileSync(runtime, "utf8"), /EIO/);
  for (let restart = 0; restart < 2; restart++) {
    await assert.rejects(lives.open(), { code: "poisoned" });
    assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  }
  const reopened = await lives.open(undefined, { acceptLoss: true });
  assert.notEqual(reopened.lineage, lineage, "clients can tell");
  assert.equal(reopened.info().state, "ok");
  assert.equal(existsSync(beside) || existsSync(runtime), false);
  await expectFilled(reopened, 2 * blockBytes, blockBytes, 0);
  await write(reopened, 0, filled(9));
  await reopened.flush();
  await reopened.close();
  const again = await lives.open();
  await expectFilled(again, 0, blockBytes, 9);
  await again.close();
});

void test("rule 6: one of the two marks is enough, whichever disk took it", async (t) => {
  for (const lost of ["beside", "runtime"] as const) {
    const lives = await onDisk(t);
    const volume = await lives.open();
    await write(volume, 0, filled(1));
    lives.faulty.before = (call) => {
      failing("EIO", dataSync)(call);
      if (call.name === "open") failing("EROFS", () => call.path === marks(lives)[lost])(call);
      return undefined;
    };
    await assert.rejects(volume.flush(), { errno: "EIO" });
    await volume.close();
    assert.equal(existsSync(marks(lives)[lost]), false);
    await assert.rejects(lives.open(), { code: "poisoned" });
    const reopened = await lives.open(undefined, { acceptLoss: true });
    await reopened.close();
    assert.equal(existsSync(marks(lives).beside) || existsSync(marks(lives).runtime), false);
    rmSync(lives.env.dataDir, { recursive: true });
  }
});

void test("rule 6: a failed round is told only when a mark stands that outlives a kill", async (t) => {
  const lives = await onDisk(t);
  const volume = await lives.open();
  await volume.checkpoint();
  await write(volume, 0, filled(1));
  const marking = gate();
  const reached = gate();
  const failSync = failing("EIO", dataSync, 1);
  lives.faulty.before = (call) => {
    failSync(call);
    if (call.name !== "open" || !call.path.endsWith("poison")) return undefined;
    reached.open();
    return marking.opened;
  };
  let told = false;
  const flushed = volume.flush().catch(() => (told = true));
  await reached.opened;
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(told, false, "whoever is told EIO may rely on the refusal after a kill");
  marking.open();
  await flushed;
  assert.equal(told, true);
  await lives.kill();
  assert.ok(existsSync(marks(lives).beside) || existsSync(marks(lives).runtime));
  await assert.rejects(lives.open(), { code: "poisoned" });
});

void test("rule 6: reopening drops the cached pages before anything is read, and refuses when it can't", async (t) => {
  const lives = await onDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  lives.faulty.before = failing("EIO", dataSync, 1);
  await assert.rejects(volume.flush());
  await volume.close();
  const dropped = new Set<string>();
  let stays = true;
  const open = (): Promise<Volume> =>
    lives.open(
      (call) => {
        if (call.name === "read" && (ofHead(call) || (ofLog(call) && !call.now))) {
          assert.ok(dropped.has(call.path), `${call.path} is read before its cache was dropped`);
        }
        return undefined;
      },
      { acceptLoss: true },
    );
  lives.onDrop = (path) => {
    dropped.add(path);
    return !stays;
  };
  await assert.rejects(open(), { code: "cache-not-dropped" });
  await assert.rejects(lives.open(), { code: "poisoned" }, "still");
  stays = false;
  const reopened = await open();
  await expectFilled(reopened, 0, blockBytes, 0);
  await reopened.close();
});
