import assert from "node:assert/strict";
import { randomBytes, randomInt } from "node:crypto";
import { test } from "node:test";
import { deflateRawSync, deflateSync, zstdCompressSync } from "node:zlib";
import { type Codec, hasNativeCodecs, NativeUnpacker } from "../../src/base/native-codecs.ts";
import { PortableUnpacker } from "../../src/image/portable-unpacker.ts";

const room = 65_536;
const to = 200_000;
const guard = 0xa5;
const packers = { deflate: deflateRawSync, zlib: deflateSync, zstd: zstdCompressSync };
const codecs = Object.keys(packers) as Codec[];

const half = (bytes: number): Buffer =>
  Buffer.concat([randomBytes(bytes >> 1), Buffer.alloc(bytes - (bytes >> 1), "again ")]);

/** @returns the unpacked bytes, or undefined when it is an error; nothing else in the memory may have been written to */
function unpack(
  kind: typeof NativeUnpacker | typeof PortableUnpacker,
  codec: Codec,
  packed: Buffer,
): Buffer | undefined {
  const memory = Buffer.from(new SharedArrayBuffer(to + room + 4096)).fill(guard);
  memory.set(packed, 100);
  using unpacker = new kind(memory);
  let length = 0;
  try {
    length = unpacker.unpack(codec, { from: 100, length: packed.length, to, room });
  } catch (error) {
    assert.ok(error instanceof Error && !(error instanceof RangeError && !("code" in error)), String(error));
    length = -1;
  }
  assert.ok(memory.subarray(0, 100).every((byte) => byte === guard));
  assert.ok(memory.subarray(100, 100 + packed.length).equals(packed));
  assert.ok(memory.subarray(to + room).every((byte) => byte === guard));
  return length < 0 ? undefined : Buffer.from(memory.subarray(to, to + length));
}

void test("the pinned Node's own libraries are called", () => {
  assert.equal(hasNativeCodecs, true);
});

for (const kind of [NativeUnpacker, PortableUnpacker]) {
  void test(`${kind.name}: what was packed comes back, to the last byte that there is room for and not beyond`, () => {
    for (const codec of codecs) {
      for (const bytes of [0, 1, 4096, room - 1, room]) {
        const content = half(bytes);
        const found = unpack(kind, codec, packers[codec](content));
        assert.ok(found?.equals(content), `${codec}, ${bytes} bytes`);
      }
      for (const bytes of [room + 1, 2 * room, 100 * room]) {
        assert.equal(
          unpack(kind, codec, packers[codec](Buffer.alloc(bytes, 7))),
          undefined,
          `${codec}, ${bytes} bytes`,
        );
        assert.equal(unpack(kind, codec, packers[codec](half(Math.min(bytes, 2 * room)))), undefined);
      }
    }
  });
}

void test("damaged pieces are errors or other bytes, never anything outside their place, and both unpackers agree", () => {
  for (let round = 0; round < 600; round++) {
    const codec = codecs[round % codecs.length];
    const packed = Buffer.from(packers[codec](half(randomInt(1, room))));
    const damage = round % 4;
    if (damage === 3) randomBytes(packed.length).copy(packed);
    else
      for (let n = 0; n <= damage; n++)
        packed[randomInt(Math.min(packed.length, damage === 0 ? 30 : 70_000))] = randomInt(256);
    const cut = round % 5 === 0 ? packed.subarray(0, randomInt(packed.length)) : packed;
    const native = unpack(NativeUnpacker, codec, cut);
    const portable = unpack(PortableUnpacker, codec, cut);
    // Of more than one frame, or half a one, each library has its own view; whoever asks for clusters has neither.
    if (codec === "zstd") continue;
    assert.deepEqual(native, portable, `${codec}, round ${round}: ${cut.toString("base64")}`);
  }
});

void test("a piece outside the memory is refused before anything is called", () => {
  using unpacker = new NativeUnpacker(Buffer.from(new SharedArrayBuffer(1000)));
  for (const piece of [
    { from: -1, length: 10, to: 100, room: 10 },
    { from: 991, length: 10, to: 100, room: 10 },
    { from: 0, length: 10, to: 995, room: 10 },
    { from: 0, length: -5, to: 100, room: 10 },
    { from: 0, length: 10, to: NaN, room: 10 },
  ]) {
    for (const codec of codecs) assert.throws(() => unpacker.unpack(codec, piece), RangeError);
  }
});

void test("one unpacker goes on after a damaged piece, with every codec in turn", () => {
  const memory = Buffer.from(new SharedArrayBuffer(to + room));
  using unpacker = new NativeUnpacker(memory);
  for (let round = 0; round < 60; round++) {
    const codec = codecs[round % codecs.length];
    const content = half(room);
    const packed = packers[codec](content);
    memory.fill(0xff, 0, packed.length);
    assert.throws(() => unpacker.unpack(codec, { from: 0, length: packed.length, to, room }));
    memory.set(packed);
    assert.equal(unpacker.unpack(codec, { from: 0, length: packed.length, to, room }), room);
    assert.ok(memory.subarray(to, to + room).equals(content));
  }
});
