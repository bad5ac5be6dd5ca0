import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MemoryDevice } from "../support/memory-device.ts";
import { RawClient, requestBytes } from "./raw-client.ts";
import { MiB, serve, until } from "./support.ts";

const READ = 0;
const WRITE = 1;
const SIZE = 64 * MiB;

/** A well-behaved client reads and writes, to show that it can. */
async function works(target: string): Promise<void> {
  const client = await RawClient.open(target);
  const payload = randomBytes(300_000);
  client.request(WRITE, { offset: 4096, payload });
  assert.equal((await client.reply()).error, 0);
  client.request(READ, { offset: 4096, length: payload.length });
  const reply = await client.reply();
  assert.ok(reply.payload.subarray(8).equals(payload));
  client.destroy();
}

void test("256 connections work at once and are all released", async (t) => {
  const { path, device, server } = await serve(t);
  const clients: RawClient[] = [];
  for (let i = 0; i < 256; i++) clients.push(await RawClient.open(path));
  assert.equal(server.connections().length, 256);
  for (let round = 0; round < 4; round++) {
    await Promise.all(
      clients.map(async (client, index) => {
        const payload = Buffer.alloc(4096, index);
        client.request(WRITE, { offset: index * 4096, payload });
        client.request(READ, { offset: index * 4096, length: 4096 });
        assert.equal((await client.reply()).error, 0);
        assert.ok((await client.reply()).payload.subarray(8).equals(payload));
      }),
    );
  }
  assert.equal(server.bufferBytes, 0);
  for (const client of clients) client.destroy();
  await until(() => server.connections().length === 0, "all are gone");
  assert.equal(device.attached.length, 0);
});

for (const slow of [false, true]) {
  const how = slow ? ", with a device that takes its time" : "";

  void test(`clients that never read cost a bounded amount of memory and hurt nobody${how}`, async (t) => {
    const { path, server, device } = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
    device.slow = slow;
    const mutes = await Promise.all(Array.from({ length: 16 }, () => RawClient.open(path)));
    const flood = Buffer.concat(
      Array.from({ length: 200 }, (_, i) => requestBytes(READ, { offset: (i % 8) * MiB, length: 32 * MiB - MiB * 8 })),
    );
    for (const mute of mutes) {
      mute.socket.pause();
      mute.write(flood);
    }
    await sleep(200);
    await works(path);
    // However many gigabytes were asked for: 4 MiB of queued replies and one turn each; what the device works on comes
    // on top, up to the point where all must make do with their minimum.
    const bound = 16 * 14 * MiB + (slow ? 256 * MiB : 0);
    assert.ok(server.bufferBytes < bound, `${server.bufferBytes} bytes`);
    await sleep(50);
    assert.ok(server.bufferBytes < bound, `${server.bufferBytes} bytes`);
    await works(path);
    // They start reading after all, and get every byte.
    let left = 0;
    mutes[0].socket.resume();
    for (;;) {
      const reply = await mutes[0].reply();
      left += reply.payload.length;
      if (left > 48 * MiB) break;
    }
    for (const mute of mutes) mute.destroy();
    await until(() => server.connections().length === 0, "all are gone");
    await until(() => server.bufferBytes === 0, "all buffers are back");
  });

  void test(`clients that stop in the middle of a write hold nothing but their buffer, and hurt nobody${how}`, async (t) => {
    const { path, server, device } = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
    device.slow = slow;
    const half = requestBytes(WRITE, { payload: Buffer.alloc(MiB, 0xee) }).subarray(0, MiB / 2);
    const stalled = await Promise.all(Array.from({ length: 32 }, () => RawClient.open(path)));
    for (const client of stalled) client.write(half);
    await sleep(100);
    await works(path);
    assert.equal(device.counts.write, 1);
    assert.ok(server.bufferBytes <= 34 * (2 * MiB + 4096));
    for (const client of stalled) client.destroy();
    await until(() => server.connections().length === 0, "all are gone");
    await until(() => server.bufferBytes === 0, "all buffers are back");
    // Nothing of a write that never was complete reached the device.
    assert.equal(device.data.indexOf(Buffer.alloc(16, 0xee)), -1);
    assert.equal(device.attached.length, 0);
  });
}

void test("payloads that need the common budget take turns: the last in the queue is served when the first are done", async (t) => {
  const { path, server, device } = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  const payload = Buffer.alloc(32 * MiB, 3);
  const bytes = requestBytes(WRITE, { payload });
  const clients = await Promise.all(Array.from({ length: 12 }, () => RawClient.open(path)));
  // All but the last byte: those that found room hold it, the others are not read from.
  const sent = clients.map(
    (client) => new Promise<void>((resolve) => client.socket.write(bytes.subarray(0, -1), () => resolve())),
  );
  await Promise.race(sent);
  await works(path);
  for (const client of clients) client.write(bytes.subarray(-1));
  await Promise.all(clients.map(async (client) => assert.equal((await client.reply()).error, 0)));
  assert.equal(device.counts.write, 13);
  await until(() => server.bufferBytes === 0, "all buffers are back");
});

void test("who holds the budget, stalls and is waited for is cut off", async (t) => {
  const { path, server, log } = await serve(t, {
    device: new MemoryDevice({ size: SIZE }),
    limits: { payloadStallMs: 300 },
  });
  const bytes = requestBytes(WRITE, { payload: Buffer.alloc(32 * MiB) });
  const stalled = await Promise.all(Array.from({ length: 8 }, () => RawClient.open(path)));
  for (const client of stalled) client.write(bytes.subarray(0, 3 * MiB));
  await until(() => server.bufferBytes >= 7 * 32 * MiB, "they hold what there is");
  const client = await RawClient.open(path);
  client.write(bytes);
  assert.equal((await client.reply()).error, 0);
  assert.ok(server.connections().length < 9);
  assert.match(log.join("\n"), /stalled/);
  for (const left of stalled) left.destroy();
});

void test("one connection's flood gets a bounded share of each turn of the event loop", async (t) => {
  const { path, device } = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  let inTurn = 0;
  let most = 0;
  device.fault = (operation) => {
    if (operation !== "read") return undefined;
    if (inTurn === 0) setImmediate(() => (inTurn = 0));
    most = Math.max(most, ++inTurn);
    return undefined;
  };
  const flooder = await RawClient.open(path);
  const other = await RawClient.open(path);
  const count = 20_000;
  flooder.write(Buffer.concat(Array.from({ length: count }, () => requestBytes(READ, { length: 16 }))));
  let flooded = 0;
  const flood = (async () => {
    for (; flooded < count; flooded++) await flooder.reply();
  })();
  await until(() => flooded > 100, "the flood runs");
  other.request(READ, { length: 16 });
  await other.reply();
  assert.ok(flooded < count, "the other was answered first");
  await flood;
  // A share when it is its turn again, and one when new requests arrive.
  assert.ok(most <= 2 * 256, `${most} reads in one turn`);
});

void test("a write's payload that never comes does not stop the connection's other replies", async (t) => {
  const { path, device } = await serve(t);
  device.slow = true;
  device.delayMs = 30;
  const client = await RawClient.open(path);
  client.request(READ, { length: 4096, cookie: 1n });
  client.write(requestBytes(WRITE, { length: 4096 }));
  assert.equal((await client.reply()).cookie, 1n);
});

void test("operations in flight are bounded per connection", async (t) => {
  const { path, device } = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  let open: () => void = () => undefined;
  device.slow = true;
  device.gate = new Promise((resolve) => (open = resolve));
  const many = await RawClient.open(path);
  for (let i = 0; i < 3000; i++) many.request(READ, { length: 512, cookie: BigInt(i) });
  const big = await RawClient.open(path);
  for (let i = 0; i < 200; i++) big.request(WRITE, { payload: Buffer.alloc(MiB), cookie: BigInt(i) });
  await until(() => device.running >= 1024 + 64, "both are at their limits");
  await sleep(50);
  assert.equal(device.running, 1024 + 64);
  open();
  const all = async (client: RawClient, count: number): Promise<number> => {
    const cookies = new Set<bigint>();
    while (cookies.size < count) cookies.add((await client.reply()).cookie);
    return cookies.size;
  };
  assert.deepEqual(await Promise.all([all(many, 3000), all(big, 200)]), [3000, 200]);
});
