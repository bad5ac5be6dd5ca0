import assert from "node:assert/strict";
import test from "node:test";
import * as fc from "fast-check";
import { type ReplyKinds, ReplyReader, type ReplySink } from "../../src/nbd/reply-reader.ts";
import type { ClientRequest } from "../../src/nbd/client-request.ts";
import { Command } from "../../src/nbd/protocol.ts";

const structured = { structured: true, contextId: 7 };

function request(cookie: number, command: number, offset = 0, length = 0): ClientRequest {
  const data = command === Command.read ? Buffer.alloc(length, 0xee) : undefined;
  return { cookie, command, flags: 0, offset, length, data, received: 0, error: 0, message: "" };
}

function simple(cookie: number, error = 0): Buffer {
  const reply = Buffer.alloc(16);
  reply.writeUInt32BE(0x67446698, 0);
  reply.writeUInt32BE(error, 4);
  reply.writeUInt32BE(cookie, 12);
  return reply;
}

function chunk(cookie: number, type: number, done: boolean, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt32BE(0x668e33ef, 0);
  header.writeUInt16BE(done ? 1 : 0, 4);
  header.writeUInt16BE(type, 6);
  header.writeUInt32BE(cookie, 12);
  header.writeUInt32BE(payload.length, 16);
  return Buffer.concat([header, payload]);
}

function offsetData(offset: number, data: Buffer): Buffer {
  const at = Buffer.alloc(8);
  at.writeBigUInt64BE(BigInt(offset));
  return Buffer.concat([at, data]);
}

function hole(offset: number, length: number): Buffer {
  const payload = Buffer.alloc(12);
  payload.writeBigUInt64BE(BigInt(offset));
  payload.writeUInt32BE(length, 8);
  return payload;
}

function errorChunk(code: number, message: string): Buffer {
  const head = Buffer.alloc(6);
  head.writeUInt32BE(code);
  head.writeUInt16BE(message.length, 4);
  return Buffer.concat([head, Buffer.from(message)]);
}

function take(requests: ClientRequest[], pieces: Buffer[], kinds: ReplyKinds = structured): string[] {
  const settled: string[] = [];
  const sink: ReplySink = {
    find: (cookie) => requests.find((candidate) => candidate.cookie === cookie),
    settled: ({ cookie, error, message }) => settled.push(`${cookie}:${error}:${message}`),
  };
  const reader = new ReplyReader(sink, kinds);
  for (const piece of pieces) reader.push(piece);
  return settled;
}

void test("replies are understood wherever the pieces that they arrive in end", () => {
  const offset = 2 ** 33;
  const data = Buffer.from(Array.from({ length: 300 }, (_, index) => index % 251));
  const stream = Buffer.concat([
    simple(1),
    chunk(2, 1, false, offsetData(offset + 100, data.subarray(100, 250))),
    simple(3, 28),
    chunk(2, 2, false, hole(offset + 250, 50)),
    chunk(2, 1, true, offsetData(offset, data.subarray(0, 100))),
    chunk(4, 0x8001, true, errorChunk(5, "it failed")),
    chunk(5, 1, false, offsetData(0, data.subarray(0, 8))),
    chunk(5, 0, true),
  ]);
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: stream.length - 1 }), { maxLength: 40 }), (cuts) => {
      const edges = [0, ...new Set(cuts.sort((a, b) => a - b)), stream.length];
      const pieces = edges.slice(1).map((end, index) => stream.subarray(edges[index], end));
      const read = request(2, Command.read, offset, 300);
      const small = request(5, Command.read, 0, 8);
      const requests = [request(1, Command.write), read, request(3, Command.write), request(4, Command.trim), small];
      assert.deepEqual(take(requests, pieces), ["1:0:", "3:28:", "2:0:", "4:5:it failed", "5:0:"]);
      assert.ok(read.data!.subarray(0, 250).equals(data.subarray(0, 250)));
      assert.ok(read.data!.subarray(250).every((byte) => byte === 0));
      assert.ok(small.data!.equals(data.subarray(0, 8)));
    }),
    { numRuns: 300 },
  );
});

void test("what no server may send ends the connection", () => {
  const read = (): ClientRequest => request(1, Command.read, 4096, 512);
  const wrong: [string, Buffer][] = [
    ["without the magic", Buffer.alloc(16)],
    ["never made", simple(7)],
    ["simple reply to a read", simple(1)],
    ["outside of the read", chunk(1, 1, true, offsetData(4000, Buffer.alloc(512)))],
    ["outside of the read", chunk(1, 1, true, offsetData(4096, Buffer.alloc(513)))],
    ["outside of the read", chunk(1, 2, true, hole(4096, 513))],
    ["100 of the 512 bytes", chunk(1, 1, true, offsetData(4096, Buffer.alloc(100)))],
    ["0 of the 512 bytes", chunk(1, 0, true)],
    ["type 5", chunk(1, 5, true, Buffer.alloc(12))],
    ["type 32769 and 5 bytes", chunk(1, 0x8001, true, Buffer.alloc(5))],
    ["type 32769 and 9999 bytes", chunk(1, 0x8001, true, Buffer.alloc(9999))],
    ["type none with a payload", chunk(1, 0, true, Buffer.alloc(1))],
    ["that is not the last one", chunk(1, 0, false)],
    ["outside of the read", chunk(1, 2, false, hole(4096, 0))],
    ["more than the 512 bytes", Buffer.concat([chunk(1, 2, false, hole(4096, 512)), chunk(1, 2, true, hole(4096, 1))])],
    ["two errors", Buffer.concat([1, 2].map(() => chunk(1, 0x8001, false, errorChunk(5, ""))))],
  ];
  for (const [message, bytes] of wrong) {
    assert.throws(() => take([read()], [bytes]), { code: "nbd-protocol", message: new RegExp(message) });
  }
});

void test("a server without structured replies answers reads with a simple reply and the data, or with an error alone", () => {
  const kinds = { structured: false, contextId: undefined };
  const data = Buffer.from(Array.from({ length: 100 }, (_, index) => index));
  const stream = Buffer.concat([simple(1, 5), simple(2), data, simple(1)]);
  for (let size = 1; size <= stream.length; size++) {
    const pieces = Array.from({ length: Math.ceil(stream.length / size) }, (_, index) =>
      stream.subarray(index * size, (index + 1) * size),
    );
    const read = request(2, Command.read, 4096, 100);
    assert.deepEqual(take([request(1, Command.flush), read], pieces, kinds), ["1:5:", "2:0:", "1:0:"]);
    assert.ok(read.data!.equals(data));
  }
  assert.throws(() => take([request(1, Command.read, 0, 1)], [chunk(1, 0, true)], kinds), /not agreed on/);
});

void test("an error that is not the last chunk is the request's error all the same", () => {
  const read = request(1, Command.read, 0, 512);
  const stream = [
    chunk(1, 0x8002, false, Buffer.concat([errorChunk(5, "bad\u001b[31m"), Buffer.alloc(8)])),
    chunk(1, 0, true),
  ];
  assert.deepEqual(take([read], stream), ["1:5:bad [31m"]);
});

void test("the extents of a block status are handed on one by one; a status may not be empty, double or foreign", () => {
  const extents = (context: number, ...numbers: number[]): Buffer => {
    const payload = Buffer.alloc(4 + 4 * numbers.length);
    for (const [index, number] of [context, ...numbers].entries()) payload.writeUInt32BE(number, 4 * index);
    return payload;
  };
  const status = (): ClientRequest & { taken: number[] } => {
    const taken: number[] = [];
    const takeExtent = (length: number, flags: number): void => void taken.push(length, flags);
    return { ...request(1, Command.blockStatus, 0, 4096), takeExtent, taken };
  };
  const stream = Buffer.concat([chunk(1, 5, false, extents(7, 512, 3, 1024, 0)), chunk(1, 0, true)]);
  for (let size = 1; size <= stream.length; size++) {
    const asked = status();
    const pieces = Array.from({ length: Math.ceil(stream.length / size) }, (_, index) =>
      stream.subarray(index * size, (index + 1) * size),
    );
    assert.deepEqual(take([asked], pieces), ["1:0:"]);
    assert.deepEqual(asked.taken, [512, 3, 1024, 0]);
  }
  const wrong: [string, Buffer][] = [
    ["without one", chunk(1, 0, true)],
    ["of no length", chunk(1, 5, true, extents(7, 0, 0))],
    ["nobody asked for", chunk(1, 5, false, extents(8, 512, 0))],
    ["two answers", Buffer.concat([1, 2].map(() => chunk(1, 5, false, extents(7, 512, 0))))],
    ["type 5 and 4 bytes", chunk(1, 5, true, extents(7))],
    ["type 1 and", chunk(1, 1, true, offsetData(0, Buffer.alloc(8)))],
  ];
  for (const [message, bytes] of wrong) {
    assert.throws(() => take([status()], [bytes]), { code: "nbd-protocol", message: new RegExp(message) });
  }
});
