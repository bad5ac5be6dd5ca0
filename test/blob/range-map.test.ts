import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { type BlobMeta, usualUnit } from "../../src/blob/blob-meta.ts";
import { RangeMap } from "../../src/blob/range-map.ts";
import { decodeRangeMap, encodeRangeMap } from "../../src/blob/range-map-file.ts";

const UNIT = 4096;

/** A map, and the same as plain booleans. */
function build(size: number, units: number[]): { map: RangeMap; model: boolean[] } {
  const map = new RangeMap(size, UNIT);
  const model = Array.from({ length: Math.ceil(size / UNIT) }, () => false);
  for (const unit of units) {
    if (unit >= model.length) continue;
    map.add(unit);
    model[unit] = true;
  }
  return { map, model };
}

const sizes = fc.integer({ min: 1, max: 100 * UNIT });
const someUnits = fc.array(fc.integer({ min: 0, max: 99 }), { maxLength: 150 });

void test("readiness, runs and counts agree with a plain list of units", () => {
  fc.assert(
    fc.property(
      sizes,
      someUnits,
      fc.nat(110 * UNIT),
      fc.integer({ min: 1, max: 110 * UNIT }),
      (size, units, at, length) => {
        const { map, model } = build(size, units);
        const ready = (offset: number): boolean => offset >= size || model[Math.floor(offset / UNIT)];
        const last = Math.min(at + length, size);
        let all = true;
        for (let offset = at; offset < last; offset = Math.floor(offset / UNIT + 1) * UNIT) all &&= ready(offset);
        assert.equal(map.isReady(at, length), all);
        let run = 0;
        while (run < length && ready(at + run) === ready(at)) {
          run = (Math.floor((at + run) / UNIT) + 1) * UNIT - at;
          if (!ready(at)) run = Math.min(run, size - at);
        }
        assert.equal(map.readyRun(at, length), Math.min(run, length));
        let bytes = 0;
        model.forEach((isReady, unit) => (bytes += isReady ? Math.min(UNIT, size - unit * UNIT) : 0));
        assert.equal(map.readyBytes, bytes);
        assert.equal(map.missing, model.filter((isReady) => !isReady).length);
        const from = Math.floor(at / UNIT);
        const missing = model.findIndex((isReady, unit) => unit >= from && !isReady);
        assert.equal(
          map.nextMissing(from, model.length),
          missing === -1 || from >= model.length ? model.length : missing,
        );
      },
    ),
  );
});

void test("sets of units can be joined and cut", () => {
  fc.assert(
    fc.property(sizes, someUnits, someUnits, (size, first, second) => {
      const a = build(size, first);
      const b = build(size, second);
      const lost = a.map.keepOnly(b.map);
      const kept = a.model.map((ready, unit) => ready && b.model[unit]);
      assert.deepEqual(
        kept.map((_, unit) => a.map.has(unit)),
        kept,
      );
      assert.equal(lost, a.model.filter(Boolean).length - kept.filter(Boolean).length);
      a.map.addAll(b.map.copyBits());
      assert.deepEqual(a.map.copyBits(), b.map.copyBits());
      assert.equal(a.map.missing, b.map.missing);
    }),
  );
});

const meta: BlobMeta = {
  id: "00112233445566778899aabbccddeeff",
  url: "http://example.test/a",
  imageFormat: "raw",
  identity: { size: 21 * UNIT - 5, version: 'etag:"a"', strong: true },
  size: 21 * UNIT - 5,
  unitBytes: UNIT,
  createdAt: "2026-01-01T00:00:00.000Z",
};
const bits = Uint8Array.from([0b10101010, 0xff, 0b00010001]);

void test("a range map file gives back its bits", () => {
  assert.deepEqual(decodeRangeMap(encodeRangeMap(meta, 77, bits), "map", meta, 77), { bits });
});

void test("durability rule 12: a range map of another blob, identity, size, unit or data file is not believed", () => {
  const file = encodeRangeMap(meta, 77, bits);
  const reasonFor = (other: Partial<BlobMeta>, inode = 77): string => {
    const decoded = decodeRangeMap(file, "map", { ...meta, ...other }, inode);
    return "reason" in decoded ? decoded.reason : "believed";
  };
  assert.match(reasonFor({}, 78), /inode is 77, not 78/);
  assert.match(reasonFor({ id: "f".repeat(32) }), /belongs to blob 0011/);
  assert.match(reasonFor({ url: "http://example.test/b" }), /another identity/);
  assert.match(reasonFor({ identity: { ...meta.identity, version: 'etag:"b"' } }), /another identity/);
  assert.match(reasonFor({ imageFormat: "qcow2" }), /another identity/);
  assert.match(reasonFor({ size: 20 * UNIT }), /blob size/);
  assert.match(reasonFor({ unitBytes: 2 * UNIT }), /unit/);
});

void test("a range map file with any byte changed, or cut short, is not believed", () => {
  const file = encodeRangeMap(meta, 77, bits);
  for (let at = 0; at < file.length; at++) {
    const damaged = Buffer.from(file);
    damaged[at] ^= 0x10;
    if (at >= 8 && at < 12) continue; // the version: below
    assert.ok("reason" in decodeRangeMap(damaged, "map", meta, 77), `byte ${at}`);
    assert.ok("reason" in decodeRangeMap(file.subarray(0, at), "map", meta, 77), `cut at ${at}`);
  }
});

void test("a range map of a later format version is refused, naming both versions", () => {
  const file = encodeRangeMap(meta, 77, bits);
  file.writeUInt32LE(2, 8);
  assert.throws(
    () => decodeRangeMap(file, "/d/map", meta, 77),
    /\/d\/map has format version 2, this Ullage knows up to 1/,
  );
});

void test("a blob's unit is 64 KiB up to 1 TiB, then grows with it, so that its map stays at 2 MiB", () => {
  const TiB = 2 ** 40;
  const units = [0, 1, TiB, TiB + 1, 4 * TiB, 128 * TiB, 1024 * TiB].map((size) => usualUnit(size) / 1024);
  assert.deepEqual(units, [64, 64, 64, 128, 256, 8192, 8192]);
});
