import assert from "node:assert/strict";
import { constants } from "node:os";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { V1Client } from "./v1-client.ts";
import { until, world, type World } from "./support.ts";

/*
 * The protocol as version 1 has it, spoken by a client in another language. Numbers in names are the mistakes of the first
 * implementation of this protocol that must not be ours.
 */

const KiB = 1024;
const MiB = 1024 * KiB;

async function connected(t: TestContext, size: number, unitBytes?: number): Promise<World & { client: V1Client }> {
  const made = await world(t, size, unitBytes);
  const client = new V1Client(t);
  await client.do({ do: "connect", path: made.path });
  return { ...made, client };
}

void test("a ping is answered with the same header and REPLY", async (t) => {
  const { client } = await connected(t, MiB);
  const answer = await client.do({ do: "noop", tag: 77 });
  assert.deepEqual([answer.tag, answer.request, answer.flags, answer.size], [77, 0, 1 | 4 | 8, 0]);
});

void test("mistakes 1, 5: every legal id is found, and its descriptor reads what was fetched", async (t) => {
  const { client, reader, blobId } = await connected(t, 2 * MiB);
  const got = await client.do({ do: "get", tag: 1, generation: 1, id: blobId });
  assert.deepEqual([got.result, got.base, got.descriptors, got.size], [0, 0, 1, 20]);
  const fetched = await client.do({ do: "fetch", tag: 2, token: got.token, start: MiB, count: 4096 });
  assert.deepEqual([fetched.result, fetched.count, fetched.token, fetched.descriptors], [0, 4096, got.token, 0]);
  const { hex } = await client.do({ do: "read", offset: MiB, length: 4096 });
  assert.equal(hex, reader.content.toString("hex", MiB, MiB + 4096));
  assert.deepEqual(await client.do({ do: "mode" }), { access: 0 }, "read-only");
});

void test("an id that there is not is answered with ENOENT and no descriptor", async (t) => {
  const { client } = await connected(t, MiB);
  for (const id of ["f".repeat(32), "../../etc/passwd", "", "x".repeat(255)]) {
    const got = await client.do({ do: "get", tag: 1, generation: 1, id });
    assert.deepEqual([got.result, got.descriptors], [constants.errno.ENOENT, 0], id);
  }
});

void test("mistake 2: a request whose header lies about its size ends the connection, nothing else", async (t) => {
  const { client, path, log } = await connected(t, MiB);
  const header = Buffer.alloc(20);
  header.writeBigUInt64LE(1n, 0);
  header.writeUInt32LE(2, 8);
  header.writeUInt32LE(1 | 8, 12);
  header.writeUInt32LE(260, 16);
  await client.do({ do: "send", hex: Buffer.concat([header, Buffer.alloc(260)]).toString("hex") });
  assert.equal((await client.do({ do: "receive" })).end, true);
  assert.ok(log.some((line) => /body of 260 bytes/.test(line)));
  await client.do({ do: "connect", path });
  assert.equal((await client.do({ do: "noop", tag: 1 })).tag, 1);
});

void test("mistake 3: a fetch that fails says so in its result, and its count is a count", async (t) => {
  const { client, reader, blobId } = await connected(t, MiB);
  reader.before = () => Promise.reject(new Error("broken"));
  const { token } = await client.do({ do: "get", tag: 1, generation: 1, id: blobId });
  const failed = await client.do({ do: "fetch", tag: 2, token, start: 0, count: 4096 });
  assert.deepEqual([failed.result, failed.count, failed.size], [1, 0, 20]);
  reader.before = () => undefined;
  assert.equal((await client.do({ do: "fetch", tag: 3, token, start: 0, count: 4096 })).result, 0);
});

void test("mistake 4: every reply's header tells the size of that reply", async (t) => {
  const { client, blobId } = await connected(t, MiB);
  const { size, token } = await client.do({ do: "get", tag: 1, generation: 1, id: blobId });
  assert.equal(size, 20);
  assert.equal((await client.do({ do: "fetch", tag: 2, token, start: 0, count: 1 })).size, 20);
  assert.equal((await client.do({ do: "noop", tag: 3 })).size, 0);
});

void test("mistake 5: a token of another connection, or of none, is answered with a generation mismatch", async (t) => {
  const { client, blobId, path, reader } = await connected(t, MiB);
  const { token } = await client.do({ do: "get", tag: 1, generation: 7, id: blobId });
  assert.equal(Math.floor(token / 2 ** 32), 7, "the client's generation is in it");
  const other = new V1Client(t);
  await other.do({ do: "connect", path });
  const { result, count } = await other.do({ do: "fetch", tag: 1, token, start: 0, count: 4096 });
  assert.deepEqual([result, count], [2, 0]);
  assert.equal(reader.requests.length, 0);
});

void test("requests with tag 0, an unknown number, version 0 or reserved flags end the connection", async (t) => {
  const { client, path } = await connected(t, MiB);
  for (const [tag, request, flags] of [
    [0n, 0, 9],
    [1n, 3, 9],
    [1n, 99, 10],
    [1n, 0, 8],
    [1n, 0, 11],
    [1n, 0, 9 | 16],
    [1n, 0, 9 | 4],
  ] as const) {
    const header = Buffer.alloc(20);
    header.writeBigUInt64LE(tag, 0);
    header.writeUInt32LE(request, 8);
    header.writeUInt32LE(flags, 12);
    await client.do({ do: "send", hex: header.toString("hex") });
    assert.equal((await client.do({ do: "receive" })).end, true, `${tag} ${request} ${flags}`);
    await client.do({ do: "connect", path });
  }
});

void test("mistake 10: a message in pieces is put together, two in one piece are told apart", async (t) => {
  const { client } = await connected(t, MiB);
  const header = Buffer.alloc(20);
  header.writeBigUInt64LE(5n, 0);
  header.writeUInt32LE(9, 12);
  for (const byte of header) await client.do({ do: "send", hex: Buffer.from([byte]).toString("hex") });
  assert.equal((await client.do({ do: "receive" })).tag, 5);
  const fetch = Buffer.alloc(44);
  fetch.writeBigUInt64LE(6n, 0);
  fetch.writeUInt32LE(2, 8);
  fetch.writeUInt32LE(9, 12);
  fetch.writeUInt32LE(24, 16);
  await client.do({ do: "send", hex: Buffer.concat([header, fetch, header, fetch]).toString("hex") });
  const tags = [];
  for (let each = 0; each < 4; each++) tags.push((await client.do({ do: "receive" })).tag);
  assert.deepEqual(
    tags.sort((a, b) => a - b),
    [5, 5, 6, 6],
  );
});

void test("the range map of version 1 tells what is ready, in 256 KiB, most significant bit first", async (t) => {
  const { client, blobId, dataDir } = await connected(t, 5 * 256 * KiB + 100, 64 * KiB);
  const path = join(dataDir, "blobs", `${blobId}.range_map`);
  const map = (): Promise<{ bits: string; ready: number; magic: number; bytes: number; magic2: number }> =>
    client.do({ do: "map", path });
  const { token } = await client.do({ do: "get", tag: 1, generation: 1, id: blobId });
  const fresh = await map();
  assert.deepEqual([fresh.magic, fresh.magic2, fresh.bytes, fresh.bits], [0x424d4150, 0x434d4150, 4097, "00"]);
  await client.do({ do: "fetch", tag: 2, token, start: 256 * KiB, count: 64 * KiB });
  assert.equal((await map()).bits, "00", "a quarter of a granule is not a granule");
  await client.do({ do: "fetch", tag: 3, token, start: 256 * KiB, count: 256 * KiB });
  assert.equal((await map()).bits, "40");
  await client.do({ do: "fetch", tag: 4, token, start: 0, count: 2 * MiB });
  const whole = await map();
  assert.deepEqual([whole.bits, whole.ready], ["fc", 0x4d4d4150]);
});

void test("the range map of version 1 is gone with its last client", async (t) => {
  const { client, blobId, dataDir } = await connected(t, MiB);
  const file = join(dataDir, "blobs", `${blobId}.range_map`);
  await client.do({ do: "get", tag: 1, generation: 1, id: blobId });
  assert.ok(!("error" in (await client.do({ do: "map", path: file }))));
  await client.do({ do: "close" });
  for (let tries = 0; tries < 200; tries++) {
    if ("error" in (await client.do({ do: "map", path: file }))) break;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.ok("error" in (await client.do({ do: "map", path: file })));
});

void test("mistake 10, 11: one client that stops reading blocks no other, and a slow fetch times nothing out", async (t) => {
  const { client, blobId, path, reader } = await connected(t, MiB);
  // Thousands of requests whose answers nobody takes.
  const header = Buffer.alloc(20);
  header.writeBigUInt64LE(9n, 0);
  header.writeUInt32LE(9, 12);
  const flood = Buffer.concat(Array.from({ length: 20_000 }, () => header)).toString("hex");
  void client.do({ do: "send", hex: flood }).catch(() => undefined);
  const { promise, resolve } = Promise.withResolvers<void>();
  reader.before = () => promise;
  const other = new V1Client(t);
  await other.do({ do: "connect", path });
  assert.equal((await other.do({ do: "noop", tag: 1 })).tag, 1);
  const mine = await other.do({ do: "get", tag: 2, generation: 1, id: blobId });
  await other.do({ do: "fetch", tag: 3, token: mine.token, start: 0, count: 4096, wait: false });
  await until("asked", () => reader.requests.length === 1);
  assert.equal((await other.do({ do: "noop", tag: 4 })).tag, 4, "requests run beside each other");
  resolve();
  assert.deepEqual((({ tag, result }) => [tag, result])(await other.do({ do: "receive" })), [3, 0]);
});
