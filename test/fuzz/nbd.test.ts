import assert from "node:assert/strict";
import test from "node:test";
import { MemoryDevice } from "../support/memory-device.ts";
import { goData, metaData, RawClient, requestBytes } from "../nbd/raw-client.ts";
import { MiB, serve, type Served, until } from "../nbd/support.ts";
import { Random } from "../sim/random.ts";

/**
 * Seeded attacks on the NBD server. ULLAGE_SEEDS sets how many worlds are tried, ULLAGE_SEED tries one. A seed fixes
 * every byte and every answer of the device; how the system cuts the stream into reads is not in its power.
 */
const onlySeed = process.env["ULLAGE_SEED"];
const seedCount = Number(process.env["ULLAGE_SEEDS"] ?? 150);

async function forEachSeed(world: (random: Random) => Promise<void>): Promise<void> {
  const first = onlySeed === undefined ? 1 : Number(onlySeed);
  const last = onlySeed === undefined ? seedCount : first;
  for (let seed = first; seed <= last; seed++) {
    try {
      await world(new Random(seed));
    } catch (error) {
      throw new Error(`seed ${seed} (ULLAGE_SEED=${seed} replays it)`, { cause: error });
    }
  }
}

const SIZE = 8 * MiB;
const EINVAL = 22;
const ENOSPC = 28;
const EOVERFLOW = 75;

/** The device answers at once or later, and fails now and then. */
function makeMoody(device: MemoryDevice, random: Random, failures: number): void {
  Object.defineProperty(device, "slow", { configurable: true, get: () => random.chance(0.5) });
  device.fault = (operation) =>
    operation !== "attach" && random.chance(failures) ? random.pick(["EIO", "ENOSPC", "ENOTSUP", "EROFS"]) : undefined;
}

/** Cuts a stream into pieces as an unkind network would. */
async function sendInPieces(client: RawClient, bytes: Buffer, random: Random): Promise<void> {
  for (let at = 0; at < bytes.length && !client.ended;) {
    const piece = random.chance(0.3) ? random.between(1, 60) : random.between(1, 300_000);
    client.write(bytes.subarray(at, at + piece));
    at += piece;
    if (random.chance(0.3)) await new Promise(setImmediate);
  }
}

async function isHealthy(served: Served): Promise<void> {
  const { server, device, path } = served;
  await until(() => server.connections().length === 0, "the connection is gone");
  await until(() => device.attached.length === 0, "it is released");
  await until(() => server.bufferBytes === 0, `all buffers are back`);
  const fault = device.fault;
  device.fault = () => undefined;
  const client = await RawClient.open(path);
  client.request(0, { length: 4096 });
  assert.equal((await client.reply()).error, 0);
  client.destroy();
  device.fault = fault;
  await until(() => server.connections().length === 0, "the healthy client is gone");
}

function optionBytes(option: number, data: Buffer): Buffer {
  const header = Buffer.alloc(16);
  header.write("IHAVEOPT", "latin1");
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

/** What a sane client says, from its flags to its goodbye. */
function validTrace(random: Random): Buffer[] {
  const flags = Buffer.from([0, 0, 0, random.pick([3, 3, 3, 1, 2, 0])]);
  const parts: Buffer[] = [flags];
  const name = random.pick(["disk", "", "disk", "nonesuch"]);
  const options: (() => Buffer)[] = [
    () => optionBytes(8, Buffer.alloc(0)),
    () => optionBytes(3, Buffer.alloc(0)),
    () => optionBytes(6, goData(name, [0, 1, 2, 3])),
    () => optionBytes(9, metaData(name, random.pick([[], ["base:"], ["ullage:hydration"]]))),
    () => optionBytes(10, metaData(name, ["base:allocation", "ullage:hydration"])),
    () => optionBytes(5, Buffer.alloc(0)),
    () => optionBytes(11, Buffer.alloc(0)),
  ];
  for (let i = random.below(6); i > 0; i--) parts.push(random.pick(options)());
  parts.push(random.chance(0.8) ? optionBytes(7, goData(name)) : optionBytes(1, Buffer.from(name)));
  for (let i = random.below(30); i > 0; i--) parts.push(anyRequest(random));
  if (random.chance(0.5)) parts.push(requestBytes(2));
  return parts;
}

function anyRequest(random: Random): Buffer {
  const command = random.pick([0, 0, 1, 1, 3, 4, 5, 6, 7, random.below(0x10000)]);
  const offset = random.pick([0, random.below(SIZE), SIZE - 1, SIZE, 2 ** 53, Number.MAX_SAFE_INTEGER]);
  const length = random.pick([0, 1, 512, 4096, random.below(300_000), random.below(5 * MiB), 0xffffffff]);
  const request = { offset, flags: random.chance(0.8) ? 0 : random.below(64), cookie: BigInt(random.next()) };
  if (command !== 1) return requestBytes(command, { ...request, length });
  return requestBytes(command, { ...request, payload: Buffer.alloc(Math.min(length, 3 * MiB), random.below(256)) });
}

/** Damages a stream in one of the ways that find bugs: bits, lengths, cuts, repetitions, strange insertions. */
function mutate(parts: Buffer[], random: Random): Buffer {
  const bytes = Buffer.concat(parts);
  switch (random.below(6)) {
    case 0:
      for (let i = random.between(1, 8); i > 0; i--) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
      return bytes;
    case 1: {
      const at = random.below(Math.max(1, bytes.length - 4));
      if (bytes.length >= 4)
        bytes.writeUInt32BE(random.pick([0, 1, 0xffff, 0x7fffffff, 0xffffffff, random.next()]), at);
      return bytes;
    }
    case 2:
      return bytes.subarray(0, random.below(bytes.length));
    case 3: {
      const at = random.below(bytes.length);
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random.between(1, 40))]);
    }
    case 4: {
      const at = random.below(bytes.length);
      return Buffer.concat([bytes.subarray(0, at), random.bytes(random.between(1, 100)), bytes.subarray(at)]);
    }
    default: {
      const from = random.below(parts.length);
      return Buffer.concat([...parts.slice(0, from), parts[random.below(parts.length)], ...parts.slice(from)]);
    }
  }
}

void test("damaged conversations neither crash nor hang the server, nor leave anything behind", async (t) => {
  const served = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  await forEachSeed(async (random) => {
    makeMoody(served.device, random, 0.05);
    const client = await RawClient.connect(served.path);
    await sendInPieces(client, mutate(validTrace(random), random), random);
    assert.ok(served.server.bufferBytes < 64 * MiB, `${served.server.bufferBytes} bytes of buffers`);
    // Some clients say they are done and wait, some just vanish.
    if (random.chance(0.5)) {
      client.socket.end();
      await client.end();
    }
    client.destroy();
    await isHealthy(served);
  });
});

void test("noise instead of a conversation ends in a closed connection", async (t) => {
  const served = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  await forEachSeed(async (random) => {
    const client = await RawClient.connect(served.path);
    if (random.chance(0.5)) await client.greet();
    await sendInPieces(client, random.bytes(random.between(1, 5000)), random);
    client.socket.end();
    await client.end();
    client.destroy();
    await isHealthy(served);
  });
});

interface Expected {
  command: number;
  flags: number;
  offset: number;
  length: number;
}

/** What the gate must say: written down independently from the server's own. */
function expectedRefusal({ command, flags, offset, length }: Expected, structured: boolean): number {
  const allowed: Record<number, number> = { 0: structured ? 5 : 1, 1: 1, 3: 1, 4: 1, 5: 1, 6: 19, 7: 9 };
  if (!(command in allowed) || (flags & ~allowed[command]) !== 0) return EINVAL;
  if (command === 3) return offset === 0 && length === 0 ? 0 : EINVAL;
  if (command === 7 && !structured) return EINVAL;
  if (length === 0) return EINVAL;
  if (command === 0 && length > 32 * MiB) return EOVERFLOW;
  if (offset + length > SIZE) return command === 1 || command === 6 ? ENOSPC : EINVAL;
  return 0;
}

/** Reads see the lower half, which nothing changes; every write has a place of its own in the upper half. */
function modelRequest(random: Random, slot: number): Expected {
  const command = random.pick([0, 0, 0, 1, 1, 1, 3, 5, 7, 8]);
  const flags = random.chance(0.85) ? 0 : random.pick([1, 1, 4, 8, 16, 64]);
  if (command === 1) {
    const length = random.pick([1, 512, 4096, 32768]);
    return { command, flags, offset: SIZE / 2 + slot * 32768, length };
  }
  if (command === 3) return { command, flags, offset: 0, length: random.chance(0.9) ? 0 : 1 };
  const offset = random.below(SIZE / 2);
  const length = random.pick([0, 1, 4096, random.below(70_000), random.below(SIZE / 2), SIZE, 0xffffffff]);
  const beyondTheEnd = offset + length > SIZE && random.chance(0.3);
  return { command, flags, offset, length: beyondTheEnd ? length : Math.min(length, SIZE / 2 - offset) };
}

void test("every request of a random pipeline gets one answer, the right one, and the data of all is exact", async (t) => {
  const served = await serve(t, { device: new MemoryDevice({ size: SIZE }) });
  const { device, path } = served;
  await forEachSeed(async (random) => {
    random.bytes(64 * 1024).copy(device.data);
    for (let at = 64 * 1024; at < SIZE / 2; at *= 2) device.data.copyWithin(at, 0, at);
    device.data.fill(0, SIZE / 2);
    makeMoody(device, random, 0);
    const structured = random.chance(0.7);
    const contexts = structured ? ["base:allocation", "ullage:hydration"] : undefined;
    const client = await RawClient.open(path, { structured, ...(contexts === undefined ? {} : { contexts }) });
    const requests: Expected[] = [];
    const upper = Buffer.alloc(SIZE / 2);
    const stream: Buffer[] = [];
    for (let slot = 0; slot < random.between(1, 100); slot++) {
      const request = modelRequest(random, slot);
      const payload = request.command === 1 ? random.bytes(request.length) : undefined;
      if (payload !== undefined && expectedRefusal(request, structured) === 0) payload.copy(upper, slot * 32768);
      stream.push(requestBytes(request.command, { ...request, cookie: BigInt(slot), ...(payload ? { payload } : {}) }));
      requests.push(request);
    }
    const sent = sendInPieces(client, Buffer.concat(stream), random);
    const open = new Map(requests.map((request, slot) => [slot, { request, seen: 0, error: 0, contexts: 0 }]));
    while (open.size > 0) {
      // A simple reply to a read has as many bytes as were asked for; its cookie comes first.
      const reply = await client.reply((cookie) =>
        requests[Number(cookie)].command === 0 ? requests[Number(cookie)].length : 0,
      );
      const slot = Number(reply.cookie);
      const entry = open.get(slot);
      assert.ok(entry !== undefined, `an answer too many to request ${slot}`);
      const { request } = entry;
      if (reply.error !== 0) entry.error = reply.error;
      if (request.command === 0 && reply.error === 0) {
        const header = reply.type === 1 ? 8 : 0;
        const at = header > 0 ? Number(reply.payload.readBigUInt64BE(0)) : request.offset;
        const data = reply.payload.subarray(header);
        assert.ok(data.equals(device.data.subarray(at, at + data.length)), `data of request ${slot}`);
        entry.seen += data.length;
      }
      if (reply.type === 5) entry.contexts++;
      if (!reply.done) continue;
      open.delete(slot);
      assert.equal(entry.error, expectedRefusal(request, structured), `request ${slot}: ${JSON.stringify(request)}`);
      if (entry.error !== 0) continue;
      if (request.command === 0) assert.equal(entry.seen, request.length);
      if (request.command === 7) assert.equal(entry.contexts, 2);
    }
    await sent;
    assert.ok(device.data.subarray(SIZE / 2).equals(upper), "what was written");
    client.request(2);
    await client.end();
    client.destroy();
    await isHealthy(served);
    assert.equal(device.stays.at(-2)!.clean, true);
    device.stays.length = 0;
  });
});
