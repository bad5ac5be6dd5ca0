import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import * as fc from "fast-check";
import { ExtentState } from "../../src/export/block-device.ts";
import {
  blockBytes,
  chunkBytes,
  createVolume,
  expectFilled,
  filled,
  memoryDirectory,
  newId,
  openVolume,
  read,
  type TestEnvironment,
  volumeEnvironment,
  write,
} from "../support/volume-env.ts";
import { MemoryBlob } from "./memory-blob.ts";

interface World {
  env: TestEnvironment;
  id: string;
  blob: MemoryBlob;
}

async function newWorld(t: TestContext, blobBytes: number, size: number): Promise<World> {
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t) });
  const blob = await MemoryBlob.open(env.dataDir, newId(), Buffer.alloc(blobBytes, 0xbb));
  return { env, blob, id: await createVolume(env, size, { blob: { id: blob.id, size: blobBytes } }) };
}

/** All of the disk, in pieces that end nowhere in particular. */
async function readAll(volume: Parameters<typeof read>[0]): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (let at = 0; at < volume.size; at += 100_003) {
    pieces.push(await read(volume, at, Math.min(100_003, volume.size - at)));
  }
  return Buffer.concat(pieces);
}

void test("rule 19: beyond a blob's size a volume reads zeros, exactly there, for every kind of ending", async (t) => {
  for (const blobBytes of [1, 511, 512, 4095, 4096, 4097, 65536, 65537, 70_000]) {
    const { env, blob, id } = await newWorld(t, blobBytes, 160 * 1024);
    const volume = await openVolume(env, id, { blob });
    const expected = Buffer.concat([Buffer.alloc(blobBytes, 0xbb), Buffer.alloc(160 * 1024 - blobBytes)]);
    assert.deepEqual(await readAll(volume), expected, `blob of ${blobBytes} bytes`);
    await volume.close();
  }
});

void test("rule 19: a blob longer than the volume ends with the volume", async (t) => {
  const { env, blob, id } = await newWorld(t, 200_000, 99_840);
  const volume = await openVolume(env, id, { blob });
  assert.equal(volume.size, 99_840);
  assert.deepEqual(await readAll(volume), Buffer.alloc(99_840, 0xbb));
  await volume.close();
});

void test("rule 19: the last block of a volume whose size is no multiple of 4096 works like any other", async (t) => {
  const size = 3 * blockBytes + 512 * 3;
  const { env, blob, id } = await newWorld(t, size - 700, size);
  let volume = await openVolume(env, id, { blob });
  const model = Buffer.concat([Buffer.alloc(size - 700, 0xbb), Buffer.alloc(700)]);
  const put = async (at: number, bytes: Buffer): Promise<void> => {
    await write(volume, at, bytes);
    bytes.copy(model, at);
  };
  await put(size - 512, filled(1, 512));
  assert.deepEqual(await readAll(volume), model);
  await put(2 * blockBytes + 100, filled(2, size - 2 * blockBytes - 100));
  assert.deepEqual(await readAll(volume), model);
  await volume.zero(size - 1000, 1000, { allocate: false, fast: false });
  model.fill(0, size - 1000);
  assert.deepEqual(await readAll(volume), model);
  await put(0, filled(3, size));
  await volume.trim(3 * blockBytes, size - 3 * blockBytes); // its last block is whole as far as the volume goes
  model.fill(0, 3 * blockBytes);
  assert.deepEqual(await readAll(volume), model);
  await volume.trim(3 * blockBytes + 512, 1024);
  await put(size - 1024, filled(4, 1024));
  assert.deepEqual(await readAll(volume), model);
  await volume.close();
  volume = await openVolume(env, id, { blob });
  assert.deepEqual(await readAll(volume), model);
  assert.equal(
    volume.extents(0, size, 100).reduce((total, extent) => total + extent.length, 0),
    size,
  );
  await volume.close();
});

void test("extents tell written, local, remote and zero apart, to the byte, and fetch nothing", async (t) => {
  const { env, blob, id } = await newWorld(t, 2 * 65536 + 1000, chunkBytes);
  const volume = await openVolume(env, id, { blob });
  await volume.prefetch(65536, 1);
  await write(volume, 0, filled(1));
  await volume.trim(2 * blockBytes, blockBytes);
  const { requests } = blob.stats;
  assert.deepEqual(volume.extents(0, chunkBytes, 100), [
    { length: blockBytes, state: ExtentState.written },
    { length: blockBytes, state: ExtentState.remote },
    { length: blockBytes, state: ExtentState.zero },
    { length: 65536 - 3 * blockBytes, state: ExtentState.remote },
    { length: 65536, state: ExtentState.local },
    { length: 1000, state: ExtentState.remote },
    { length: chunkBytes - 2 * 65536 - 1000, state: ExtentState.zero },
  ]);
  assert.deepEqual(volume.extents(100, 10_000, 2), [
    { length: blockBytes - 100, state: ExtentState.written },
    { length: blockBytes, state: ExtentState.remote },
  ]);
  assert.deepEqual(volume.extents(70_000, 10, 1), [{ length: 10, state: ExtentState.local }]);
  assert.equal(blob.stats.requests, requests);
  await volume.close();
});

void test("any mix of writes, trims and zeroes at any alignment leaves the disk as a plain array would", async (t) => {
  const size = 48 * blockBytes + 1536;
  const step = fc.record({
    kind: fc.constantFrom("write", "write", "trim", "zero", "allocate", "reopen"),
    offset: fc.nat(size - 1),
    length: fc.oneof(fc.integer({ min: 1, max: 600 }), fc.integer({ min: 1, max: 5 * blockBytes }), fc.constant(size)),
    aligned: fc.boolean(),
    value: fc.integer({ min: 1, max: 255 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 25 }), fc.nat(size), async (steps, blobBytes) => {
      const { env, blob, id } = await newWorld(t, Math.max(1, blobBytes), size);
      const model = Buffer.alloc(size);
      model.fill(0xbb, 0, Math.max(1, blobBytes));
      let volume = await openVolume(env, id, { blob });
      for (const { kind, aligned, value, ...range } of steps) {
        const offset = aligned ? range.offset - (range.offset % blockBytes) : range.offset;
        const length = Math.min(
          aligned ? Math.ceil(range.length / blockBytes) * blockBytes : range.length,
          size - offset,
        );
        const end = offset + length;
        if (kind === "write") {
          await write(volume, offset, filled(value, length));
          model.fill(value, offset, end);
        } else if (kind === "reopen") {
          await volume.close();
          volume = await openVolume(env, id, { blob });
        } else if (kind === "trim") {
          await volume.trim(offset, length);
          const first = Math.ceil(offset / blockBytes) * blockBytes;
          const last = end === size ? size : Math.floor(end / blockBytes) * blockBytes;
          if (first < last) model.fill(0, first, last);
        } else {
          await volume.zero(offset, length, { allocate: kind === "allocate", fast: false });
          model.fill(0, offset, end);
        }
      }
      const found = await readAll(volume);
      await volume.close();
      assert.equal(Buffer.compare(found, model), 0);
    }),
    { numRuns: 60 },
  );
});

void test("a closed volume answers no more, and what it held is there at the next opening", async (t) => {
  const { env, blob, id } = await newWorld(t, 1000, chunkBytes);
  const volume = await openVolume(env, id, { blob });
  await write(volume, 0, filled(1));
  await volume.close();
  await assert.rejects(write(volume, 0, filled(2)), { errno: "ESHUTDOWN" });
  await assert.rejects(volume.close(), { code: "volume-closed" });
  const again = await openVolume(env, id, { blob });
  await expectFilled(again, 0, blockBytes, 1);
  await again.close();
});
