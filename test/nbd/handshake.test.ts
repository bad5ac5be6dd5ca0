import assert from "node:assert/strict";
import test from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { goData, metaData, RawClient } from "./raw-client.ts";
import { MiB, oneExport, serve, until } from "./support.ts";

const ACK = 1;
const ERR_UNSUP = 0x80000001;
const ERR_POLICY = 0x80000002;
const ERR_INVALID = 0x80000003;
const ERR_UNKNOWN = 0x80000006;
const ERR_TOO_BIG = 0x80000009;

void test("the greeting is fixed newstyle with NO_ZEROES", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  const greeting = await client.greet();
  assert.equal(greeting.toString("latin1", 0, 16), "NBDMAGICIHAVEOPT");
  assert.equal(greeting.readUInt16BE(16), 3);
});

void test("unknown client flags end the connection", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet(7);
  await client.end();
});

void test("a client without fixed newstyle may choose an export and nothing else", async (t) => {
  const { path } = await serve(t);
  const other = await RawClient.connect(path);
  await other.greet(0);
  other.option(3);
  await other.end();
  const client = await RawClient.connect(path);
  await client.greet(0);
  client.option(1, Buffer.from("disk"));
  const reply = await client.read(134);
  assert.equal(reply.readBigUInt64BE(0), 16n * 1024n * 1024n);
  assert.ok(reply.subarray(10).every((byte) => byte === 0));
});

void test("EXPORT_NAME leaves the zeroes out when both sides agreed, and ends the session on an unknown name", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet(3);
  client.option(1, Buffer.from("disk"));
  await client.read(10);
  client.request(0, { length: 4 });
  const reply = await client.reply(4);
  assert.equal(reply.structured, false);
  assert.equal(reply.payload.length, 4);
  const other = await RawClient.connect(path);
  await other.greet(3);
  other.option(1, Buffer.from("nonesuch"));
  await other.end();
});

void test("unknown options, EXTENDED_HEADERS among them, are refused politely and the session goes on", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  for (const option of [4, 11, 0xffffffff]) {
    client.option(option, Buffer.from("some data"));
    const reply = await client.optionReply();
    assert.equal(reply.type, ERR_UNSUP);
    assert.equal(reply.option, option);
  }
  await client.expectAck(8);
});

void test("options that take no data refuse it", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  for (const option of [3, 8]) {
    client.option(option, Buffer.from("x"));
    assert.equal((await client.optionReply()).type, ERR_INVALID);
  }
});

void test("malformed option data is refused and the session goes on", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  await client.expectAck(8);
  const tooLong = goData("disk");
  tooLong.writeUInt32BE(5000, 0);
  const badCount = goData("disk", [3]);
  badCount.writeUInt16BE(2, 8);
  for (const [option, data] of [
    [7, Buffer.alloc(0)],
    [7, Buffer.alloc(5)],
    [6, tooLong],
    [7, badCount],
    [10, Buffer.alloc(3)],
    [9, metaData("disk", ["base:"]).subarray(0, -1)],
    [10, Buffer.concat([metaData("disk", []), Buffer.alloc(1)])],
  ] as const) {
    client.option(option, data);
    assert.equal((await client.optionReply()).type, ERR_INVALID, `option ${option}`);
  }
  client.option(7, goData("disk"));
  assert.equal((await client.optionReplies()).at(-1)!.type, ACK);
});

void test("an option that is too big is skipped and answered, one that never ends is not waited for", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(3, Buffer.alloc(MiB));
  assert.equal((await client.optionReply()).type, ERR_TOO_BIG);
  await client.expectAck(8);
  client.option(3, Buffer.alloc(0), 0xffffffff);
  await client.end();
});

void test("ABORT is acknowledged, its data ignored, and nothing stays behind", async (t) => {
  const { path, server, device } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  await client.expectAck(2, Buffer.from("bye"));
  await client.end();
  client.destroy();
  await until(() => server.connections().length === 0, "the connection is gone");
  assert.equal(device.stays.length, 0);
});

void test("INFO answers without attaching, GO attaches once, and DF is announced only with structured replies", async (t) => {
  const { path, device } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(6, goData("", [1, 2, 3, 99]));
  const replies = await client.optionReplies();
  assert.deepEqual(
    replies.map(({ type }) => type),
    [3, 3, 3, 3, ACK],
  );
  const [info, name, description, sizes] = replies.map(({ data }) => data);
  assert.equal(info.readUInt16BE(10) & (1 << 7), 0);
  assert.equal(name.toString("utf8", 2), "disk");
  assert.equal(description.toString("utf8", 2), "a disk of memory");
  assert.deepEqual([sizes.readUInt32BE(2), sizes.readUInt32BE(6), sizes.readUInt32BE(10)], [1, 4096, 32 * MiB]);
  assert.equal(device.counts.attach, 0);
  await client.expectAck(8);
  client.option(7, goData("disk"));
  const [withDf] = await client.optionReplies();
  assert.equal(withDf.data.readUInt16BE(10), 0b1101_1110_1101);
  assert.equal(device.counts.attach, 1);
});

void test("GO on an unknown export, and on one that refuses to be attached, is an error with the reason", async (t) => {
  const device = new MemoryDevice({ size: MiB });
  const { path } = await serve(t, { device });
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(7, goData("nonesuch"));
  const [unknown] = await client.optionReplies();
  assert.equal(unknown.type, ERR_UNKNOWN);
  assert.match(unknown.data.toString(), /nonesuch/);
  device.fault = (operation) => (operation === "attach" ? "EBUSY" : undefined);
  client.option(7, goData("disk"));
  const [refused] = await client.optionReplies();
  assert.equal(refused.type, ERR_POLICY);
  assert.match(refused.data.toString(), /EBUSY/);
  device.fault = () => undefined;
  client.option(7, goData("disk"));
  assert.equal((await client.optionReplies()).at(-1)!.type, ACK);
});

void test("an export that can't be opened is not available, with the reason", async (t) => {
  const { path } = await serve(t, {
    exports: {
      list: () => [],
      lookup: () => Promise.reject(new IoError("EIO", "the map is damaged")),
    },
  });
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(7, goData("disk"));
  const [reply] = await client.optionReplies();
  assert.equal(reply.type, ERR_UNKNOWN);
  assert.match(reply.data.toString(), /the map is damaged/);
});

void test("metadata contexts: structured replies first, wildcards only to list, unknown ones ignored", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(10, metaData("disk", ["base:allocation"]));
  assert.equal((await client.optionReply()).type, ERR_INVALID);
  await client.expectAck(8);
  const ask = async (option: number, ...queries: string[]): Promise<string[]> => {
    client.option(option, metaData("disk", queries));
    return (await client.optionReplies()).slice(0, -1).map(({ data }) => data.toString("utf8", 4));
  };
  assert.deepEqual(await ask(9), ["base:allocation", "ullage:hydration"]);
  assert.deepEqual(await ask(9, "base:"), ["base:allocation"]);
  assert.deepEqual(await ask(9, "ullage:", "x-other:thing"), ["ullage:hydration"]);
  assert.deepEqual(await ask(9, "x-other:"), []);
  assert.deepEqual(await ask(10), []);
  assert.deepEqual(await ask(10, "base:", "base:other"), []);
  assert.deepEqual(await ask(10, "ullage:hydration", "base:allocation", "base:allocation"), [
    "base:allocation",
    "ullage:hydration",
  ]);
  client.option(10, metaData("nonesuch", ["base:allocation"]));
  assert.equal((await client.optionReply()).type, ERR_UNKNOWN);
});

void test("contexts chosen for another name, or dropped by a failed choice, do not count", async (t) => {
  const { path } = await serve(t);
  for (const [chosen, then] of [
    ["", []],
    ["disk", [10]],
  ] as const) {
    const client = await RawClient.connect(path);
    await client.greet();
    await client.expectAck(8);
    client.option(10, metaData(chosen, ["base:allocation"]));
    await client.optionReplies();
    for (const option of then) {
      client.option(option, Buffer.alloc(1));
      await client.optionReplies();
    }
    client.option(7, goData("disk"));
    await client.optionReplies();
    client.request(7, { length: 4096 });
    assert.equal((await client.reply()).error, 22);
  }
});

void test("a handshake that stalls is ended, one that waits for the device is not", async (t) => {
  const device = new MemoryDevice({ size: MiB });
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  const { path, server } = await serve(t, {
    device,
    exports: {
      ...oneExport(device),
      lookup: async () => {
        await opened;
        return { kind: "device", name: "disk", device, readOnly: false };
      },
    },
    limits: { handshakeTimeoutMs: 1500 },
  });
  const waiting = await RawClient.connect(path);
  await waiting.greet();
  waiting.option(7, goData("disk"));
  const silent = await RawClient.connect(path);
  const drip = await RawClient.connect(path);
  drip.write(Buffer.from([0, 0, 0, 3, 0x49]));
  await Promise.all([silent.end(), drip.end()]);
  assert.equal(server.connections().length, 1);
  open();
  assert.equal((await waiting.optionReplies()).at(-1)!.type, ACK);
});

void test("pipelined options and requests are answered in order", async (t) => {
  const { path } = await serve(t);
  const client = await RawClient.connect(path);
  await client.greet();
  client.option(8);
  client.option(7, goData("disk"));
  client.request(0, { length: 8, cookie: 77n });
  await client.optionReply();
  await client.optionReplies();
  const reply = await client.reply();
  assert.equal(reply.cookie, 77n);
  assert.equal(reply.payload.length, 16);
});
