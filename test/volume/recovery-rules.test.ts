import assert from "node:assert/strict";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { punchHole } from "../../src/base/posix.ts";
import { headerBytes } from "../../src/volume/header.ts";
import { layersDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  changeLogHeader,
  changeLogHeaders,
  chunkBytes,
  expectFilled,
  filled,
  type HeaderChanges,
  openVolume,
  pretendPowerCut,
  pretendRemount,
  read,
  temporaryDirectory,
  write,
} from "../support/volume-env.ts";
import { failing, ofMap } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

const onDisk = async (t: TestContext): Promise<Lives> =>
  Lives.create(t, 4 * chunkBytes, { dataDir: temporaryDirectory(t) });

const headPath = (lives: Lives): string => {
  const [name] = readdirSync(layersDir(lives.env.dataDir));
  return join(layersDir(lives.env.dataDir), name);
};

/** As if blocks of the head had been in the page cache alone when that was lost. */
function loseBlocks(lives: Lives, block: number, count: number): void {
  const fd = openSync(headPath(lives), "r+");
  assert.equal(punchHole(fd, headerBytes + block * blockBytes, count * blockBytes), 0);
  closeSync(fd);
}

/** Block 0 is flushed (1), block 1 flushed (1) and overwritten (2), 2 and 3 are written (2) but not flushed. */
async function prepare(lives: Lives): Promise<Volume> {
  const volume = await lives.open();
  await write(volume, 0, filled(1, 2 * blockBytes));
  await volume.flush();
  await write(volume, blockBytes, filled(2, 3 * blockBytes));
  return volume;
}

void test("rule 7: everything in the header is as it was: every record counts", async (t) => {
  const lives = await onDisk(t);
  const { lineage } = await prepare(lives);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 1);
  await expectFilled(next, blockBytes, 3 * blockBytes, 2);
  assert.equal(next.lineage, lineage);
  assert.equal(next.info().state, "ok");
});

void test("rule 7: another boot, another inode, an unknown file system or no boot id: only the last commit's cut counts", async (t) => {
  const cases: Record<string, HeaderChanges> = {
    "another boot id": { bootId: "00000000-0000-4000-8000-000000000000" },
    "no boot id": { bootId: "" },
    "another inode": { inode: 4711 },
    "another file system": { fileSystem: "zfs" },
  };
  for (const [what, changes] of Object.entries(cases)) {
    const lives = await onDisk(t);
    const { lineage } = await prepare(lives);
    await lives.kill();
    changeLogHeaders(lives.env, lives.id, changes);
    const next = await lives.open();
    await expectFilled(next, 0, blockBytes, 1);
    await expectFilled(next, 2 * blockBytes, 2 * blockBytes, 0);
    assert.notEqual(next.lineage, lineage, what);
  }
});

void test("rule 7: another or no mount id: records above the cut count where the head has data", async (t) => {
  for (const mountId of ["1", ""]) {
    const lives = await onDisk(t);
    const { lineage } = await prepare(lives);
    await lives.kill();
    changeLogHeaders(lives.env, lives.id, { mountId });
    const next = await lives.open();
    await expectFilled(next, 0, blockBytes, 1);
    await expectFilled(next, blockBytes, 3 * blockBytes, 2);
    assert.equal(next.info().state, "ok", "a container that was restarted lost nothing");
    assert.equal(next.lineage, lineage);
  }
});

void test("rule 7: after a remount one missing block means that the page cache was lost", async (t) => {
  const lives = await onDisk(t);
  const { lineage } = await prepare(lives);
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  loseBlocks(lives, 2, 1);
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 1);
  await expectFilled(next, 2 * blockBytes, blockBytes, 0);
  await expectFilled(next, 3 * blockBytes, blockBytes, 2);
  assert.equal(next.mapRuns(2 * blockBytes, blockBytes, 1)[0].kind, "zero", "the block is not the head's");
  assert.equal(next.info().state, "lostUnflushed");
  assert.notEqual(next.lineage, lineage);
});

void test("rule 7: zeros that were written count as data", async (t) => {
  const lives = await onDisk(t);
  const volume = await lives.open();
  await volume.checkpoint();
  await write(volume, 0, filled(0, 4 * blockBytes));
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  const next = await lives.open();
  assert.equal(next.info().state, "ok");
  assert.equal(next.mapRuns(0, 4 * blockBytes, 1)[0].kind, "written");
});

void test("rule 7: a block that was trimmed since is no missing block", async (t) => {
  const lives = await onDisk(t);
  const volume = await prepare(lives);
  await volume.trim(2 * blockBytes, 2 * blockBytes);
  await volume.trim(0, blockBytes);
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  const next = await lives.open();
  assert.equal(next.info().state, "ok");
  await expectFilled(next, 0, blockBytes, 0);
  await expectFilled(next, blockBytes, blockBytes, 2);
  await expectFilled(next, 2 * blockBytes, 2 * blockBytes, 0);
});

void test("rule 7: a lost block goes back to its owner as of the last commit, not as of something in between", async (t) => {
  const lives = await onDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1, 4 * blockBytes));
  await volume.trim(blockBytes, blockBytes);
  await volume.flush();
  await write(volume, blockBytes, filled(2));
  await volume.trim(blockBytes, blockBytes);
  await write(volume, blockBytes, filled(3));
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  loseBlocks(lives, 1, 1);
  const next = await lives.open();
  await expectFilled(next, blockBytes, blockBytes, 0);
  assert.equal(next.mapRuns(blockBytes, blockBytes, 1)[0].kind, "zero");
  await expectFilled(next, 2 * blockBytes, 2 * blockBytes, 1);
});

void test("rule 7: after a power cut the head keeps nothing that the recovered map does not own", async (t) => {
  const lives = await onDisk(t);
  await prepare(lives);
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const next = await lives.open();
  assert.ok(lives.layerBytes() <= headerBytes + 2 * blockBytes, `${lives.layerBytes()} bytes`);
  // A hole means something again: rewritten, lost and recovered after a remount, the block is found missing.
  await write(next, 2 * blockBytes, filled(5));
  await lives.kill();
  pretendRemount(lives.env, lives.id);
  loseBlocks(lives, 2, 1);
  const third = await lives.open();
  assert.equal(third.info().state, "lostUnflushed");
  await expectFilled(third, 2 * blockBytes, blockBytes, 0);
});

void test("rule 7: of several logs, the one that can be trusted least decides", async (t) => {
  const lives = await onDisk(t);
  const volume = await prepare(lives);
  await volume.flush();
  lives.faulty.before = failing("ENOSPC", (call) => ofMap(call) && call.name === "write");
  await assert.rejects(volume.checkpoint()); // two logs now
  await write(volume, 4 * blockBytes, filled(3));
  await lives.kill();
  const [first] = readdirSync(join(lives.env.dataDir, "volumes", lives.id))
    .filter((name) => name.startsWith("intent."))
    .sort();
  changeLogHeader(join(lives.env.dataDir, "volumes", lives.id, first), { bootId: "" });
  const next = await lives.open();
  await expectFilled(next, blockBytes, 3 * blockBytes, 2);
  await expectFilled(next, 4 * blockBytes, blockBytes, 0);
});

void test("a layer that is not the one the map means, or is cut short, is refused", async (t) => {
  const lives = await onDisk(t);
  const volume = await prepare(lives);
  await volume.close();
  const other = await onDisk(t);
  await (await prepare(other)).close();
  const mine = readFileSync(headPath(lives));
  writeFileSync(headPath(lives), readFileSync(headPath(other)));
  await assert.rejects(lives.open(), { code: "corrupt" });
  writeFileSync(headPath(lives), mine.subarray(0, mine.length - 1));
  await assert.rejects(lives.open(), { code: "corrupt" });
  writeFileSync(headPath(lives), mine);
  const next = await lives.open();
  assert.deepEqual(await read(next, 0, blockBytes), filled(1));
  await next.close();
});

void test("rule 20: a volume that is open can't be opened again", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await assert.rejects(openVolume({ ...lives.env }, lives.id), { code: "locked" });
  await volume.close();
  await (await lives.open()).close();
});
