import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { deflateRawSync, zstdCompressSync } from "node:zlib";
import type { ReadOptions, Sink } from "../../src/backend/backend.ts";
import type { ImageReader } from "../../src/image/image-format.ts";
import type { Extent } from "../../src/image/block-map.ts";
import { MappedReader } from "../../src/image/mapped-reader.ts";
import { readBytes } from "../../src/image/read-bytes.ts";
import { unpackThreads, type Piece } from "../../src/image/unpack-threads.ts";

const clusterBytes = 65_536;
const clusters = Array.from({ length: 12 }, (_, n) =>
  Buffer.concat([randomBytes(100 + n), Buffer.alloc(clusterBytes - 100 - n, n)]),
);

async function running(): Promise<void> {
  while (!unpackThreads.ready()) await new Promise((resolve) => setTimeout(resolve, 10)); // or the test's time is over
}

/** Puts the packed clusters behind each other into a slab. */
function fill(codec: "deflate" | "zstd", packed: Buffer[]): { slab: ReturnType<typeof take>; pieces: Piece[] } {
  const slab = take(packed);
  let from = 0;
  const pieces = packed.map((bytes) => {
    slab.packed.set(bytes, from);
    from += bytes.length;
    return { from: from - bytes.length, length: bytes.length, codec, bytes: clusterBytes };
  });
  return { slab, pieces };
}

const take = (packed: Buffer[]): ReturnType<typeof unpackThreads.take> =>
  unpackThreads.take(
    packed.reduce((sum, { length }) => sum + length, 0),
    packed.length * clusterBytes,
  );

void test("many batches at once come back with the bytes that each of them was about", async () => {
  await running();
  const batches = Array.from({ length: 40 }, async (_, n) => {
    const codec = n % 2 === 0 ? "deflate" : "zstd";
    const mine = clusters.slice(n % 5, 6 + (n % 7));
    const packed = mine.map((bytes) => (codec === "deflate" ? deflateRawSync(bytes) : zstdCompressSync(bytes)));
    const { slab, pieces } = fill(codec, packed);
    const { lengths, failure } = await unpackThreads.unpack(slab, pieces, n % 3 === 0);
    assert.equal(failure, undefined);
    assert.deepEqual(
      lengths,
      mine.map(() => clusterBytes),
    );
    const found = Buffer.from(slab.memory, slab.unpackedAt, mine.length * clusterBytes);
    assert.ok(found.equals(Buffer.concat(mine)));
    unpackThreads.give(slab);
  });
  await Promise.all(batches);
});

void test("a piece that is damaged, too long or too short is told, and the thread goes on", async () => {
  await running();
  const good = deflateRawSync(clusters[0]);
  for (const [bad, why] of [
    [Buffer.alloc(50, 0xff), /invalid/],
    [deflateRawSync(Buffer.alloc(clusterBytes + 1)), /more than 65536|larger than/],
    [deflateRawSync(Buffer.alloc(clusterBytes * 100)), /more than 65536|larger than/],
    [deflateRawSync(Buffer.alloc(clusterBytes - 1)), /65535 bytes instead of 65536/],
    [good.subarray(0, 40), /unexpected end/],
  ] as const) {
    const { slab, pieces } = fill("deflate", [good, bad, good]);
    const { lengths, failure } = await unpackThreads.unpack(slab, pieces, false);
    assert.equal(lengths.length, 1);
    assert.match(failure!, why);
  }
});

void test("what waits in the background is overtaken by what somebody waits for", async () => {
  await running();
  const { slab, pieces } = fill(
    "deflate",
    clusters.map((bytes) => deflateRawSync(bytes)),
  );
  const order: string[] = [];
  const send = (background: boolean): Promise<unknown> =>
    unpackThreads.unpack(slab, pieces, background).then(() => order.push(background ? "background" : "foreground"));
  const behind = Array.from({ length: 60 }, () => send(true));
  const before = Array.from({ length: 3 }, () => send(false));
  await Promise.all([...behind, ...before]);
  // All but those that threads had already.
  assert.ok(order.lastIndexOf("foreground") < 40, order.join(" "));
});

void test("stored and packed clusters between each other are read right from a batch, and none of its memory is used twice", async () => {
  await running();
  const packed = clusters.map((bytes, n) => (n % 3 === 0 ? bytes : deflateRawSync(bytes)));
  const content = Buffer.concat(packed);
  const source: ImageReader = {
    size: content.length,
    async read(offset: number, length: number, sink: Sink, _options?: ReadOptions) {
      await new Promise(setImmediate);
      await sink(content.subarray(offset, offset + length));
    },
  };
  let at = 0;
  const extents = packed.map((bytes, n): Extent => {
    at += bytes.length;
    const where = { length: clusterBytes, at: at - bytes.length };
    if (n % 3 === 0) return { kind: "stored", ...where };
    return { kind: "packed", ...where, packedBytes: bytes.length, codec: "deflate", bytes: clusterBytes, skip: 0 };
  });
  const reader = new MappedReader(source, {
    name: "test",
    size: clusters.length * clusterBytes,
    extents: (offset, length) =>
      Promise.resolve(extents.slice(offset / clusterBytes, (offset + length) / clusterBytes)),
    zeroRun: () => Promise.resolve(0),
  });
  const expected = Buffer.concat(clusters);
  const reads = Array.from({ length: 30 }, async (_, n) => {
    const from = (n % 6) * clusterBytes;
    const bytes = await readBytes(reader, from, 6 * clusterBytes);
    assert.ok(bytes.equals(expected.subarray(from, from + 6 * clusterBytes)));
  });
  await Promise.all(reads);
});
