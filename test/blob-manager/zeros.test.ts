import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { Sink, ZeroTaker } from "../../src/backend/backend.ts";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { Request } from "../../src/blob/remote/wire.ts";
import { SharedReadiness } from "../../src/blob/shared-readiness.ts";
import { BlobListener } from "../../src/daemon/cache/blob-listener.ts";
import type { ImageReader } from "../../src/image/image-format.ts";
import { atEnd, ManualClock, openCache, testObject } from "../blob/support.ts";
import { client, openRemote, until } from "./support.ts";
import { V1Client } from "./v1-client.ts";

/*
 * What the image's tables say is zeros, told over the blob manager's socket: version 2's request Learn, and memory in which
 * the answers are.
 */

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const unit = 64 * 1024;

/** An image of which a table is all there is: every second unit of the first MiB has data, and nothing behind it. */
class Tables implements ImageReader {
  readonly size: number;
  readonly questions: [number, number][] = [];
  reads = 0;
  before: () => Promise<void> | void = () => undefined;

  constructor(size: number) {
    this.size = size;
  }

  async tellZeros(offset: number, length: number, take: ZeroTaker): Promise<void> {
    this.questions.push([offset, length]);
    await this.before();
    let at = offset;
    for (; at < Math.min(MiB, offset + length); at += unit) take(unit, (at / unit) % 2 === 1);
    if (at < offset + length) take(offset + length - at, true);
  }

  async read(_offset: number, length: number, sink: Sink): Promise<void> {
    this.reads++;
    await sink(Buffer.alloc(length, 7));
  }
}

/** Bits of the first MiB, the least significant first. */
const everySecond = "aaaa";

async function world(t: TestContext, size: number, options: { imageFormat?: string; clock?: Clock } = {}) {
  const { imageFormat = "qcow2", clock = systemClock } = options;
  const tables = new Tables(size);
  const { cache, dataDir, log } = await openCache(t, { clock, openSource: () => Promise.resolve(tables) });
  const { id } = await cache.create({ ...testObject(size), imageFormat, unitBytes: unit });
  await cache.release(id);
  const path = join(dataDir, "blobd.sock");
  /** Says nothing of zeros in the readiness that it makes. */
  const older = { manager: false };
  const create = SharedReadiness.create.bind(SharedReadiness);
  const { mock } = t.mock.method(SharedReadiness, "create", (units: number, room: { zeros?: boolean }) =>
    create(units, older.manager ? {} : room),
  );
  atEnd(t, () => mock.restore());
  const store = {
    open: (blobId: string) => cache.open(blobId),
    release: (blobId: string) => cache.release(blobId),
  };
  const listen = () =>
    BlobListener.open({ path, dataDir, store, log: (level, message) => log.push(`${level} ${message}`) });
  let listener = await listen();
  atEnd(t, () => listener.close());
  const restart = async (): Promise<void> => {
    await listener.close();
    listener = await listen();
  };
  return { tables, cache, id, path, log, older, restart };
}

/** A client of version 2 that shares no code with ours. */
async function stranger(t: TestContext, path: string) {
  const other = new V1Client(t);
  await other.do({ do: "connect", path });
  const send = (tag: number, request: number, body: Buffer, flags = 2 | 8) => {
    const header = Buffer.alloc(20);
    header.writeBigUInt64LE(BigInt(tag), 0);
    header.writeUInt32LE(request, 8);
    header.writeUInt32LE(flags, 12);
    header.writeUInt32LE(body.length, 16);
    return other.do({ do: "send", hex: Buffer.concat([header, body]).toString("hex") });
  };
  const receive = () => other.do({ do: "receive" });
  const open = async (id: string): Promise<bigint> => {
    const body = Buffer.alloc(260);
    body.writeUInt32LE(1, 0);
    body.write(id, 4);
    await send(1, 1, body);
    const got = await receive();
    assert.deepEqual([got.result, got.descriptors, got.size], [0, 2, 32]);
    return Buffer.from(got.body, "hex").readBigUInt64LE(0);
  };
  /** Of the readiness, which was passed last. */
  const memory = async (offset: number, length: number): Promise<Buffer> =>
    Buffer.from((await other.do({ do: "read", offset, length })).hex, "hex");
  return { send, receive, open, memory, connect: () => other.do({ do: "connect", path }) };
}

function learnBody(token: bigint, start: bigint | number, count: bigint | number): Buffer {
  const body = Buffer.alloc(24);
  body.writeBigUInt64LE(token, 0);
  body.writeBigUInt64LE(BigInt(start), 8);
  body.writeBigUInt64LE(BigInt(count), 16);
  return body;
}

/** The result of an answer to Learn. */
const resultOf = (body: string): number => Buffer.from(body, "hex").readUInt32LE(8);

void test("the readiness says where the zeros' bits are, and Learn is answered when they are there", async (t) => {
  const { tables, id, path } = await world(t, 2 * MiB);
  const other = await stranger(t, path);
  const token = await other.open(id);
  const figures = await other.memory(0, 64);
  const zerosAt = figures.readDoubleLE(48);
  assert.equal(zerosAt, 4096 + 2 * 8, "behind two bitmaps of 32 units");
  assert.equal(figures.readDoubleLE(56), 0);
  assert.equal((await other.memory(0, 1 << 20)).length, zerosAt + 2 * 8);
  await other.send(2, 14, learnBody(token, MiB, 4096));
  const answer = await other.receive();
  assert.deepEqual([answer.tag, answer.request, answer.flags, answer.size], [2, 14, 2 | 4 | 8, 12]);
  assert.equal(answer.body, `${learnBody(token, 0, 0).toString("hex", 0, 8)}00000000`);
  assert.equal((await other.memory(zerosAt, 4)).toString("hex"), `${everySecond}ffff`);
  assert.equal((await other.memory(zerosAt + 8, 4)).toString("hex"), "ffffffff");
  assert.equal((await other.memory(56, 8)).readDoubleLE(0), 32);
  assert.deepEqual([tables.questions.length, tables.reads], [1, 0]);
});

void test("of a raw disk whose source can't be asked Learn tells nothing, at once, until all of it is in the cache", async (t) => {
  const { tables, cache, id, path } = await world(t, 2 * MiB, { imageFormat: "raw" });
  const other = await stranger(t, path);
  const token = await other.open(id);
  const zerosAt = (await other.memory(48, 16)).readDoubleLE(0);
  const learn = async (): Promise<string> => {
    await other.send(2, 14, learnBody(token, 0, 2 * MiB));
    assert.equal(resultOf((await other.receive()).body), 0);
    return (await other.memory(zerosAt, 16)).toString("hex");
  };
  assert.equal(await learn(), "0".repeat(32));
  const remote = await openRemote(client(t, path).client, id);
  assert.equal(await remote.zeros!.learn(0, 2 * MiB), 0);
  const blob = await cache.open(id);
  await blob.fetch(0, 2 * MiB);
  await blob.sync();
  assert.equal(await learn(), `${"0".repeat(16)}ffffffff${"0".repeat(8)}`, "told of, and no zeros");
  assert.equal(tables.questions.length, 0);
  await cache.release(id);
});

void test("a Learn that is malformed ends its connection; one of a wrong range, token or tag is answered so", async (t) => {
  const { tables, id, path, log } = await world(t, 2 * MiB);
  const other = await stranger(t, path);
  for (const [body, flags, why] of [
    [Buffer.alloc(23), 2 | 8, /request 14 with a body of 23 bytes/],
    [Buffer.alloc(25), 2 | 8, /request 14 with a body of 25 bytes/],
    [Buffer.alloc(0), 2 | 8, /request 14 with a body of 0 bytes/],
    [Buffer.alloc(24), 1 | 8, /request 14 in version 1/],
    [Buffer.alloc(24), 2 | 4, /a reply that nobody asked for/],
  ] as const) {
    await other.send(7, 14, body, flags);
    assert.equal((await other.receive()).end, true, String(why));
    assert.match(log.at(-1)!, why);
    await other.connect();
  }
  const token = await other.open(id);
  const past = 2n ** 63n;
  for (const [start, count, result] of [
    [2 * MiB + 1, 1, 1],
    [past, 4096, 1],
    [0, past, 1],
    [2 * MiB, 4096, 0],
    [0, 0, 0],
  ] as const) {
    await other.send(8, 14, learnBody(token, start, count));
    const { body } = await other.receive();
    assert.equal(resultOf(body), result, `${start}+${count}`);
    if (result === 1) assert.match(Buffer.from(body, "hex").toString("utf8", 12), /"bad-range"/);
  }
  await other.send(9, 14, learnBody(token + 1n, 0, 4096));
  assert.equal(resultOf((await other.receive()).body), 2);
  assert.equal(tables.questions.length, 0, "nothing of it was anything to ask about");
  const { promise, resolve } = Promise.withResolvers<void>();
  tables.before = () => promise;
  await other.send(10, 14, learnBody(token, 0, 4096));
  await until("asked", () => tables.questions.length === 1);
  await other.send(10, 14, learnBody(token, 0, 4096));
  const twice = await other.receive();
  assert.match(Buffer.from(twice.body, "hex").toString("utf8", 12), /"bad-tag"/);
  resolve();
  assert.equal(resultOf((await other.receive()).body), 0);
});

void test("of however much is asked at once, the tables are asked about 4 GiB", async (t) => {
  const { tables, id, path } = await world(t, 64 * GiB);
  const other = await stranger(t, path);
  const token = await other.open(id);
  await other.send(2, 14, learnBody(token, 0, 2n ** 52n));
  assert.equal(resultOf((await other.receive()).body), 0);
  assert.deepEqual(tables.questions, [[0, 4 * GiB]]);
  const blob = await openRemote(client(t, path).client, id);
  assert.equal(await blob.zeros!.learn(0, 64 * GiB), 64 * GiB, "our client asks on");
  assert.deepEqual(
    tables.questions.map(([, length]) => length),
    Array.from({ length: 16 }, () => 4 * GiB),
  );
});

void test("Learn can be cancelled, and clients that are stuck in it hold nobody else up, nor the manager's end", async (t) => {
  const { tables, id, path, restart } = await world(t, 2 * MiB, { clock: new ManualClock() }); // no wait ever ends
  tables.before = () => new Promise(() => undefined);
  const stuck = await stranger(t, path);
  const token = await stuck.open(id);
  for (let tag = 10; tag < 1000; tag++) void stuck.send(tag, 14, learnBody(token, 0, MiB)).catch(() => undefined);
  const other = await stranger(t, path);
  const mine = await other.open(id);
  await other.send(3, 14, learnBody(mine, 0, MiB));
  const tag = Buffer.alloc(8);
  tag.writeBigUInt64LE(3n);
  await other.send(4, 5, tag);
  const results = new Map<number, number>();
  for (let each = 0; each < 2; each++) {
    const { tag: answered, body } = await other.receive();
    results.set(answered, resultOf(body));
  }
  assert.deepEqual([results.get(3), results.get(4)], [3, 0]);
  await other.send(5, 2, learnBody(mine, 0, 4096), 1 | 8);
  assert.equal((await other.receive()).result, 0);
  await restart();
});

void test("a remote blob knows what the manager knows, whoever asked, and reads it without the source", async (t) => {
  const { tables, cache, id, path } = await world(t, 64 * MiB);
  const [one, two] = await Promise.all([
    openRemote(client(t, path).client, id),
    openRemote(client(t, path).client, id),
  ]);
  assert.ok(!one.zeros!.has(unit));
  const [all, some] = [one.zeros!.learn(0, 64 * MiB)!, two.zeros!.learn(unit, 4096)!];
  assert.deepEqual(await Promise.all([all, some]), [64 * MiB, 4096]);
  for (const { zeros } of [one, two, await cache.open(id)]) {
    assert.deepEqual([zeros!.has(0), zeros!.has(unit), zeros!.has(63 * MiB)], [false, true, true]);
    assert.equal(zeros!.run(MiB, 64 * MiB), 64 * MiB);
    assert.equal(zeros!.learn(0, 64 * MiB), undefined, "there is nothing left to ask");
  }
  await cache.release(id);
  assert.deepEqual(tables.questions, [[0, 64 * MiB]]);
  assert.equal(one.readyBytes, 0);
  await two.fetch(2 * MiB, 4096);
  assert.ok(two.isReady(2 * MiB, 32 * MiB), "all of the run became ready at once");
  const buffer = new IoBuffer(4096);
  buffer.bytes.fill(9);
  await two.file.read(buffer, 0, 4096, 2 * MiB);
  assert.ok(buffer.bytes.every((byte) => byte === 0));
  assert.equal(tables.reads, 0);
});

void test("what a manager knew before somebody shared its cache is shared, too", async (t) => {
  const { cache, id, path } = await world(t, 2 * MiB);
  const blob = await cache.open(id);
  await blob.zeros.learn(0, 2 * MiB);
  const remote = await openRemote(client(t, path).client, id);
  assert.ok(remote.zeros!.has(unit));
  assert.equal(remote.zeros!.learn(0, 2 * MiB), undefined);
  await cache.release(id);
});

void test("a question outlives its manager only if the next one knows the request; zeros told before are told until then", async (t) => {
  const { tables, id, path, older, restart } = await world(t, 128 * MiB);
  const made = client(t, path).client;
  const sent: number[] = [];
  const request = made.request.bind(made);
  made.request = (code, body, signal) =>
    request(
      code,
      () => {
        const bytes = body();
        if (bytes !== undefined) sent.push(code);
        return bytes;
      },
      signal,
    );
  const blob = await openRemote(made, id);
  await blob.zeros!.learn(0, 1);
  tables.before = () => new Promise(() => undefined);
  for (const manager of ["older", "newer"]) {
    older.manager = manager === "older";
    const learning = blob.zeros?.learn(64 * MiB, MiB);
    if (manager === "older") assert.ok(blob.zeros!.has(unit));
    sent.length = 0;
    await restart();
    await until("opened again", () => (blob.zeros === undefined) === older.manager && sent.includes(Request.getBlob));
    if (manager === "older") assert.equal(await learning, 0, "it ends, as one that was not answered");
    await blob.fetch(0, 4096);
    assert.ok(!sent.includes(Request.learn));
  }
  tables.before = () => undefined;
  assert.equal(await blob.zeros!.learn(0, 2 * MiB), 2 * MiB);
  assert.ok(sent.includes(Request.learn));
});
