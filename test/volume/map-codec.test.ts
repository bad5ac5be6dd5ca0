import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { CorruptionError } from "../../src/base/errors.ts";
import { encodeMap, MapDecoder } from "../../src/volume/map/map-codec.ts";
import { chunkBlocks, OwnerMap } from "../../src/volume/map/owner-map.ts";
import { OwnerTable } from "../../src/volume/map/owner-table.ts";

const id = (byte: number): string => byte.toString(16).padStart(2, "0").repeat(16);

function tableOf(...owners: number[]): OwnerTable {
  const table = new OwnerTable();
  for (const owner of owners) table.put(owner, { kind: owner % 2 === 0 ? "blob" : "layer", id: id(owner & 0xff) });
  return table;
}

const framesOf = (map: OwnerMap, table: OwnerTable): Buffer[] => [...encodeMapCopied(map, table)];

/** Frames are only valid until the next one is asked for. */
function* encodeMapCopied(map: OwnerMap, table: OwnerTable): Generator<Buffer> {
  for (const frame of encodeMap(map, table)) yield Buffer.from(frame);
}

function decode(frames: Buffer[], blocks: number): { map: OwnerMap; table: OwnerTable } {
  const map = new OwnerMap(blocks);
  const table = new OwnerTable();
  const decoder = new MapDecoder(map, table, "map.1");
  for (const frame of frames) decoder.add(frame);
  decoder.finish();
  return { map, table };
}

function assertEqualMaps(one: OwnerMap, other: OwnerMap): void {
  assert.equal(one.blocks, other.blocks);
  for (let block = 0; block < one.blocks; block++) {
    if (one.ownerOf(block) !== other.ownerOf(block)) assert.fail(`block ${block} differs`);
  }
}

const edits = (blocks: number): fc.Arbitrary<[number, number, number][]> =>
  fc.array(
    fc.tuple(
      fc.nat(blocks - 1),
      fc.oneof(fc.integer({ min: 1, max: 9 }), fc.nat(5000)),
      fc.constantFrom(0, 1, 2, 0xfffe),
    ),
    { maxLength: 60 },
  );

void test("any map comes back as it was, with its owner table", () => {
  const worlds = fc
    .constantFrom(1, 1000, chunkBlocks, 3 * chunkBlocks + 1, 20 * chunkBlocks)
    .chain((blocks) => fc.tuple(fc.constant(blocks), edits(blocks)));
  fc.assert(
    fc.property(worlds, ([blocks, list]) => {
      const map = new OwnerMap(blocks);
      for (const [start, count, owner] of list) if (count > 0) map.set(start, Math.min(count, blocks - start), owner);
      const table = tableOf(1, 2, 0xfffe);
      const decoded = decode(framesOf(map, table), blocks);
      assertEqualMaps(decoded.map, map);
      assert.deepEqual([...decoded.table.entries()], [...table.entries()]);
    }),
    { numRuns: 100 },
  );
});

void test("a chunk where every block has another owner than its neighbour comes back as well", () => {
  const map = new OwnerMap(2 * chunkBlocks);
  for (let block = 0; block < map.blocks; block++) map.set(block, 1, 1 + (block % 2));
  assertEqualMaps(decode(framesOf(map, tableOf(1, 2)), map.blocks).map, map);
});

void test("maps of terabytes come in many bounded frames", () => {
  const map = new OwnerMap(200_000 * chunkBlocks);
  for (let chunk = 0; chunk < 400; chunk++) {
    for (let block = 0; block < chunkBlocks; block += 2) map.set(chunk * 3 * chunkBlocks + block, 1, 1);
  }
  const frames = framesOf(map, tableOf(1));
  assert.ok(frames.length > 4);
  assert.ok(frames.every((frame) => frame.length <= 512 * 1024));
  const decoded = decode(frames, map.blocks).map;
  assert.equal(decoded.count(1), map.count(1));
  for (let chunk = 0; chunk < 1200; chunk++) {
    assert.equal(decoded.uniformOwner(chunk) < 0, map.uniformOwner(chunk) < 0);
  }
});

void test("no frame may be cut off anywhere, missing or doubled", () => {
  const map = new OwnerMap(5 * chunkBlocks);
  map.set(10, 20, 1);
  map.set(3 * chunkBlocks, chunkBlocks, 2);
  for (let block = 0; block < chunkBlocks; block += 2) map.set(2 * chunkBlocks + block, 1, 1);
  const frames = framesOf(map, tableOf(1, 2));
  const [table, chunks] = frames;
  assert.equal(frames.length, 2);
  for (let length = 0; length < table.length; length++) {
    assert.throws(() => decode([table.subarray(0, length), chunks], map.blocks), CorruptionError, `table ${length}`);
  }
  for (let length = 0; length < chunks.length; length++) {
    assert.throws(() => decode([table, chunks.subarray(0, length)], map.blocks), CorruptionError, `chunks ${length}`);
  }
  assert.throws(() => decode([table], map.blocks), CorruptionError);
  assert.throws(() => decode([table, chunks, chunks], map.blocks), CorruptionError);
});

void test("whatever a damaged frame says is refused as damage or is a map that its table explains", () => {
  const map = new OwnerMap(3 * chunkBlocks);
  map.set(10, 20, 1);
  map.set(chunkBlocks, chunkBlocks, 2);
  for (let block = 0; block < chunkBlocks; block += 2) map.set(2 * chunkBlocks + block, 1, 2);
  const frames = framesOf(map, tableOf(1, 2));
  for (const [index, frame] of frames.entries()) {
    for (let at = 0; at < frame.length; at++) {
      for (const flip of [1, 0x80, 0xff]) {
        const damaged = frames.map((each) => Buffer.from(each));
        damaged[index][at] ^= flip;
        let decoded: ReturnType<typeof decode>;
        try {
          decoded = decode(damaged, map.blocks);
        } catch (error) {
          if (!(error instanceof CorruptionError)) throw new Error(`frame ${index} byte ${at}`, { cause: error });
          continue;
        }
        for (let block = 0; block < map.blocks; block++) {
          const owner: number = decoded.map.ownerOf(block);
          assert.ok(owner === 0 || decoded.table.has(owner));
        }
      }
    }
  }
});

void test("rule 18: ids run out with a clear error, and 0 and 0xffff are never handed out", () => {
  const table = new OwnerTable();
  for (let n = 1; n < 0xfffe; n++) if (n !== 70) table.put(n, { kind: "layer", id: id(1) });
  assert.equal(table.add({ kind: "layer", id: id(1) }), 70);
  assert.equal(table.add({ kind: "layer", id: id(1) }), 0xfffe);
  assert.throws(() => table.add({ kind: "layer", id: id(1) }), { code: "owners-exhausted" });
  assert.throws(() => table.put(0, { kind: "layer", id: id(1) }), RangeError);
  assert.throws(() => table.put(0xffff, { kind: "layer", id: id(1) }), RangeError);
});
