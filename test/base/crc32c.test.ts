import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { crc32c } from "../../src/base/crc32c.ts";

/** The definition, bit by bit. */
function slowly(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return ~crc >>> 0;
}

void test("the check value and the vectors of RFC 3720, B.4", () => {
  const sum = (bytes: Uint8Array): number => crc32c(bytes, 0, bytes.length);
  assert.equal(sum(Buffer.from("123456789")), 0xe3069283);
  assert.equal(sum(Buffer.alloc(32)), 0x8a9136aa);
  assert.equal(sum(Buffer.alloc(32, 0xff)), 0x62a8ab43);
  assert.equal(sum(Buffer.from(Array.from({ length: 32 }, (_, index) => index))), 0x46dd794e);
  assert.equal(sum(Buffer.alloc(0)), 0);
});

void test("any bytes, any range of them, and any split give what the definition gives", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 100 }), fc.nat(100), fc.nat(100), fc.nat(100), (bytes, a, b, c) => {
      const [start, middle, end] = [a, b, c].map((at) => Math.min(at, bytes.length)).sort((x, y) => x - y);
      const whole = crc32c(bytes, start, end);
      assert.equal(whole, slowly(bytes.subarray(start, end)));
      assert.equal(crc32c(bytes, middle, end, crc32c(bytes, start, middle)), whole);
    }),
  );
});
