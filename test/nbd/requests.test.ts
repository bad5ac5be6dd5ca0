import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import test from "node:test";
import { ExtentState } from "../../src/export/block-device.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { requireTool } from "../support/tools.ts";
import { RawClient, requestBytes } from "./raw-client.ts";
import { MiB, nbdsh, serve, until } from "./support.ts";

const READ = 0;
const WRITE = 1;
const FLUSH = 3;
const TRIM = 4;
const CACHE = 5;
const ZEROES = 6;
const STATUS = 7;
const FUA = 1;
const NO_HOLE = 2;
const DF = 4;
const REQ_ONE = 8;
const FAST_ZERO = 16;
const EPERM = 1;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;
const ENOTSUP = 95;
const SIZE = 16 * MiB;

for (const structured of [true, false]) {
  const form = structured ? "structured" : "simple";

  void test(`reads of every alignment and length are exact with ${form} replies`, async (t) => {
    const { path, device } = await serve(t);
    randomBytes(SIZE).copy(device.data);
    for (const slow of [false, true]) {
      device.slow = slow;
      const client = await RawClient.open(path, { structured });
      for (const [offset, length] of [
        [0, 1],
        [SIZE - 1, 1],
        [511, 2],
        [4095, 4098],
        [0, 256 * 1024],
        [1, 256 * 1024 + 1],
        [12345, MiB],
        [7, MiB + 1],
        [3, 5 * MiB + 17],
        [0, SIZE],
      ]) {
        client.request(READ, { offset, length, cookie: 0xfedcba9876543210n });
        const got = Buffer.alloc(length);
        let bytes = 0;
        for (;;) {
          const reply = await client.reply(length);
          assert.equal(reply.cookie, 0xfedcba9876543210n);
          assert.equal(reply.error, 0);
          assert.equal(reply.structured, structured);
          if (!structured) {
            bytes = reply.payload.copy(got);
          } else if (reply.type === 1) {
            bytes += reply.payload.copy(got, Number(reply.payload.readBigUInt64BE(0)) - offset, 8);
          }
          if (reply.done) break;
        }
        assert.equal(bytes, length);
        assert.ok(got.equals(device.data.subarray(offset, offset + length)), `${length} bytes at ${offset}`);
      }
      client.destroy();
    }
  });

  void test(`errors are replies, and the connection goes on, with ${form} replies`, async (t) => {
    const { path, device, log } = await serve(t);
    for (const slow of [false, true]) {
      device.slow = slow;
      const client = await RawClient.open(path, { structured });
      for (const [errno, expected] of [
        ["EIO", EIO],
        ["ENOSPC", ENOSPC],
        ["EDQUOT", ENOSPC],
        ["EROFS", EPERM],
        ["ENOMEM", 12],
        ["EINVAL", EINVAL],
        ["ESHUTDOWN", 108],
        ["ENOTSUP", EIO],
        ["ENODEV", EIO],
      ] as const) {
        device.fault = (operation) => (operation === "attach" ? undefined : errno);
        for (const [command, payload] of [
          [READ, undefined],
          [WRITE, Buffer.alloc(512, 1)],
          [FLUSH, undefined],
          [TRIM, undefined],
          [CACHE, undefined],
          [ZEROES, undefined],
        ] as const) {
          const length = command === FLUSH ? 0 : 512;
          client.request(command, { cookie: 5n, length, ...(payload === undefined ? {} : { payload }) });
          const reply = await client.reply();
          assert.equal(reply.error, expected, `command ${command}, ${errno}`);
          assert.equal(reply.structured, structured);
          assert.equal(reply.cookie, 5n);
        }
        // A read of several pieces and one of several fragments fail as a whole.
        for (const length of [MiB, 3 * MiB]) {
          client.request(READ, { length });
          for (;;) {
            const reply = await client.reply(length);
            if (!reply.done) continue;
            assert.equal(reply.error, expected);
            break;
          }
        }
      }
      device.fault = () => undefined;
      client.request(READ, { length: 512 });
      assert.equal((await client.reply(512)).error, 0);
      client.destroy();
    }
    assert.match(log.join("\n"), /warn: nbd: unix: .* of export "disk" failed: injected/);
  });

  void test(`the gate refuses what is out of bounds, malformed or unknown with ${form} replies`, async (t) => {
    const { path, device } = await serve(t);
    const client = await RawClient.open(path, { structured });
    const cases: [number, Parameters<typeof requestBytes>[1] & object, number][] = [
      [READ, { length: 0 }, EINVAL],
      [WRITE, { payload: Buffer.alloc(0) }, EINVAL],
      [TRIM, { length: 0 }, EINVAL],
      [ZEROES, { length: 0 }, EINVAL],
      [CACHE, { length: 0 }, EINVAL],
      [READ, { offset: SIZE, length: 1 }, EINVAL],
      [READ, { offset: SIZE - 1, length: 2 }, EINVAL],
      [WRITE, { offset: SIZE - 1, payload: Buffer.alloc(2) }, ENOSPC],
      [ZEROES, { offset: SIZE - 1, length: 2 }, ENOSPC],
      [TRIM, { offset: SIZE - 1, length: 2 }, EINVAL],
      [CACHE, { offset: SIZE, length: 1 }, EINVAL],
      // 2^53 + 1 has no Number of its own, and 2^64 - 4096 + 4096 wraps to 0 in 64 bits.
      [READ, { offset: 2n ** 53n + 1n, length: 1 }, EINVAL],
      [READ, { offset: 2n ** 64n - 4096n, length: 4096 }, EINVAL],
      [WRITE, { offset: 2n ** 64n - 512n, payload: Buffer.alloc(512) }, ENOSPC],
      [ZEROES, { offset: 2n ** 63n, length: 4096 }, ENOSPC],
      [READ, { length: 32 * MiB + 1 }, EOVERFLOW],
      [READ, { length: 0xffffffff }, EOVERFLOW],
      [TRIM, { length: 0xffffffff }, EINVAL],
      [FLUSH, { offset: 1 }, EINVAL],
      [FLUSH, { length: 1 }, EINVAL],
      [READ, { length: 1, flags: 0x8000 }, EINVAL],
      [READ, { length: 1, flags: NO_HOLE }, EINVAL],
      [WRITE, { payload: Buffer.alloc(9), flags: DF }, EINVAL],
      [TRIM, { length: 512, flags: NO_HOLE }, EINVAL],
      [CACHE, { length: 512, flags: REQ_ONE }, EINVAL],
      [STATUS, { length: 512 }, EINVAL],
      [8, {}, EINVAL],
      [77, {}, EINVAL],
      [0xffff, { length: 5000 }, EINVAL],
    ];
    for (const [command, request, expected] of cases) {
      client.request(command, { ...request, cookie: 9n });
      const reply = await client.reply();
      assert.equal(
        reply.error,
        expected,
        `command ${command} ${JSON.stringify(request, (_key, value: unknown) => String(value))}`,
      );
      assert.equal(reply.cookie, 9n);
    }
    client.request(READ, { length: 1, flags: DF });
    assert.equal((await client.reply(1)).error, structured ? 0 : EINVAL);
    const { read, write, trim, zero, prefetch } = device.counts;
    assert.deepEqual([read, write, trim, zero, prefetch], [structured ? 1 : 0, 0, 0, 0, 0]);
  });
}

void test("an error chunk names the reason", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.open(path);
  client.request(READ, { offset: SIZE, length: 4096 });
  const reply = await client.reply();
  assert.equal(reply.type, 0x8001);
  assert.equal(reply.payload.readUInt16BE(4), reply.payload.length - 6);
  assert.match(reply.payload.toString("utf8", 6), /read of 4096 bytes at 16777216 is beyond the end of the export/);
});

void test("a refused write's payload is skipped, however long it is", async (t) => {
  const { path, device } = await serve(t);
  const client = await RawClient.open(path);
  const payload = Buffer.alloc(33 * MiB, 7);
  client.request(WRITE, { payload, cookie: 1n });
  client.request(WRITE, { payload: Buffer.from("kept"), offset: 10, cookie: 2n });
  client.request(WRITE, { payload: Buffer.alloc(100), offset: SIZE, cookie: 3n });
  client.request(READ, { length: 4, offset: 10, cookie: 4n });
  assert.deepEqual([(await client.reply()).error, (await client.reply()).error], [EINVAL, 0]);
  assert.equal((await client.reply()).error, ENOSPC);
  assert.equal((await client.reply()).payload.toString("latin1", 8), "kept");
  assert.equal(device.data[0], 0);
});

void test("writes of every length arrive, in one piece or in drops, and are done only when complete", async (t) => {
  const { path, device } = await serve(t, { device: new MemoryDevice({ size: 40 * MiB }) });
  for (const slow of [false, true]) {
    device.slow = slow;
    device.data.fill(0);
    const client = await RawClient.open(path);
    const expected = Buffer.alloc(40 * MiB);
    let offset = 0;
    for (const length of [1, 511, 4096, 70_000, 256 * 1024, 300_000, MiB, 2 * MiB, 2 * MiB + 4096, 5 * MiB, 17 * MiB]) {
      const payload = randomBytes(length);
      payload.copy(expected, offset);
      client.request(WRITE, { offset, payload });
      offset += length;
    }
    for (let i = 0; i < 11; i++) assert.equal((await client.reply()).error, 0);
    const writes = device.counts.write;
    const bytes = requestBytes(WRITE, { offset, payload: Buffer.from("piecemeal") });
    for (const byte of bytes.subarray(0, -1)) {
      client.write(Buffer.from([byte]));
      await new Promise(setImmediate);
    }
    assert.equal(device.counts.write, writes);
    client.write(bytes.subarray(-1));
    assert.equal((await client.reply()).error, 0);
    expected.write("piecemeal", offset);
    assert.ok(device.data.equals(expected));
    client.destroy();
  }
});

void test("a full 32 MiB goes in and out in one request, in simple and structured replies", async (t) => {
  const { path, device } = await serve(t, { device: new MemoryDevice({ size: 32 * MiB }) });
  const payload = randomBytes(32 * MiB);
  for (const structured of [true, false]) {
    const client = await RawClient.open(path, { structured });
    client.request(WRITE, { payload });
    assert.equal((await client.reply()).error, 0);
    assert.ok(device.data.equals(payload));
    client.request(READ, { length: 32 * MiB });
    let got = 0;
    for (;;) {
      const reply = await client.reply(32 * MiB);
      assert.equal(reply.error, 0);
      got += reply.payload.length - (structured && reply.type === 1 ? 8 : 0);
      if (reply.done) break;
    }
    assert.equal(got, 32 * MiB);
    client.destroy();
  }
});

void test("DF brings one content chunk, whatever the length", async (t) => {
  const { path, device } = await serve(t);
  randomBytes(SIZE).copy(device.data);
  const client = await RawClient.open(path);
  for (const length of [65536, MiB, 3 * MiB, SIZE]) {
    client.request(READ, { length, flags: DF });
    const reply = await client.reply();
    assert.equal(reply.type, 1);
    assert.equal(reply.done, true);
    assert.ok(reply.payload.subarray(8).equals(device.data.subarray(0, length)));
  }
});

void test("FUA is durable when it is answered: write, trim and write-zeroes; and harmless elsewhere", async (t) => {
  const { path, device } = await serve(t);
  for (const slow of [false, true]) {
    device.slow = slow;
    device.trackDurable();
    const client = await RawClient.open(path);
    client.request(WRITE, { payload: Buffer.alloc(8192, 0xaa), flags: FUA });
    assert.equal((await client.reply()).error, 0);
    assert.equal(device.durable![8191], 0xaa);
    client.request(TRIM, { length: 4096, flags: FUA });
    assert.equal((await client.reply()).error, 0);
    assert.equal(device.durable![0], 0);
    client.request(ZEROES, { offset: 4096, length: 4096, flags: FUA });
    assert.equal((await client.reply()).error, 0);
    assert.equal(device.durable![8191], 0);
    const { flush } = device.counts;
    client.request(READ, { length: 512, flags: FUA });
    assert.equal((await client.reply()).error, 0);
    client.request(CACHE, { length: 512, flags: FUA });
    assert.equal((await client.reply()).error, 0);
    assert.equal(device.counts.flush, flush);
    device.fault = (operation) => (operation === "flush" ? "EIO" : undefined);
    client.request(WRITE, { payload: Buffer.alloc(512), flags: FUA });
    assert.equal((await client.reply()).error, EIO);
    device.fault = () => undefined;
    client.destroy();
  }
});

void test("write-zeroes hands on NO_HOLE and FAST_ZERO, and ENOTSUP is told only to who asked for fast", async (t) => {
  const { path, device } = await serve(t);
  const client = await RawClient.open(path);
  client.request(ZEROES, { length: 4096 });
  assert.equal((await client.reply()).error, 0);
  assert.deepEqual(device.lastZero, { allocate: false, fast: false });
  client.request(ZEROES, { length: 4096, flags: NO_HOLE });
  assert.equal((await client.reply()).error, 0);
  assert.deepEqual(device.lastZero, { allocate: true, fast: false });
  client.request(ZEROES, { length: 4096, flags: FAST_ZERO });
  assert.equal((await client.reply()).error, 0);
  client.request(ZEROES, { length: 4096, flags: FAST_ZERO | NO_HOLE });
  assert.equal((await client.reply()).error, ENOTSUP);
});

void test("trim and write-zeroes may be longer than any payload", async (t) => {
  const device = new MemoryDevice({ size: 80 * MiB });
  const { path } = await serve(t, { device });
  const client = await RawClient.open(path);
  for (const command of [TRIM, ZEROES, CACHE]) {
    client.request(command, { length: 80 * MiB });
    assert.equal((await client.reply()).error, 0);
  }
});

void test("block status merges what looks alike in a context, honours REQ_ONE, and is bounded", async (t) => {
  const device = new MemoryDevice({ size: 64 * MiB });
  const { path } = await serve(t, { device });
  device.states.fill(ExtentState.local, 0, 1);
  device.states.fill(ExtentState.remote, 1, 2);
  device.states.fill(ExtentState.written, 2, 3);
  for (let block = 4; block < device.states.length; block += 2) device.states[block] = ExtentState.written;
  const client = await RawClient.open(path, { contexts: ["base:allocation", "ullage:hydration"] });
  const ask = async (offset: number, length: number, flags = 0): Promise<Map<number, number[][]>> => {
    client.request(STATUS, { offset, length, flags });
    const chunks = new Map<number, number[][]>();
    for (;;) {
      const { type, payload, done } = await client.reply();
      assert.equal(type, 5);
      const runs: number[][] = [];
      for (let at = 4; at < payload.length; at += 8)
        runs.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
      chunks.set(payload.readUInt32BE(0), runs);
      if (done) return chunks;
    }
  };
  assert.deepEqual(
    [...(await ask(0, 16384)).values()],
    [
      [
        [12288, 0],
        [4096, 3],
      ],
      [
        [4096, 0],
        [4096, 1],
        [4096, 2],
        [4096, 3],
      ],
    ],
  );
  assert.deepEqual([...(await ask(100, 200)).values()], [[[200, 0]], [[200, 0]]]);
  for (const runs of (await ask(100, 64 * MiB - 100, REQ_ONE)).values()) assert.deepEqual(runs, [[3996, 0]]);
  const [allocation, hydration] = [...(await ask(16384, 64 * MiB - 16384)).values()];
  assert.equal(allocation.length, 4096);
  assert.equal(hydration.length, 4096);
  device.fault = (operation) => (operation === "extents" ? "EIO" : undefined);
  client.request(STATUS, { length: 4096 });
  const failed = await client.reply();
  assert.equal(failed.error, EIO);
  assert.equal(failed.done, true);
});

void test("a block status that waits to learn of zeros holds up no other request, and is then told as far as it is known", async (t) => {
  const device = new MemoryDevice({ size: 64 * MiB });
  const { path } = await serve(t, { device });
  device.states.fill(ExtentState.remote);
  const asked: number[][] = [];
  let learnt: ((length: number) => void) | undefined;
  device.learning = (offset, length) => {
    asked.push([offset, length]);
    return new Promise((resolve) => (learnt = resolve));
  };
  const client = await RawClient.open(path, { contexts: ["base:allocation"] });
  client.request(STATUS, { cookie: 1n, offset: MiB, length: 8 * MiB });
  client.request(READ, { cookie: 2n, length: 512 });
  assert.equal((await client.reply()).cookie, 2n);
  assert.deepEqual(asked, [[MiB, 8 * MiB]]);
  device.states.fill(ExtentState.zero, MiB / 4096, (3 * MiB) / 4096);
  learnt!(4 * MiB);
  const { cookie, payload, done } = await client.reply();
  assert.deepEqual([cookie, done], [1n, true]);
  const runs = [4, 8, 12, 16].map((at) => payload.readUInt32BE(at));
  assert.deepEqual([runs, payload.length], [[2 * MiB, 3, 2 * MiB, 0], 20]);
  // A client that leaves meanwhile takes nobody along.
  client.request(STATUS, { length: MiB });
  await until(() => asked.length === 2, "it waits");
  client.socket.destroy();
  await until(() => device.stays[0].broken, "it is noticed");
  learnt!(MiB);
  device.learning = () => undefined;
  const other = await RawClient.open(path, { contexts: ["base:allocation"] });
  other.request(STATUS, { length: 4096 });
  assert.equal((await other.reply()).payload.readUInt32BE(8), 0);
});

void test("libnbd sees unaligned, oversize and zero-length requests answered, and goes on", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const { uri } = await serve(t);
  const printed = await nbdsh(`
h.set_strict_mode(0)
h.connect_uri("${uri}")
def attempt(what):
    try:
        return what()
    except nbd.Error as error:
        return error.errno
print(attempt(lambda: h.pwrite(b"unaligned", 1234567)))
print(bytes(attempt(lambda: h.pread(9, 1234567))))
print(attempt(lambda: h.pread(0, 0)))
print(attempt(lambda: h.pread(4096, ${SIZE} - 1)))
print(attempt(lambda: h.pwrite(b"x" * 4096, ${SIZE} - 1)))
print(attempt(lambda: h.zero(4096, ${SIZE} - 1)))
print(attempt(lambda: h.trim(4096, ${SIZE} - 1)))
print(attempt(lambda: h.pread(512, 0, flags=0x40)))
print(attempt(lambda: h.flush()))
print(attempt(lambda: h.zero(4096, 0, flags=nbd.CMD_FLAG_FAST_ZERO|nbd.CMD_FLAG_NO_HOLE)))
print(len(attempt(lambda: h.pread(3 * 1024 * 1024 + 1, 5))))
h.shutdown()
`);
  assert.deepEqual(printed.trim().split("\n"), [
    "None",
    "b'unaligned'",
    "EINVAL",
    "EINVAL",
    "ENOSPC",
    "ENOSPC",
    "EINVAL",
    "EINVAL",
    "None",
    "ENOTSUP",
    `${3 * MiB + 1}`,
  ]);
});

void test("structured reads through libnbd report data chunks inside the request, once each", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const { uri, device } = await serve(t);
  randomBytes(SIZE).copy(device.data);
  const printed = await nbdsh(`
h.connect_uri("${uri}")
seen = []
def chunk(data, offset, status, error):
    assert status == nbd.READ_DATA and error.value == 0
    seen.append((offset, len(data)))
h.pread_structured(5 * 1024 * 1024, 4096, chunk)
seen.sort()
at = 4096
for offset, length in seen:
    assert offset == at
    at += length
print(at)
one = []
h.pread_structured(5 * 1024 * 1024, 4096, lambda d, o, s, e: one.append(len(d)), nbd.CMD_FLAG_DF)
print(one)
`);
  assert.equal(printed, `${4096 + 5 * MiB}\n[${5 * MiB}]\n`);
});

void test("garbage instead of a request ends that connection and no other", async (t) => {
  const { path, log } = await serve(t);
  const healthy = await RawClient.open(path);
  const broken = await RawClient.open(path);
  broken.write(Buffer.alloc(28, 0x42));
  await broken.end();
  healthy.request(READ, { length: 512 });
  assert.equal((await healthy.reply()).error, 0);
  assert.match(log.join("\n"), /request magic/);
});
