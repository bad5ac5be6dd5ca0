import assert from "node:assert/strict";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  filled,
  pretendPowerCut,
  temporaryDirectory,
  write,
  writeAsync,
} from "../support/volume-env.ts";
import { type Call, failing, holdOnce, ofHead, until } from "./faulty-file-system.ts";
import { Lives } from "./lives.ts";

const plain = { allocate: false, fast: false };

void test("rule 24: zeroes that must take space are written as data, and no full disk meets a later write there", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes, { dataDir: temporaryDirectory(t) });
  const volume = await lives.open();
  await write(volume, 0, filled(1, 4 * blockBytes));
  const before = lives.layerBytes();
  await volume.zero(100, 2 * chunkBytes, { allocate: true, fast: false });
  await expectFilled(volume, 0, 100, 1);
  await expectFilled(volume, 100, 2 * chunkBytes, 0);
  assert.ok(lives.layerBytes() >= before + 2 * chunkBytes - 4 * blockBytes);
  assert.equal(volume.mapRuns(0, 2 * chunkBytes, 1)[0].length, 2 * chunkBytes);
  assert.equal(volume.mapRuns(0, 2 * chunkBytes, 1)[0].kind, "written");
  await volume.flush();
  lives.faulty.before = failing("ENOSPC", (call) => call.name === "write" && !ofHead(call)); // the log takes nothing
  await write(volume, blockBytes, filled(2, chunkBytes));
  await expectFilled(volume, blockBytes, chunkBytes, 2);
  lives.faulty.before = () => undefined;
  await volume.close();
});

void test("rule 24: zeroes that must be fast and take space are refused at once", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await assert.rejects(volume.zero(0, blockBytes, { allocate: true, fast: true }), { errno: "ENOTSUP" });
  await expectFilled(volume, 0, blockBytes, 1);
  await volume.zero(0, blockBytes, { allocate: false, fast: true });
  await expectFilled(volume, 0, blockBytes, 0);
});

void test("rule 24: zeroing is exact at unaligned edges, trimming leaves them alone", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1, 8 * blockBytes));
  await volume.zero(100, 3 * blockBytes, plain);
  await expectFilled(volume, 0, 100, 1);
  await expectFilled(volume, 100, 3 * blockBytes, 0);
  await expectFilled(volume, 100 + 3 * blockBytes, blockBytes - 100, 1);
  await volume.trim(4 * blockBytes + 1, 2 * blockBytes);
  await expectFilled(volume, 4 * blockBytes, blockBytes, 1);
  await expectFilled(volume, 5 * blockBytes, blockBytes, 0);
  await expectFilled(volume, 6 * blockBytes, 2 * blockBytes, 1);
  await volume.trim(7 * blockBytes + 1, blockBytes - 2);
  await volume.zero(7 * blockBytes + 10, 20, plain);
  await expectFilled(volume, 7 * blockBytes, 10, 1);
  await expectFilled(volume, 7 * blockBytes + 10, 20, 0);
});

void test("trimmed and zeroed blocks give their space back", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes, { dataDir: temporaryDirectory(t) });
  const volume = await lives.open();
  await write(volume, 0, filled(1, 2 * chunkBytes));
  await volume.flush();
  const full = lives.layerBytes();
  await volume.trim(0, chunkBytes);
  await volume.zero(chunkBytes, chunkBytes, plain);
  await volume.flush();
  assert.ok(lives.layerBytes() <= full - 2 * chunkBytes + 65536, `${lives.layerBytes()} of ${full}`);
  await volume.close();
});

void test("trimming what is zeros already adds nothing to the log", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await volume.checkpoint();
  const { logBytes } = volume.info();
  await volume.trim(0, volume.size);
  await volume.zero(0, volume.size, plain);
  assert.equal(volume.info().logBytes, logBytes);
});

void test("rule 30: a write into a trim that goes on in slices queues, and is not wiped by a later slice or the punch", async (t) => {
  const chunks = 64;
  const lives = await Lives.create(t, chunks * chunkBytes, { limits: { sliceChunks: 2, slowWriteMs: Infinity } });
  const volume = await lives.open();
  for (let chunk = 0; chunk < chunks; chunk += 4) await write(volume, chunk * chunkBytes, filled(1));
  const values = new Map<number, number>();
  for (let round = 0; round < 3; round++) {
    const trimming = volume.trim(blockBytes, volume.size - 2 * blockBytes);
    const writes: Promise<void>[] = [];
    for (let chunk = 1; chunk < chunks; chunk += 5) {
      const value = 10 + round * chunks + chunk;
      const buffer = IoBuffer.from(filled(value & 0xff));
      assert.equal(volume.tryWrite(chunk * chunkBytes, blockBytes, buffer, 0), false, "the fast path steps aside");
      writes.push(writeAsync(volume, chunk * chunkBytes, filled(value & 0xff)));
      values.set(chunk, value & 0xff);
      if (chunk % 3 === 0) await new Promise(setImmediate);
    }
    assert.equal(volume.tryWrite(0, blockBytes, IoBuffer.from(filled(9)), 0), true, "outside of it nothing waits");
    await Promise.all([trimming, ...writes]);
    for (let chunk = 1; chunk < chunks; chunk++) {
      await expectFilled(volume, chunk * chunkBytes, blockBytes, values.get(chunk) ?? 0);
    }
  }
});

void test("rules 5 and 30: the punch of a trim holds its range: a write there waits for it", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1, chunkBytes));
  const held = holdOnce(lives.faulty, (call) => call.name === "punch");
  const trimming = volume.trim(0, chunkBytes);
  await held.reached;
  let written = false;
  const writing = writeAsync(volume, blockBytes, filled(2)).then(() => (written = true));
  await new Promise(setImmediate);
  assert.equal(written, false);
  held.open();
  await Promise.all([trimming, writing]);
  await expectFilled(volume, 0, blockBytes, 0);
  await expectFilled(volume, blockBytes, blockBytes, 2);
});

void test("rule 5: what a failed write left in the head is freed, and never what was written there since", async (t) => {
  const lives = await Lives.create(t, 4 * chunkBytes, { dataDir: temporaryDirectory(t) });
  const volume = await lives.open();
  await volume.checkpoint();
  const punches: Call[] = [];
  lives.faulty.after = (call) => {
    if (call.name === "punch" && call.offset > 0) punches.push(call);
  };
  lives.faulty.before = failing("ENOSPC", (call) => call.name === "write" && call.length === 40, 1);
  await assert.rejects(write(volume, 0, filled(1, 4 * blockBytes)), { errno: "ENOSPC" });
  await write(volume, blockBytes, filled(2, 2 * blockBytes));
  await until(() => punches.length > 0);
  await volume.checkpoint();
  await expectFilled(volume, blockBytes, 2 * blockBytes, 2);
  await expectFilled(volume, 0, blockBytes, 0);
  await volume.close();
});

void test("rule 26: unflushed write, trim and write again leave after a power cut one of the contents, never a mix", async (t) => {
  const lives = await Lives.create(t, chunkBytes);
  const volume = await lives.open();
  await write(volume, 0, filled(1));
  await volume.flush();
  await volume.trim(0, blockBytes);
  await write(volume, 0, filled(2));
  await lives.kill();
  pretendPowerCut(lives.env, lives.id);
  const next = await lives.open();
  const buffer = new IoBuffer(blockBytes);
  await next.read(0, blockBytes, buffer, 0);
  for (let at = 0; at < blockBytes; at += 512) {
    const sector = buffer.bytes.subarray(at, at + 512);
    assert.ok([0, 1, 2].includes(sector[0]) && sector.every((byte) => byte === sector[0]));
  }
});
