import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import {
  readSparse,
  sparseAlive,
  sparseData,
  sparseEnd,
  sparseFailure,
  sparseHeader,
} from "../../src/image/sparse-stream.ts";

const block = 4096;

/** As a network would: in chunks of these lengths, over and over. */
async function* chunked(bytes: Buffer, lengths: readonly number[]): AsyncGenerator<Buffer> {
  for (let at = 0, n = 0; at < bytes.length; n++) {
    const length = lengths[n % lengths.length];
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

async function decode(stream: Buffer, lengths: readonly number[] = [1000]): Promise<Buffer> {
  const { pieces } = await readSparse(chunked(stream, lengths));
  const file = Buffer.alloc(64 * block);
  let end = 0;
  for await (const { offset, bytes } of pieces) {
    bytes.copy(file, offset);
    end = offset + bytes.length;
  }
  return file.subarray(0, end);
}

function encode(file: Buffer, pieceBytes: number, size: number | undefined = file.length): Buffer {
  const parts = [sparseHeader(size)];
  for (let at = 0; at < file.length; at += pieceBytes) {
    parts.push(sparseData(file, at, Math.min(pieceBytes, file.length - at), at), sparseAlive(at));
  }
  return Buffer.concat([...parts, sparseEnd(file.length)]);
}

const files = fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 1, maxLength: 40 }).map((blocks) => {
  const file = Buffer.alloc(blocks.length * block - 512);
  for (const [index, value] of blocks.entries())
    if (value > 0) file[Math.min(index * block + 17, file.length - 1)] = value;
  return file;
});

void test("what is sent arrives, in whatever pieces, and blocks of zeros are not sent", async () => {
  const lengths = fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(
      files,
      lengths,
      fc.constantFrom(block, 4 * block),
      fc.boolean(),
      async (file, cuts, piece, known) => {
        const stream = encode(file, piece, known ? file.length : undefined);
        assert.ok((await decode(stream, cuts)).equals(file));
        const dataBlocks = Array.from({ length: Math.ceil(file.length / block) }, (_, index) =>
          file.subarray(index * block, (index + 1) * block).some((byte) => byte !== 0),
        ).filter(Boolean).length;
        assert.ok(stream.length <= 24 + 16 + dataBlocks * (block + 16) + 16 * 41);
      },
    ),
    { numRuns: 100 },
  );
});

void test("a stream that was cut anywhere is not taken for complete", async () => {
  const file = Buffer.alloc(3 * block, 1).fill(0, block, 2 * block);
  const stream = encode(file, block);
  for (let length = 0; length < stream.length; length += length < 60 ? 1 : 777) {
    await assert.rejects(decode(stream.subarray(0, length)), { code: "transfer-cut" }, `cut at ${length}`);
  }
  await assert.rejects(decode(stream.subarray(0, -1)), { code: "transfer-cut" });
});

void test("what can't be right is refused", async () => {
  const data = (offset: number): Buffer => sparseData(Buffer.alloc(block, 1), 0, block, offset);
  const header = sparseHeader(4 * block);
  const huge = sparseEnd(0);
  huge.writeUInt32BE(2 ** 31, 12);
  const kind = sparseEnd(0);
  kind.writeUInt32BE(9, 8);
  const offset = sparseEnd(0);
  offset.writeBigUInt64BE(2n ** 63n, 0);
  const wrong: Record<string, Buffer[]> = {
    "no header": [Buffer.alloc(100, 7)],
    "going back": [header, data(block), data(0)],
    overlap: [header, data(0), data(100)],
    "data behind the end": [header, data(4 * block)],
    "another end": [header, sparseEnd(5 * block)],
    "more behind the end": [header, sparseEnd(4 * block), sparseAlive()],
    "a record of 2 GiB": [header, huge],
    "an unknown kind": [header, kind],
    "an offset that is no Number": [header, offset],
    "a failure that is no JSON": [header, Buffer.concat([failing(3), Buffer.from("abc")])],
  };
  for (const [what, parts] of Object.entries(wrong)) {
    await assert.rejects(decode(Buffer.concat(parts)), { code: "transfer-damaged" }, what);
  }
});

function failing(length: number): Buffer {
  const record = sparseEnd(0);
  record.writeUInt32BE(2, 8);
  record.writeUInt32BE(length, 12);
  return record;
}

void test("a failure of the sender is thrown where the stream ends, with its code and hint", async () => {
  const failure = { code: "source-lost", detail: "the source is away", hint: "bring it back" };
  const stream = Buffer.concat([sparseHeader(block), sparseFailure(0, failure)]);
  await assert.rejects(decode(stream), { code: "source-lost", message: "the source is away", hint: "bring it back" });
});

void test("what a sender has looked at is known while it comes", async () => {
  const content = await readSparse(
    chunked(Buffer.concat([sparseHeader(8 * block, 5 * block), sparseAlive(3 * block), sparseEnd(8 * block)]), [7]),
  );
  assert.deepEqual([content.size, content.dataBytes, content.looked], [8 * block, 5 * block, 0]);
  await content.pieces.next();
  assert.equal(content.looked, 3 * block);
});
