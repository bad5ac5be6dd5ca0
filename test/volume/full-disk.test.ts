import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { logPath, volumeDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { fillDisk, freeDisk, mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  logNumbers,
  openDescriptors,
  read,
  temporaryDirectory,
  write,
  writeAsync,
} from "../support/volume-env.ts";
import { failing, gate, ofHead, ofLog, ofMap, until } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

const MiB = 1024 * 1024;
const limits = { logReserveBytes: 64 * 1024, logExtendBytes: 64 * 1024, checkpointLogBytes: 256 * 1024 };

/** A data directory of 16 MiB, with a volume of 32 MiB. */
async function smallDisk(t: TestContext): Promise<Lives> {
  const dataDir = mountTmpfs(t, 16 * MiB);
  return Lives.create(t, 32 * MiB, { dataDir, runtimeDir: temporaryDirectory(t), limits });
}

/** Writes new blocks until there is no space for them. @returns how many found room */
async function writeUntilFull(volume: Volume, fromBlock: number): Promise<number> {
  for (let n = 0; ; n++) {
    try {
      await write(volume, (fromBlock + n) * blockBytes, filled(3));
    } catch (error) {
      assert.equal((error as { errno: string }).errno, "ENOSPC");
      return n;
    }
  }
}

void test("rule 22: on a full disk trims, zeroes, flushes and overwrites go on; new blocks get ENOSPC until space is back", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const lives = await smallDisk(t);
  const { dataDir } = lives.env;
  const volume = await lives.open();
  await write(volume, 0, filled(1, MiB));
  await volume.checkpoint();
  await write(volume, MiB, filled(1, MiB));
  fillDisk(dataDir);
  await writeUntilFull(volume, 1024);
  for (const how of [write, writeAsync]) {
    await assert.rejects(how(volume, 8 * MiB, filled(2, 4 * blockBytes)), { errno: "ENOSPC" });
    await how(volume, MiB / 2, filled(4, MiB));
  }
  await writeAsync(volume, 100, filled(5, 100));
  await assert.rejects(writeAsync(volume, 9 * MiB + 100, filled(5, 100)), { errno: "ENOSPC" });
  await volume.flush();
  await volume.trim(0, blockBytes);
  await volume.zero(blockBytes, blockBytes, { allocate: false, fast: false });
  await volume.flush();
  assert.equal(volume.info().state, "ok");
  await expectFilled(volume, 0, 2 * blockBytes, 0);
  await expectFilled(volume, MiB / 2, MiB, 4);
  await expectFilled(volume, 8 * MiB, 4 * blockBytes, 0);
  freeDisk(dataDir);
  await write(volume, 8 * MiB, filled(6, 4 * blockBytes));
  await volume.flush();
  const next = await lives.open();
  await expectFilled(next, 0, 2 * blockBytes, 0);
  await expectFilled(next, MiB / 2, MiB, 4);
  await expectFilled(next, 8 * MiB, 4 * blockBytes, 6);
  await next.close();
});

void test("rule 22: the space that a trim gives back serves the next write", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const lives = await smallDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1, 2 * MiB));
  await volume.checkpoint();
  await write(volume, 2 * MiB, filled(1)); // has written ahead in the log
  fillDisk(lives.env.dataDir);
  await assert.rejects(write(volume, 4 * MiB, filled(2, MiB)), { errno: "ENOSPC" });
  await volume.trim(0, 2 * MiB);
  await write(volume, 4 * MiB, filled(2, MiB));
  await volume.flush();
  await expectFilled(volume, 4 * MiB, MiB, 2);
  await expectFilled(volume, 0, 2 * MiB, 0);
});

void test("rule 22: a checkpoint that finds no space leaves the reserve: trims and flushes go on after it", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  for (const spare of [0, 4096, 8192, 64 * 1024, 136 * 1024]) {
    const lives = await smallDisk(t);
    const volume = await lives.open();
    await volume.checkpoint();
    await write(volume, 0, filled(1, MiB));
    fillDisk(lives.env.dataDir, spare);
    await volume.checkpoint().catch((error: { errno: string }) => assert.equal(error.errno, "ENOSPC"));
    for (let n = 0; n < 50; n++) {
      await volume.trim(n * blockBytes, blockBytes);
      await volume.flush();
    }
    assert.equal(volume.info().state, "ok");
    const next = await lives.open().catch(() => undefined); // may need space for its new log
    if (next === undefined) {
      freeDisk(lives.env.dataDir);
      const later = await lives.open();
      await expectFilled(later, 0, 50 * blockBytes, 0);
      await expectFilled(later, 50 * blockBytes, MiB - 50 * blockBytes, 1);
      continue;
    }
    await expectFilled(next, 0, 50 * blockBytes, 0);
    await expectFilled(next, 50 * blockBytes, MiB - 50 * blockBytes, 1);
  }
});

void test("rule 8: the log holds no garbage after appends that met a full disk: everything answered is replayed", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const lives = await smallDisk(t);
  let volume = await lives.open();
  const model = new Map<number, number>();
  for (let round = 1; round <= 4; round++) {
    fillDisk(lives.env.dataDir, 300 * 1024);
    for (let n = 0; n < 400; n++) {
      const block = (n * 37 + round * 11) % 4096;
      try {
        if (n % 5 === 4) {
          await volume.trim(block * blockBytes, blockBytes);
          model.set(block, 0);
        } else {
          await (n % 2 === 0 ? write : writeAsync)(volume, block * blockBytes, filled((n % 200) + round));
          model.set(block, (n % 200) + round);
        }
        if (n % 50 === 0) await volume.flush();
      } catch (error) {
        assert.equal((error as { errno: string }).errno, "ENOSPC");
      }
    }
    freeDisk(lives.env.dataDir);
    await lives.kill();
    volume = await lives.open();
    for (const [block, value] of model) await expectFilled(volume, block * blockBytes, blockBytes, value);
    await volume.flush();
  }
  await volume.close();
});

void test("rule 22: while checkpoints fail, the logs stay below their limit; then writes that need them get ENOSPC", async (t) => {
  const lives = await Lives.create(t, 64 * chunkBytes, { limits: { ...limits, checkpointLogBytes: 16 * 1024 } });
  const volume = await lives.open();
  await volume.checkpoint();
  await write(volume, 0, filled(1));
  lives.faulty.before = failing("ENOSPC", (call) => ofMap(call) && call.name === "write");
  let refused = 0;
  const limit = 4 * 16 * 1024;
  for (let n = 0; n < 4000; n++) {
    await write(volume, 2 * n * blockBytes, filled(2)).catch((error: { errno: string }) => {
      assert.equal(error.errno, "ENOSPC");
      refused++;
    });
    if (refused > 20) break;
  }
  assert.ok(refused > 20, "the limit is met");
  assert.ok(volume.info().logBytes <= limit + 4096, `${volume.info().logBytes} bytes of log`);
  await write(volume, 0, filled(4));
  await volume.trim(0, blockBytes);
  await volume.flush();
  const dir = volumeDir(lives.env.dataDir, lives.id);
  const bytes = logNumbers(lives.env, lives.id).reduce((sum, n) => sum + statSync(logPath(dir, n)).size, 0);
  assert.ok(bytes < 4 * MiB, `${bytes} bytes on disk`);
  lives.faulty.before = () => undefined;
  await volume.checkpoint();
  await write(volume, 5000 * blockBytes, filled(5));
  await volume.close();
  assert.deepEqual(openDescriptors(lives.env.dataDir), []);
});

void test("rule 22: writes that are under way when the log becomes full are not refused: a checkpoint makes room", async (t) => {
  const lives = await Lives.create(t, 64 * chunkBytes, { limits: { ...limits, checkpointLogBytes: 16 * 1024 } });
  const volume = await lives.open();
  await write(volume, 1024 * blockBytes, filled(2, 2000 * blockBytes));
  await volume.checkpoint();
  const writes = gate();
  const map = gate();
  let held = 0;
  lives.faulty.before = (call) => {
    if (call.name === "write" && ofMap(call)) return map.opened;
    if (call.name !== "write" || !ofHead(call) || call.now) return undefined;
    held++;
    return writes.opened;
  };
  const underWay = [0, 2, 4].map((block) => writeAsync(volume, block * blockBytes, filled(1)));
  await until(() => held === 3);
  let trimmed = 0;
  const trims = (async () => {
    for (; trimmed < 2000; trimmed++) await volume.trim((1024 + trimmed) * blockBytes, blockBytes);
  })();
  await until(() => volume.info().logBytes >= 4 * 16 * 1024);
  writes.open();
  await Promise.all(underWay);
  assert.ok(trimmed < 2000, "what comes later waits for the checkpoint");
  map.open();
  await trims;
  for (const block of [0, 2, 4]) await expectFilled(volume, block * blockBytes, blockBytes, 1);
  await volume.close();
});

void test("checkpoints come by themselves as the log grows, and old files go", async (t) => {
  const lives = await Lives.create(t, 64 * chunkBytes, { limits: { ...limits, checkpointLogBytes: 16 * 1024 } });
  const volume = await lives.open();
  for (let n = 0; n < 4000; n++) await write(volume, 2 * n * blockBytes, filled(1 + (n % 200)));
  await volume.checkpoint(); // this may be one that began before the last writes
  await volume.checkpoint();
  assert.equal(logNumbers(lives.env, lives.id).length, 1);
  assert.ok(volume.info().logBytes < 16 * 1024);
  const next = await lives.open();
  for (let n = 0; n < 4000; n += 61) await expectFilled(next, 2 * n * blockBytes, blockBytes, 1 + (n % 200));
  await next.close();
});

void test("an error of the head's or the log's disk reaches the request that met it and nobody else", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  for (const matches of [ofHead, ofLog]) {
    for (const how of [write, writeAsync]) {
      lives.faulty.before = failing("EIO", (call) => matches(call) && call.name === "write", 1);
      await assert.rejects(how(volume, 4 * blockBytes, filled(2)), { errno: "EIO" });
      await how(volume, 8 * blockBytes, filled(3));
      await volume.trim(8 * blockBytes, blockBytes);
      await volume.flush();
      assert.deepEqual(await read(volume, 4 * blockBytes, blockBytes), filled(0));
    }
  }
  lives.faulty.before = failing("EIO", (call) => call.name === "read" && ofHead(call), 2);
  await assert.rejects(volume.read(0, blockBytes, IoBuffer.from(filled(9)), 0), { errno: "EIO" });
  lives.faulty.before = () => undefined;
  await expectFilled(volume, 0, blockBytes, 1);
  assert.equal(volume.info().state, "ok");
});

void test("rule 22: restarted on a disk with 16 KiB left, a volume flushes, trims and overwrites", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const lives = await smallDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1, MiB));
  await lives.kill();
  fillDisk(lives.env.dataDir, 16 * 1024);
  const next = await lives.open();
  await expectFilled(next, 0, MiB, 1);
  await write(next, 0, filled(2, MiB));
  await next.flush();
  await next.trim(0, blockBytes);
  await next.flush();
  await expectFilled(next, 0, blockBytes, 0);
});

void test("rule 22: restarted on a full disk, a volume opens, and trims make room again", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const lives = await smallDisk(t);
  const volume = await lives.open();
  await write(volume, 0, filled(1, MiB));
  await lives.kill();
  fillDisk(lives.env.dataDir);
  const next = await lives.open();
  await next.flush();
  await next.trim(0, MiB / 2);
  await next.flush();
  await write(next, 4 * MiB, filled(2, MiB / 4));
  await next.flush();
  await expectFilled(next, 4 * MiB, MiB / 4, 2);
  await expectFilled(next, MiB / 2, MiB / 2, 1);
});

void test("a start that finds no space fails with ENOSPC, leaves no descriptor, and loses nothing", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await assert.rejects(lives.open(failing("ENOSPC", (call) => call.name === "write" && ofLog(call))), {
    errno: "ENOSPC",
  });
  assert.deepEqual(openDescriptors(lives.env.dataDir), []);
  await expectFilled(await lives.open(), 0, blockBytes, 1);
});
