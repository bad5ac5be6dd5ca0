import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import test from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { MemoryDevice } from "../support/memory-device.ts";
import { goData, RawClient, requestBytes } from "./raw-client.ts";
import { MiB, oneExport, serve, until } from "./support.ts";

const READ = 0;
const WRITE = 1;
const DISCONNECT = 2;
const FLUSH = 3;

/** Asynchronous operations of the device wait until `open` is called. */
function gated(device: MemoryDevice): { open: () => void } {
  let open: () => void = () => undefined;
  device.slow = true;
  device.gate = new Promise((resolve) => (open = resolve));
  return { open: () => open() };
}

void test("a client is attached with what is known of it, and a goodbye releases it cleanly", async (t) => {
  const { path, device, server } = await serve(t);
  const tcp = await server.listen("127.0.0.1:0");
  assert.ok(tcp.address.kind === "tcp");
  const client = await RawClient.open(path);
  const other = await RawClient.open(tcp.address.port);
  const [first, second] = device.stays;
  assert.equal(first.client.protocol, "nbd");
  assert.equal(first.client.address, "unix");
  assert.equal(first.client.remote, false);
  assert.equal(first.client.writable, true);
  assert.match(second.client.address, /^127\.0\.0\.1:\d+$/);
  assert.equal(second.client.remote, false);
  client.request(DISCONNECT);
  other.request(DISCONNECT);
  await Promise.all([client.end(), other.end()]);
  for (const stay of [first, second]) assert.deepEqual([stay.released, stay.clean, stay.broken], [true, true, false]);
});

void test("read-only clients are attached as such", async (t) => {
  const device = new MemoryDevice({ size: MiB, readOnly: true });
  const { path } = await serve(t, { device });
  await RawClient.open(path);
  assert.equal(device.stays[0].client.writable, false);
});

void test("a goodbye is honoured after everything before it was answered", async (t) => {
  const { path, device } = await serve(t);
  const { open } = gated(device);
  const client = await RawClient.open(path);
  client.write(
    Buffer.concat([
      requestBytes(WRITE, { payload: Buffer.alloc(4096, 1), cookie: 1n }),
      requestBytes(READ, { length: 3 * MiB, cookie: 2n }),
      requestBytes(FLUSH, { cookie: 3n }),
      requestBytes(DISCONNECT),
      requestBytes(WRITE, { payload: Buffer.alloc(4096, 9), cookie: 4n }),
    ]),
  );
  await until(() => device.running > 0, "operations have started");
  open();
  const cookies = new Set<bigint>();
  while (cookies.size < 3) {
    const reply = await client.reply();
    if (reply.done) cookies.add(reply.cookie);
  }
  await client.end();
  assert.deepEqual(cookies, new Set([1n, 2n, 3n]));
  assert.equal(device.data[0], 1);
  assert.equal(device.stays[0].clean, true);
});

void test("a client that vanishes is broken at once and released when its last operation has ended", async (t) => {
  const { path, device } = await serve(t);
  const { open } = gated(device);
  const client = await RawClient.open(path);
  client.request(WRITE, { payload: Buffer.alloc(100_000, 1) });
  client.request(READ, { length: 100_000 });
  client.request(READ, { length: 2 * MiB });
  await until(() => device.running === 4, "four operations run");
  client.destroy();
  await until(() => device.stays[0].broken, "the device knows");
  assert.equal(device.stays[0].released, false);
  // The successor must wait: what the dead connection started could land on what it writes.
  const successor = RawClient.open(path);
  await sleep(50);
  assert.equal(device.stays.length, 1);
  open();
  (await successor).destroy();
  assert.equal(device.stays[0].released, true);
  assert.equal(device.stays[0].clean, false);
});

void test("requests of a dead connection that had not started never start", async (t) => {
  const { path, device, server } = await serve(t);
  const { open } = gated(device);
  const client = await RawClient.open(path);
  // Twice what may be in flight: the rest waits in the connection's buffer and in the kernel's.
  for (let i = 0; i < 2048; i++) client.request(WRITE, { offset: i * 4096, payload: Buffer.alloc(4096, 1) });
  await until(() => device.running >= 1024, "as many as may have started");
  client.destroy();
  // A connection that is not read from notices when it is written to, or read from again.
  open();
  await until(() => server.connections().length === 0, "the connection is gone");
  await until(() => device.attached.length === 0, "it is released");
  const { write } = device.counts;
  await sleep(20);
  assert.equal(device.counts.write, write);
  assert.ok(write < 2048, `${write} writes`);
});

void test("a client that leaves while it is being attached is released", async (t) => {
  const device = new MemoryDevice({ size: MiB });
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  const attach = device.attach.bind(device);
  device.attach = async (client) => {
    await opened;
    return attach(client);
  };
  const { path, server } = await serve(t, { device });
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(7, goData("disk"));
  await sleep(30);
  client.destroy();
  open();
  await until(() => device.stays.length === 1 && device.stays[0].released, "it is released");
  await until(() => server.connections().length === 0, "it is gone");
});

void test("a client that vanishes before the greeting leaves nothing behind that would hold up the end of the process", async (t) => {
  const { path, server } = await serve(t);
  const timers = (): number => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  const before = timers();
  for (let i = 1; i <= 20; i++) {
    const socket = connect(path, () => socket.destroy());
    await until(() => server.accepted === i && server.connections().length === 0, "it is gone");
  }
  await until(() => timers() <= before, "no timer is left");
});

void test("stop answers what has arrived, then closes, and the client sees no reset", async (t) => {
  for (const slow of [false, true]) {
    const { path, device, server } = await serve(t);
    device.slow = slow;
    device.delayMs = 20;
    const client = await RawClient.open(path);
    const handshaking = await RawClient.connect(path);
    const requests = Array.from({ length: 50 }, (_, i) => requestBytes(READ, { offset: i * 4096, length: 4096 }));
    client.write(Buffer.concat(requests));
    await until(() => device.counts.read > 0 || device.running > 0, "requests have arrived");
    const stopped = server.stop(5_000);
    for (let i = 0; i < 50; i++) assert.equal((await client.reply()).error, 0);
    await client.end();
    await handshaking.end();
    client.destroy();
    await stopped;
    assert.equal(existsSync(path), false);
    assert.equal(device.attached.length, 0);
    assert.deepEqual(server.connections(), []);
  }
});

void test("stop cuts who does not finish in time", async (t) => {
  const { path, device, server } = await serve(t);
  const { open } = gated(device);
  const client = await RawClient.open(path);
  client.request(READ, { length: 4096 });
  const mute = await RawClient.open(path);
  mute.socket.pause();
  for (let i = 0; i < 64; i++) mute.request(READ, { length: MiB });
  await until(() => device.running > 0, "an operation hangs");
  await server.stop(100);
  assert.deepEqual(server.connections(), []);
  assert.ok(device.stays[0].broken && !device.stays[0].released);
  open();
  await until(() => device.attached.length === 0, "everybody is released");
  mute.destroy();
});

void test("the device can end a connection: what has started is finished first", async (t) => {
  const { path, device, log } = await serve(t);
  const { open } = gated(device);
  const client = await RawClient.open(path);
  client.request(READ, { length: 4096, cookie: 6n });
  await until(() => device.running === 1, "the read runs");
  device.stays[0].client.close("the volume is being removed");
  client.request(READ, { length: 4096, cookie: 7n });
  open();
  assert.equal((await client.reply()).cookie, 6n);
  await client.end();
  assert.equal(device.attached.length, 0);
  assert.match(log.join("\n"), /the volume is being removed/);
});

void test("connections are listed with what they have done", async (t) => {
  const { path, server } = await serve(t);
  const handshaking = await RawClient.connect(path);
  const client = await RawClient.open(path);
  client.request(WRITE, { payload: Buffer.alloc(1000) });
  client.request(READ, { length: 3000 });
  await client.reply();
  await client.reply();
  assert.deepEqual(server.connections(), [
    {
      id: 1,
      address: "unix",
      tls: false,
      export: undefined,
      writable: false,
      requests: 0,
      read: 0,
      written: 0,
      inflight: 0,
    },
    {
      id: 2,
      address: "unix",
      tls: false,
      export: "disk",
      writable: true,
      requests: 2,
      read: 3000,
      written: 1000,
      inflight: 0,
    },
  ]);
  handshaking.destroy();
});

void test("two exports at once are separate", async (t) => {
  const devices = new Map(["a", "b"].map((name) => [name, new MemoryDevice({ size: MiB })]));
  const { path } = await serve(t, {
    exports: {
      list: () => [...devices.keys()].map((name) => ({ name })),
      lookup: async (name) => {
        const device = devices.get(name);
        if (device === undefined) return oneExport(new MemoryDevice({ size: 512 })).lookup("nonesuch");
        return { kind: "device", name, device, readOnly: false };
      },
    },
  });
  const a = await RawClient.open(path, { name: "a" });
  const b = await RawClient.open(path, { name: "b" });
  a.request(WRITE, { payload: Buffer.from("to a") });
  await a.reply();
  b.request(READ, { length: 4 });
  assert.equal((await b.reply()).payload.toString("latin1", 8), "\0\0\0\0");
});
