import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { headerBytes } from "../../src/volume/header.ts";
import { layersDir } from "../../src/volume/paths.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  createVolume,
  expectFilled,
  filled,
  memoryDirectory,
  newId,
  openVolume,
  pretendPowerCut,
  read,
  volumeEnvironment,
  write,
  writeAsync,
} from "../support/volume-env.ts";
import { type Call, failing, FaultyFileSystem, gate, holdOnce, ofHead, ofLog, until } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";
import { MemoryBlob } from "./memory-blob.ts";

const headWrite = (call: Call): boolean => call.name === "write" && ofHead(call);
const logWrite = (call: Call): boolean => call.name === "write" && ofLog(call) && call.length === 40;

interface BlobWorld {
  volume: Volume;
  blob: MemoryBlob;
  lives: { faulty: FaultyFileSystem };
}

/** A volume over a blob whose every byte is 0xb0 + the number of its unit. */
async function overBlob(t: TestContext, blobBytes = 4 * 65536): Promise<BlobWorld> {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), fs: faulty.fs });
  const content = Buffer.alloc(blobBytes);
  for (let at = 0; at < blobBytes; at++) content[at] = 0xb0 + Math.floor(at / 65536);
  const blob = await MemoryBlob.open(env.dataDir, newId(), content);
  const id = await createVolume(env, chunkBytes, { blob: { id: blob.id, size: blob.size } });
  const volume = await openVolume(env, id, { blob });
  t.after(() => faulty.kill());
  return { volume, blob, lives: { faulty } };
}

void test("rule 14: a record is appended only after the whole write has returned, and answered only after the record", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  const held = holdOnce(lives.faulty, headWrite);
  const appended: Call[] = [];
  lives.faulty.after = (call) => {
    if (logWrite(call)) appended.push(call);
  };
  let answered = false;
  const writing = writeAsync(volume, 0, filled(1)).then(() => (answered = true));
  await held.reached;
  await new Promise(setImmediate);
  assert.deepEqual([appended.length, answered], [0, false]);
  assert.equal(volume.mapRuns(0, blockBytes, 1)[0].kind, "zero", "the map does not know of it yet");
  held.open();
  await writing;
  assert.equal(appended.length, 1);
  assert.equal(volume.mapRuns(0, blockBytes, 1)[0].kind, "written");
});

void test("rule 14: killed between write and record, the next life does not know the block", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  lives.faulty.before = (call) => {
    if (logWrite(call)) void lives.kill();
    return undefined;
  };
  await assert.rejects(write(volume, 0, filled(1)));
  const next = await lives.open();
  await expectFilled(next, 0, blockBytes, 0);
});

void test("rule 14: a write that fails half-way claims nothing, in this life or the next", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  for (const how of [write, writeAsync]) {
    lives.faulty.before = failing("ENOSPC", headWrite, 1);
    await assert.rejects(how(volume, 0, filled(1, 4 * blockBytes)), { errno: "ENOSPC" });
    lives.faulty.before = failing("ENOSPC", logWrite, 1);
    await assert.rejects(how(volume, 0, filled(1, 4 * blockBytes)), { errno: "ENOSPC" });
    lives.faulty.before = () => undefined;
    await expectFilled(volume, 0, 4 * blockBytes, 0);
    assert.equal(volume.info().state, "ok");
  }
  await write(volume, 8 * blockBytes, filled(2));
  const next = await lives.open();
  await expectFilled(next, 0, 4 * blockBytes, 0);
  await expectFilled(next, 8 * blockBytes, blockBytes, 2);
});

void test("rule 15: a partial write over an untouched block takes the other bytes from the blob, over the end from zeros", async (t) => {
  const { volume, blob } = await overBlob(t, 65536 + 5000);
  await write(volume, 100, filled(1, 50));
  assert.equal(blob.stats.requests, 1);
  await expectFilled(volume, 0, 100, 0xb0);
  await expectFilled(volume, 100, 50, 1);
  await expectFilled(volume, 150, 65536 - 150, 0xb0);
  // The blob's last block is short: 904 of its bytes are the blob's, the rest is zeros.
  await write(volume, 65536 + 4096 + 2000, filled(2, 10));
  await expectFilled(volume, 65536 + 4096, 904, 0xb1);
  await expectFilled(volume, 65536 + 4096 + 904, 2000 - 904, 0);
  await expectFilled(volume, 65536 + 4096 + 2000, 10, 2);
  await expectFilled(volume, 65536 + 4096 + 2010, blockBytes, 0);
});

void test("rule 15: a write over three blocks fills the two outer ones from the blob", async (t) => {
  const { volume } = await overBlob(t);
  await write(volume, 1000, filled(1, 2 * blockBytes));
  await expectFilled(volume, 0, 1000, 0xb0);
  await expectFilled(volume, 1000, 2 * blockBytes, 1);
  await expectFilled(volume, 1000 + 2 * blockBytes, blockBytes - 1000, 0xb0);
  assert.equal(volume.mapRuns(0, 4 * blockBytes, 9)[0].length, 3 * blockBytes);
});

void test("rule 15: a partial write never brings back what the head's file held before", async (t) => {
  for (const punches of [true, false]) {
    const lives = await Lives.create(t, chunkBytes);
    const volume = await lives.open();
    if (!punches) lives.faulty.punches = false;
    await write(volume, 0, filled(7, 3 * blockBytes));
    await volume.flush();
    await volume.trim(0, 3 * blockBytes);
    await write(volume, 512, filled(1, 512));
    await volume.zero(blockBytes + 100, 200, { allocate: true, fast: false });
    await volume.zero(2 * blockBytes + 100, 200, { allocate: false, fast: false });
    const check = async (device: Volume): Promise<void> => {
      await expectFilled(device, 0, 512, 0);
      await expectFilled(device, 512, 512, 1);
      await expectFilled(device, 1024, 3 * blockBytes - 1024, 0);
    };
    await check(volume);
    await volume.flush();
    await lives.kill();
    pretendPowerCut(lives.env, lives.id);
    await check(await lives.open());
  }
});

void test("rule 15: bytes that a power cut left in the head do not come back under a partial write", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  await write(volume, 0, filled(7));
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const next = await lives.open();
  await write(next, 0, filled(1, 512));
  await expectFilled(next, 512, blockBytes - 512, 0);
});

void test("rule 15: a full write queues behind a partial one that waits for its fill, and wins", async (t) => {
  const { volume, lives } = await overBlob(t);
  await volume.prefetch(0, blockBytes);
  const held = holdOnce(lives.faulty, headWrite); // the partial write holds its range here
  const partial = writeAsync(volume, 10, filled(1, 10));
  await held.reached;
  const buffer = IoBuffer.from(filled(2));
  assert.equal(volume.tryWrite(0, blockBytes, buffer, 0), false, "the fast path steps aside");
  const full = writeAsync(volume, 0, filled(2));
  const behind = writeAsync(volume, 100, filled(3, 10));
  held.open();
  await Promise.all([partial, full, behind]);
  await expectFilled(volume, 0, 100, 2);
  await expectFilled(volume, 100, 10, 3);
  await expectFilled(volume, 110, blockBytes - 110, 2);
});

void test("rule 15: a block written while a partial write waits for the source keeps the newer bytes", async (t) => {
  const { volume, blob } = await overBlob(t);
  const source = gate();
  blob.beforeFetch = () => source.opened;
  const partial = writeAsync(volume, 10, filled(1, 10));
  await until(() => blob.stats.requests === 1);
  await write(volume, 0, filled(2)); // does not wait for the source: rule 21
  source.open();
  await partial;
  await expectFilled(volume, 0, 10, 2);
  await expectFilled(volume, 10, 10, 1);
  await expectFilled(volume, 20, blockBytes - 20, 2);
});

void test("rule 15: a unit lost from the cache before the fill is fetched again", async (t) => {
  const { volume, blob, lives } = await overBlob(t);
  await volume.prefetch(0, 65536);
  const held = holdOnce(lives.faulty, headWrite);
  const first = writeAsync(volume, 10, filled(1, 10));
  await held.reached;
  const second = writeAsync(volume, blockBytes - 10, filled(2, 20)); // waits for the range, and needs the blob
  await new Promise(setImmediate);
  blob.lose(0);
  held.open();
  await Promise.all([first, second]);
  assert.equal(blob.stats.requests, 2);
  await expectFilled(volume, 10, 10, 1);
  await expectFilled(volume, blockBytes - 10, 20, 2);
  await expectFilled(volume, blockBytes + 10, blockBytes - 10, 0xb0);
});

void test("rule 21b: a dead source holds nobody up but those who need it, and their errors end with it", async (t) => {
  const { volume, blob } = await overBlob(t);
  const source = gate();
  blob.beforeFetch = () => source.opened;
  const partial = writeAsync(volume, 10, filled(1, 10));
  const reading = read(volume, 65536, 100);
  await until(() => blob.stats.requests === 2);
  await write(volume, blockBytes, filled(2));
  await volume.trim(2 * blockBytes, blockBytes);
  await volume.flush();
  await volume.checkpoint();
  await expectFilled(volume, blockBytes, blockBytes, 2);
  blob.breakSource();
  source.open();
  await Promise.all([partial, reading]); // these two had been asked for before it broke
  await assert.rejects(read(volume, 2 * 65536, 10), { code: "source-unreachable" });
  await assert.rejects(writeAsync(volume, 2 * 65536 + 1, filled(1, 10)), { code: "source-unreachable" });
  assert.equal(volume.info().state, "ok");
  await write(volume, 2 * 65536, filled(3, 65536));
  await expectFilled(volume, 2 * 65536, 65536, 3);
  blob.beforeFetch = () => undefined;
  await expectFilled(volume, 3 * 65536, 65536, 0xb3);
});

void test("reads see a write, answered or not, in whole blocks, while others write around it", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  const rounds = Array.from({ length: 200 }, (_, n) => n + 1);
  await Promise.all(
    rounds.map(async (n) => {
      const at = (n % 20) * 1024 + (n % 3);
      await writeAsync(volume, at, filled(n % 251, 600));
    }),
  );
  // Overlapping writes are applied in arrival order: the model is the plain one.
  const model = Buffer.alloc(32 * 1024);
  for (const n of rounds) model.fill(n % 251, (n % 20) * 1024 + (n % 3), (n % 20) * 1024 + (n % 3) + 600);
  assert.deepEqual(await read(volume, 0, model.length), model);
});

void test("rule 19: a head that is cut short under the volume is EIO, never zeros", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1, 8 * blockBytes));
  const [name] = readdirSync(layersDir(lives.env.dataDir));
  const file = await realFileSystem.open(join(layersDir(lives.env.dataDir), name), "write");
  await file.truncate(headerBytes + 4 * blockBytes + 100);
  await file.close();
  await expectFilled(volume, 0, 4 * blockBytes, 1);
  await assert.rejects(read(volume, 4 * blockBytes, blockBytes), { errno: "EIO" });
});
