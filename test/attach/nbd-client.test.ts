import assert from "node:assert/strict";
import { randomBytes, randomInt } from "node:crypto";
import net from "node:net";
import { join } from "node:path";
import test from "node:test";
import { NbdClient } from "../../src/attach/nbd-client/client.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { errnoOf } from "../../src/base/errors.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { goData, RawClient } from "../nbd/raw-client.ts";
import { oneExport, until } from "../nbd/support.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { ComingAndGoing, connect, MiB } from "./support.ts";

function filled(length: number, byte: number): IoBuffer {
  return IoBuffer.from(Buffer.alloc(length, byte));
}

/** The errno with which it fails. */
async function failure(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => "none",
    (error: unknown) => errnoOf(error),
  );
}

void test("what is written, zeroed and trimmed through the client is what the server's device holds, and reads are exact", async (t) => {
  const disk = new MemoryDevice({ size: 16 * MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device } = await connect(t, server.path);
  assert.equal(device.size, disk.size);
  assert.equal(device.lineage, disk.lineage);
  assert.equal(device.readOnly, false);

  disk.slow = true; // operations end in any order
  for (let round = 0; round < 4; round++) {
    const work: Promise<void>[] = [];
    for (let slot = 0; slot < 16; slot++) {
      const from = slot * MiB + randomInt(0, 1000);
      const length = randomInt(1, MiB - 1000);
      if (slot % 8 === 0) work.push(device.zero(from, length, { allocate: slot === 8, fast: false }));
      else if (slot % 8 === 1) work.push(device.trim(from, length));
      else work.push(device.write(from, length, IoBuffer.from(randomBytes(length + 7)), 7));
    }
    await Promise.all(work);
  }
  assert.ok(disk.counts.zero > 0 && disk.counts.trim > 0 && disk.counts.write > 0);
  const reads = Array.from({ length: 40 }, () => {
    const from = randomInt(0, disk.size - 1);
    return { from, length: randomInt(1, Math.min(3 * MiB, disk.size - from) + 1) };
  });
  reads.push({ from: 0, length: disk.size });
  await Promise.all(
    reads.map(async ({ from, length }) => {
      const buffer = new IoBuffer(length + 5);
      await device.read(from, length, buffer, 5);
      assert.ok(buffer.bytes.subarray(5).equals(disk.data.subarray(from, from + length)), `${length} at ${from}`);
    }),
  );
});

void test("a fast zero that is not fast, a full disk and a failing one are told as what they are; the connection stays", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device, states } = await connect(t, server.path);
  assert.equal(await failure(device.zero(0, 4096, { allocate: true, fast: true })), "ENOTSUP");
  disk.fault = (operation) => ({ write: "ENOSPC", read: "EIO" })[operation as string];
  assert.equal(await failure(device.write(0, 512, filled(512, 1), 0)), "ENOSPC");
  assert.equal(await failure(device.read(0, 512, filled(512, 0), 0)), "EIO");
  disk.fault = () => undefined;
  await device.flush();
  assert.deepEqual(states, []);
});

void test("requests that are under way when the server goes are done by the one that comes", async (t) => {
  const disk = new MemoryDevice({ size: 4 * MiB });
  disk.slow = true;
  const server = await ComingAndGoing.start(t, disk);
  const { device, states } = await connect(t, server.path);
  disk.trackDurable();
  for (let round = 1; round <= 5; round++) {
    const gate = Promise.withResolvers<void>();
    disk.gate = gate.promise;
    const started = disk.running;
    const writes = Array.from({ length: 64 }, (_, block) =>
      device.write(block * 65536, 65536, filled(65536, round * 16 + (block % 16)), 0),
    );
    await until(() => disk.running > started, "some have begun");
    const stopped = server.stop();
    const later = device.write(100, 10, filled(10, 255), 0); // submitted while nobody is there
    await stopped;
    gate.resolve();
    disk.gate = Promise.resolve();
    await server.start();
    await Promise.all([...writes, later]);
    await device.flush();
    for (let block = 0; block < 64; block++) {
      assert.equal(disk.durable![block * 65536 + 7], round * 16 + (block % 16), `round ${round}, block ${block}`);
    }
    assert.equal(disk.durable![105], 255);
  }
  assert.deepEqual(new Set(states), new Set(["reconnecting", "connected"]));
});

void test("many who write and read back never see anything but what they wrote, however often the server goes", async (t) => {
  const disk = new MemoryDevice({ size: 4 * MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device, states } = await connect(t, server.path);
  const enough = new AbortController();
  let rounds = 0;
  const worker = async (number: number): Promise<void> => {
    const at = number * 65536;
    const buffer = new IoBuffer(65536);
    for (let stamp = 1; !enough.signal.aborted; stamp++) {
      const [offset, length] = [randomInt(0, 30_000), randomInt(1, 30_000)];
      buffer.bytes.fill(stamp % 251);
      if (stamp % 5 === 0) await device.zero(at + offset, length, { allocate: false, fast: false });
      else await device.write(at + offset, length, buffer, 1000);
      if (stamp % 7 === 0) await device.flush();
      buffer.bytes.fill(255);
      await device.read(at + offset, length, buffer, 3);
      const expected = stamp % 5 === 0 ? 0 : stamp % 251;
      assert.ok(
        buffer.bytes.subarray(3, 3 + length).every((byte) => byte === expected),
        `worker ${number}, ${stamp}`,
      );
      rounds++;
    }
  };
  const work = Promise.all(Array.from({ length: 48 }, (_, number) => worker(number)));
  for (let restart = 0; restart < 30; restart++) {
    const before = rounds;
    disk.slow = restart % 3 === 0;
    disk.delayMs = restart % 6 === 0 ? 3 : 0;
    await until(() => rounds > before + 50, "they go on");
    await server.stop();
    await server.start();
  }
  enough.abort();
  await work;
  assert.equal(states.filter((state) => state === "connected").length, 30);
});

void test("what is sent again is sent in the order of its submission", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device, client } = await connect(t, server.path);
  await server.stop();
  await until(() => client.state === "reconnecting", "the client has noticed");
  const order: number[] = [];
  disk.fault = (operation, offset) => void (operation === "write" && order.push(offset));
  const writes = Array.from({ length: 200 }, (_, at) => device.write(at * 512, 512, filled(512, at % 256), 0));
  await server.start();
  await Promise.all(writes);
  assert.deepEqual(
    order,
    Array.from({ length: 200 }, (_, at) => at * 512),
  );
});

void test("a reply that was cut off in the middle of a read is read anew from its beginning", async (t) => {
  const disk = new MemoryDevice({ size: 32 * MiB });
  randomBytes(disk.size).copy(disk.data);
  const server = await ComingAndGoing.start(t, disk);
  const { device } = await connect(t, server.path);
  for (let round = 0; round < 5; round++) {
    const buffers = Array.from({ length: 4 }, () => new IoBuffer(8 * MiB));
    const reads = buffers.map((buffer, index) => device.read(index * 8 * MiB, 8 * MiB, buffer, 0));
    await until(() => disk.counts.read > 3 * round, "they have begun");
    await server.stop();
    await server.start();
    await Promise.all(reads);
    for (const [index, { bytes }] of buffers.entries()) {
      assert.ok(bytes.equals(disk.data.subarray(index * 8 * MiB, (index + 1) * 8 * MiB)));
    }
  }
});

void test("another lineage means that answered writes may be gone: everything fails from then on, also what was waiting", async (t) => {
  const server = await ComingAndGoing.start(t);
  const { device, client } = await connect(t, server.path);
  await server.stop();
  const waiting = failure(device.write(0, 512, filled(512, 1), 0));
  const other = new MemoryDevice({ size: 16 * MiB });
  server.exports = oneExport(other);
  await server.start();
  assert.equal(await waiting, "EIO");
  assert.equal(client.state, "lost");
  assert.match(client.reason, /acknowledged writes may be missing/);
  assert.equal(await failure(device.read(0, 512, filled(512, 0), 0)), "EIO");
  assert.equal(await failure(device.flush()), "EIO");
  assert.equal(other.counts.write + other.counts.read + other.counts.flush, 0);
  assert.equal(client.failures, 3);
});

void test("an export that shrank, or became read-only, is not gone on with", async (t) => {
  for (const change of ["smaller", "read-only"]) {
    const disk = new MemoryDevice({ size: MiB });
    const server = await ComingAndGoing.start(t, disk);
    const { client } = await connect(t, server.path);
    await server.stop();
    const now = new MemoryDevice({ size: change === "smaller" ? MiB / 2 : MiB });
    Object.assign(now, { lineage: disk.lineage });
    server.exports = oneExport(now, change === "read-only");
    await server.start();
    await until(() => client.state === "lost", change);
    assert.match(client.reason, change === "smaller" ? /has shrunk/ : /become read-only/);
  }
});

void test("an export keeps its size until it is asked for anew, and is only as large as the same export has become", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { client, device } = await connect(t, server.path);
  const grown = new MemoryDevice({ size: 2 * MiB });
  server.exports = oneExport(grown);
  await assert.rejects(client.refresh(), { code: "nbd-refused", message: /lineage/ });
  assert.equal(device.size, MiB, "another disk behind the name");
  Object.assign(grown, { lineage: disk.lineage });
  assert.equal(device.size, MiB);
  await client.refresh();
  assert.equal(device.size, 2 * MiB);
  await server.stop();
  await until(() => client.state === "reconnecting", "the server is away");
  await assert.rejects(client.refresh(), { code: "nbd-unreachable" });
  await server.start();
  await until(() => client.state === "connected", "it is back");
  await device.write(2 * MiB - 512, 512, filled(512, 7), 0);
  assert.equal(grown.data[2 * MiB - 1], 7);
});

void test("a server that is away longer than the limit makes requests fail; when it is back, with nothing lost, they work", async (t) => {
  const server = await ComingAndGoing.start(t);
  const { device, client, states } = await connect(t, server.path, { timeoutMs: 200 });
  await server.stop();
  assert.equal(await failure(device.write(0, 512, filled(512, 1), 0)), "EIO");
  assert.equal(client.state, "failing");
  assert.equal(await failure(device.flush()), "EIO");
  await server.start();
  await until(() => client.state === "connected", "it is connected again");
  await device.write(0, 512, filled(512, 1), 0);
  assert.deepEqual(states, ["reconnecting", "failing", "connected"]);
});

void test("a server that has the export no more, or lets nobody write, makes requests fail long before the limit", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device, client } = await connect(t, server.path, { timeoutMs: 600_000 });
  const present = server.exports;
  server.exports = { list: () => [], lookup: async () => ({ kind: "none", reason: "there is no volume 'disk'" }) };
  await server.stop();
  await server.start();
  assert.equal(await failure(device.flush()), "EIO");
  assert.match(client.reason, /refuses us: there is no volume 'disk'/);
  server.exports = present;
  await until(() => client.state === "connected", "it is let in again");
  disk.fault = (operation) => (operation === "attach" ? "EPERM" : undefined);
  await server.stop();
  await server.start();
  assert.equal(await failure(device.flush()), "EIO");
  assert.match(client.reason, /refuses us: injected EPERM/);
});

void test("a server that is shutting down says so, and nobody but the client hears it", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const { device, states } = await connect(t, server.path);
  let refusals = 3;
  disk.fault = (operation) => (operation === "write" && refusals-- > 0 ? "ESHUTDOWN" : undefined);
  await Promise.all([0, 1, 2, 3].map((block) => device.write(block * 4096, 4096, filled(4096, 7), 0)));
  assert.ok(disk.data.subarray(0, 4 * 4096).every((byte) => byte === 7));
  assert.ok(states.includes("reconnecting"));
  assert.ok(disk.stays[0].clean, "it said goodbye");
});

void test("a close flushes, says goodbye and fails what comes later", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  disk.trackDurable();
  const server = await ComingAndGoing.start(t, disk);
  const { device, client } = await connect(t, server.path);
  await device.write(0, 512, filled(512, 9), 0);
  await client.close();
  assert.equal(disk.durable![511], 9);
  assert.deepEqual(
    disk.stays.map(({ clean }) => clean),
    [true],
  );
  assert.equal(await failure(device.flush()), "EIO");
  await until(() => server.connections === 0, "the server has seen it");
});

void test("a close says when the last flush has failed, and ends while nobody is there", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const first = await connect(t, server.path);
  disk.fault = (operation) => (operation === "flush" ? "EIO" : undefined);
  assert.equal(await failure(first.client.close()), "EIO");
  const second = await connect(t, server.path);
  await server.stop();
  await until(() => second.client.state === "reconnecting", "the client has noticed");
  const waiting = failure(second.device.flush());
  await second.client.close();
  assert.equal(await waiting, "EIO");
});

void test("the lineage is told to who asks for it, in INFO and GO, and to nobody else", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const lineageInfo = 0x554c;
  for (const [option, infos] of [
    [6, [lineageInfo]],
    [7, [3, lineageInfo]],
    [6, []],
    [7, [1, 2, 3]],
  ] as const) {
    const raw = await RawClient.connect(server.path);
    await raw.greet();
    raw.option(option, goData("disk", [...infos]));
    const told = (await raw.optionReplies())
      .filter(({ type, data }) => type === 3 && data.readUInt16BE(0) === lineageInfo)
      .map(({ data }) => data.toString("hex", 2));
    assert.deepEqual(told, infos.some((info) => info === lineageInfo) ? [disk.lineage] : []);
    raw.socket.destroy();
  }
});

void test("no server, no export, and a server that is no Ullage are told apart at once", async (t) => {
  const directory = await temporaryDirectory(t);
  await assert.rejects(connect(t, join(directory, "nobody.sock")), { code: "nbd-unreachable" });
  const server = await ComingAndGoing.start(t);
  await assert.rejects(connect(t, server.path, { exportName: "other" }), { code: "nbd-refused", message: /no export/ });
  for (const greeting of ["HTTP/1.1 400 Bad Request\r\n\r\n", "short"]) {
    const path = join(directory, `other-${greeting.length}.sock`);
    const other = net.createServer((socket) => void socket.end(greeting).on("error", () => undefined));
    await new Promise<void>((resolve) => other.listen(path, resolve));
    atEnd(t, () => new Promise((resolve) => other.close(resolve)));
    await assert.rejects(connect(t, path), { code: greeting.length > 18 ? "nbd-handshake" : "nbd-unreachable" });
  }
});

void test("a server that breaks the protocol is left, and the request goes to the next one", async (t) => {
  const disk = new MemoryDevice({ size: MiB });
  const server = await ComingAndGoing.start(t, disk);
  const front = join(await temporaryDirectory(t), "front.sock");
  let garble = true;
  const proxy = net.createServer((socket) => {
    const inner = net.connect(server.path);
    socket.on("error", () => undefined).on("close", () => inner.destroy());
    inner.on("error", () => undefined).on("close", () => socket.destroy());
    socket.pipe(inner);
    let transmission = false;
    socket.on("data", (bytes: Buffer) => (transmission ||= bytes.includes(Buffer.from([0x25, 0x60, 0x95, 0x13]))));
    inner.on("data", (bytes: Buffer) => {
      if (transmission && garble) bytes[0] ^= 0xff;
      if (transmission) garble = false;
      socket.write(bytes);
    });
  });
  await new Promise<void>((resolve) => proxy.listen(front, resolve));
  atEnd(t, () => new Promise((resolve) => proxy.close(resolve)));
  const states: string[] = [];
  const client = await NbdClient.connect({
    address: { kind: "unix", path: front },
    exportName: "disk",
    timeoutMs: 60_000,
    onState: (state, reason) => states.push(`${state} ${reason}`),
  });
  await client.submit(1, 0, 0, 512, Buffer.alloc(512, 5));
  assert.equal(disk.data[100], 5);
  assert.match(states[0], /broke the protocol: a reply without the magic/);
  await client.close();
});
