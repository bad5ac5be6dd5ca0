import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { formatDuration, formatExactSize, formatSize, parseSize } from "../../src/base/units.ts";

void test("sizes are powers of 1024, with or without a fraction", () => {
  assert.equal(parseSize("512"), 512);
  assert.equal(parseSize("64k"), 65_536);
  assert.equal(parseSize("64K"), 65_536);
  assert.equal(parseSize("10M"), 10 * 2 ** 20);
  assert.equal(parseSize("1.5G"), 1.5 * 2 ** 30);
  assert.equal(parseSize("2T"), 2 * 2 ** 40);
});

void test("what is no size is refused with the spelling that works", () => {
  for (const text of ["", "k", "-1", "1e9", "10X", "0x10", "1.0001", "10 M", "9999999T", "NaN"]) {
    assert.throws(() => parseSize(text), { code: "bad-size", hint: /512, 64k, 10M/ }, text);
  }
});

void test("an exactly formatted size parses to the same number of bytes", () => {
  fc.assert(
    fc.property(fc.maxSafeNat(), (bytes) => {
      assert.equal(parseSize(formatExactSize(bytes)), bytes);
    }),
  );
});

void test("sizes for people have three digits or so", () => {
  assert.deepEqual([0, 1023, 1024, 1536, 150 * 2 ** 20, 2 ** 40, 2 ** 20 - 1].map(formatSize), [
    "0",
    "1023",
    "1k",
    "1.5k",
    "150M",
    "1T",
    "1M",
  ]);
});

void test("durations name the two largest units", () => {
  assert.deepEqual([0, 4, 200, 7500, 7200, 273_600].map(formatDuration), [
    "0s",
    "4s",
    "3m 20s",
    "2h 5m",
    "2h",
    "3d 4h",
  ]);
});
