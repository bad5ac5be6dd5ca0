import { UllageError } from "../base/errors.ts";
import { dataRuns } from "../base/zero-blocks.ts";

/*
 * The content of a file as a stream that leaves zeros out, and that can't be taken for complete when it is not. All numbers
 * are unsigned and big-endian.
 *
 *     header   8 "ULLSPRS1" | 8 size of the file (2^64-1: not known yet) | 8 bytes that it holds about (0: unknown)
 *     record   8 offset | 4 kind | 4 length | `length` bytes
 *
 * | kind | offset | bytes |
 * | --- | --- | --- |
 * | 0 data | where the bytes belong, at or behind the end of the data before | what is there |
 * | 1 end | size of the file | none; nothing comes behind it |
 * | 2 failure | how far it came | JSON with `code`, `detail` and perhaps `hint`; nothing comes behind it |
 * | 3 alive | how many of the header's bytes it has looked at, zeros included; 0: unknown | none |
 *
 * What no data is sent for reads as zeros.
 */

export const sparseContentType = "application/vnd.ullage.sparse";

const magic = "ULLSPRS1";
const headerBytes = 24;
const recordBytes = 16;
const kinds = { data: 0, end: 1, failure: 2, alive: 3 } as const;
const unknownSize = 2n ** 64n - 1n;
/** A record of more is damage: nobody makes one. */
const maxRecordBytes = 16 * 1024 * 1024;
const nothing: Buffer = Buffer.alloc(0);

/** @param size bytes; undefined: not known yet @param dataBytes about so many are other than zeros; 0: unknown */
export function sparseHeader(size: number | undefined, dataBytes = 0): Buffer {
  const header = Buffer.alloc(headerBytes);
  header.write(magic, "latin1");
  header.writeBigUInt64BE(size === undefined ? unknownSize : BigInt(size), 8);
  header.writeBigUInt64BE(BigInt(dataBytes), 16);
  return header;
}

/** What `bytes[at, at + length)`, which belongs at `offset`, is in the stream; empty when all of it is zeros. */
export function sparseData(bytes: Buffer, at: number, length: number, offset: number): Buffer {
  const runs = dataRuns(bytes, at, length);
  const total = runs.reduce((sum, run) => sum + recordBytes + run.length, 0);
  const records = Buffer.allocUnsafe(total);
  let position = 0;
  for (const run of runs) {
    writeRecord(records, position, offset + run.offset - at, kinds.data, run.length);
    bytes.copy(records, position + recordBytes, run.offset, run.offset + run.length);
    position += recordBytes + run.length;
  }
  return records;
}

/** @param size bytes of the whole file */
export function sparseEnd(size: number): Buffer {
  return record(size, kinds.end);
}

/** @param looked how many of the header's bytes have been looked at */
export function sparseAlive(looked = 0): Buffer {
  return record(looked, kinds.alive);
}

/** Why nothing more comes. */
export function sparseFailure(offset: number, failure: { code: string; detail: string; hint?: string }): Buffer {
  const text = Buffer.from(JSON.stringify(failure));
  return Buffer.concat([record(offset, kinds.failure, text.length), text]);
}

function record(offset: number, kind: number, length = 0): Buffer {
  const bytes = Buffer.allocUnsafe(recordBytes);
  writeRecord(bytes, 0, offset, kind, length);
  return bytes;
}

function writeRecord(bytes: Buffer, at: number, offset: number, kind: number, length: number): void {
  bytes.writeBigUInt64BE(BigInt(offset), at);
  bytes.writeUInt32BE(kind, at + 8);
  bytes.writeUInt32BE(length, at + 12);
}

/** Bytes of a file and where they belong; perhaps none. Behind the last one, an empty piece stands at the end of the file. */
export interface Piece {
  offset: number;
  bytes: Buffer;
}

export interface SparseContent {
  /** bytes; undefined: known at the end */
  size: number | undefined;
  /** about so many bytes are other than zeros; 0: unknown */
  dataBytes: number;
  /** Of them, so many have been looked at when the last piece came. */
  looked: number;
  /**
   * In ascending order; a piece is part of what was received and is not kept. Throws what the sender failed with, or
   * UllageError `transfer-damaged`, `transfer-cut`.
   */
  pieces: AsyncGenerator<Piece, void, undefined>;
}

/** Reads the header. @throws UllageError `transfer-damaged`, `transfer-cut` */
export async function readSparse(chunks: AsyncIterable<Buffer>): Promise<SparseContent> {
  const input = new Input(chunks);
  const header = await input.take(headerBytes);
  if (header.toString("latin1", 0, 8) !== magic) throw damaged("it does not begin like one");
  const size = header.readBigUInt64BE(8);
  const known = size === unknownSize ? undefined : checked(size);
  const content = { size: known, dataBytes: checked(header.readBigUInt64BE(16)), looked: 0 };
  const pieces = readPieces(input, known, (looked) => (content.looked = Math.max(looked, content.looked)));
  return Object.assign(content, { pieces });
}

async function* readPieces(
  input: Input,
  size: number | undefined,
  onAlive: (looked: number) => void,
): AsyncGenerator<Piece, void, undefined> {
  let done = 0;
  for (;;) {
    const head = await input.take(recordBytes);
    const offset = checked(head.readBigUInt64BE(0));
    const kind = head.readUInt32BE(8);
    const length = head.readUInt32BE(12);
    if (length > maxRecordBytes) throw damaged(`a record of ${length} bytes`);
    if (kind === kinds.failure) throw failureOf(await input.take(length));
    if (kind === kinds.alive) {
      onAlive(offset);
      yield { offset: done, bytes: nothing };
      continue;
    }
    if (offset < done) throw damaged(`${offset} comes behind ${done}`);
    if (kind === kinds.end) {
      if (size !== undefined && offset !== size) throw damaged(`it ends at ${offset}, and was to end at ${size}`);
      await input.end();
      yield { offset, bytes: nothing };
      return;
    }
    if (kind !== kinds.data) throw damaged(`a record of kind ${kind}`);
    done = offset + length;
    if (size !== undefined && done > size) throw damaged(`${done} lies behind its end at ${size}`);
    for (let at = offset; at < done;) {
      const bytes = await input.some(done - at);
      yield { offset: at, bytes };
      at += bytes.length;
    }
  }
}

/** Chunks of any length, taken in other lengths. */
class Input {
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = nothing;

  constructor(chunks: AsyncIterable<Buffer>) {
    this.#chunks = chunks[Symbol.asyncIterator]();
  }

  /** One byte at least, `most` at most, whatever is there. */
  async some(most: number): Promise<Buffer> {
    while (this.#rest.length === 0) {
      const next = await this.#chunks.next();
      if (next.done === true) throw new UllageError("transfer-cut", "the transfer ended before all was there");
      this.#rest = next.value;
    }
    const taken = this.#rest.subarray(0, most);
    this.#rest = this.#rest.subarray(taken.length);
    return taken;
  }

  /** Nothing may follow. */
  async end(): Promise<void> {
    while (this.#rest.length === 0) {
      const next = await this.#chunks.next();
      if (next.done === true) return;
      this.#rest = next.value;
    }
    throw damaged("it goes on behind its end");
  }

  async take(length: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let left = length; left > 0;) {
      const part = await this.some(left);
      parts.push(part);
      left -= part.length;
    }
    return parts.length === 1 ? parts[0] : Buffer.concat(parts);
  }
}

function failureOf(text: Buffer): UllageError {
  try {
    const { code, detail, hint } = JSON.parse(text.toString()) as { code: string; detail: string; hint?: string };
    return new UllageError(code, detail, hint === undefined ? {} : { hint });
  } catch {
    return damaged("its failure can't be read");
  }
}

function checked(value: bigint): number {
  if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(value);
  throw damaged(`${value} bytes`);
}

function damaged(why: string): UllageError {
  return new UllageError("transfer-damaged", `this is no sparse stream: ${why}`);
}
