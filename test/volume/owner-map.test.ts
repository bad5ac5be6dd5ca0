import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { chunkBlocks, OwnerMap } from "../../src/volume/map/owner-map.ts";

/** Counts as not written. */
const blob = 2;

/** An edit or a copy, on a map of `blocks` blocks. */
type Step =
  | { do: "set"; start: number; count: number; owner: number }
  | { do: "setChunk"; chunk: number; seed: number }
  | { do: "grow"; by: number }
  | { do: "freeze" }
  | { do: "release"; which: number };

const anyStep = (blocks: number): fc.Arbitrary<Step> =>
  fc.oneof(
    {
      weight: 8,
      arbitrary: fc
        .record({
          start: fc.oneof(
            fc.nat(blocks - 1),
            fc.nat(Math.ceil(blocks / chunkBlocks) - 1).map((n) => n * chunkBlocks),
          ),
          count: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.constant(chunkBlocks), fc.constant(blocks)),
          owner: fc.constantFrom(0, 1, 2, 0xfffe),
        })
        .map(({ start, count, owner }) => ({
          do: "set" as const,
          start,
          count: Math.min(count, blocks - start),
          owner,
        })),
    },
    {
      weight: 2,
      arbitrary: fc.record({
        do: fc.constant("setChunk" as const),
        chunk: fc.nat(Math.ceil(blocks / chunkBlocks) - 1),
        seed: fc.nat(5),
      }),
    },
    { weight: 1, arbitrary: fc.record({ do: fc.constant("grow" as const), by: fc.integer({ min: 1, max: 1500 }) }) },
    { weight: 1, arbitrary: fc.constant({ do: "freeze" as const }) },
    { weight: 1, arbitrary: fc.nat(3).map((which) => ({ do: "release" as const, which })) },
  );

function sameAs(map: OwnerMap, owners: Uint16Array, random: (bound: number) => number): void {
  for (let block = 0; block < owners.length; block++) {
    if (map.ownerOf(block) !== owners[block])
      assert.fail(`block ${block}: ${map.ownerOf(block)}, not ${owners[block]}`);
  }
  assert.equal(
    map.writtenBlocks,
    owners.reduce((total, each) => total + (each === 0 || each === blob ? 0 : 1), 0),
    "blocks of layers",
  );
  for (const owner of [0, 1, 2, 0xfffe]) {
    assert.equal(
      map.count(owner),
      owners.reduce((total, each) => total + (each === owner ? 1 : 0), 0),
    );
    const from = random(owners.length);
    const to = from + random(owners.length - from + 1);
    const found = owners.subarray(0, to).indexOf(owner, from);
    assert.equal(map.next(owner, from, to), found, `next(${owner}, ${from}, ${to})`);
  }
  for (let times = 0; times < 20; times++) {
    const block = random(owners.length);
    const limit = 1 + random(owners.length);
    let end = block + 1;
    while (end < Math.min(block + limit, owners.length) && owners[end] === owners[block]) end++;
    assert.equal(map.runLength(block, limit), end - block, `runLength(${block}, ${limit})`);
    assert.equal(map.ownsAll(owners[block], block, end - block), true);
    if (end < owners.length && owners[end] !== owners[block]) {
      assert.equal(map.ownsAll(owners[block], block, end - block + 1), false);
    }
  }
}

void test("edits, frozen copies and releases give what a plain array gives", () => {
  const sizes = fc.constantFrom(1, 1023, 1024, 1025, 3 * 1024, 3 * 1024 + 7);
  const world = sizes.chain((blocks) =>
    fc.record({ blocks: fc.constant(blocks), steps: fc.array(anyStep(blocks), { maxLength: 40 }), seed: fc.nat() }),
  );
  fc.assert(
    fc.property(world, ({ blocks, steps, seed }) => {
      let state = seed;
      const random = (bound: number): number => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        return (state >>> 8) % bound;
      };
      const map = new OwnerMap(blocks);
      map.noteBlob(blob);
      let owners = new Uint16Array(blocks);
      const frozen: { map: OwnerMap; owners: Uint16Array }[] = [];
      for (const step of steps) {
        if (step.do === "set") {
          map.set(step.start, step.count, step.owner);
          owners.fill(step.owner, step.start, step.start + step.count);
        } else if (step.do === "setChunk") {
          // As a map file describes it, with something behind the end of a short last chunk.
          const values = Uint16Array.from({ length: chunkBlocks }, (_, at) => (at * step.seed) % 3);
          map.setMixedChunk(step.chunk, values);
          const at = step.chunk * chunkBlocks;
          owners.set(values.subarray(0, owners.length - at), at);
        } else if (step.do === "grow") {
          map.grow(owners.length + step.by);
          const larger = new Uint16Array(owners.length + step.by);
          larger.set(owners);
          owners = larger;
        } else if (step.do === "freeze") {
          frozen.push({ map: map.freeze(), owners: owners.slice() });
        } else if (step.which < frozen.length) {
          frozen.splice(step.which, 1)[0].map.release();
        }
      }
      sameAs(map, owners, random);
      for (const copy of frozen) sameAs(copy.map, copy.owners, random);
    }),
    { numRuns: 150 },
  );
});

void test("a chunk that is filled piece by piece becomes uniform again, from either end", () => {
  for (const ascending of [true, false]) {
    const map = new OwnerMap(2 * chunkBlocks + 10);
    for (const chunk of [0, 2]) {
      const length = chunk === 2 ? 10 : chunkBlocks;
      for (let n = 0; n < length; n++) map.set(chunk * chunkBlocks + (ascending ? n : length - 1 - n), 1, 7);
      assert.equal(map.uniformOwner(chunk), 7);
    }
    assert.equal(map.uniformOwner(1), 0);
  }
});

void test("a frozen copy keeps its owners though thousands of chunks change, and its slots are used again", () => {
  const chunks = 600;
  const map = new OwnerMap(chunks * chunkBlocks);
  for (let round = 1; round <= 4; round++) {
    for (let chunk = 0; chunk < chunks; chunk++) map.set(chunk * chunkBlocks + 5, 1, round);
    const copy = map.freeze();
    for (let chunk = 0; chunk < chunks; chunk++) map.set(chunk * chunkBlocks + 6, 1, 100 + round);
    assert.equal(copy.count(round), chunks);
    assert.equal(copy.count(100 + round), 0);
    assert.equal(map.count(100 + round), chunks);
    copy.release();
  }
});

void test("owners set chunk by chunk, as a checkpoint is read, ignore what lies beyond the end", () => {
  const map = new OwnerMap(chunkBlocks + 3);
  const owners = new Uint16Array(chunkBlocks).fill(9, 3);
  map.setMixedChunk(1, owners);
  assert.equal(map.uniformOwner(1), 0, "the 3 blocks that count are alike");
  owners[2] = 4;
  map.setMixedChunk(1, owners);
  assert.deepEqual([map.ownerOf(chunkBlocks), map.ownerOf(chunkBlocks + 2)], [0, 4]);
  assert.equal(map.count(9), 0);
});
