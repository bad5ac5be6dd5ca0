import { crc32 } from "node:zlib";
import type { ReadOptions } from "../backend/backend.ts";
import { damagedImage, unsupportedImage, type ImageReader } from "./image-format.ts";
import { within } from "./integers.ts";
import { PageCache } from "./page-cache.ts";
import { readBytes } from "./read-bytes.ts";

/*
 * What an xz file says about itself (the .xz file format, version 1.2.1), and how one of its blocks becomes a file of its
 * own. Numbers are little-endian, or of variable length, seven bits a byte.
 *
 *     a stream     "\xfd7zXZ\0" flags crc32 | blocks … | index | crc32, bytes of the index, flags, "YZ"
 *     a block      header | packed bytes | up to a multiple of four | check
 *     the index    0 | number of blocks | for each: bytes without what fills it up, bytes unpacked | up to four | crc32
 *
 * A file is streams behind each other, with zeros between them.
 */

export const XZ_FORMAT = "xz";
const MAGIC = "\xfd7zXZ\0";
/** Of a stream's header, and of its footer. */
const FRAME_BYTES = 12;

/** Memory that the decoder has at most. */
const MAX_DICTIONARY_BYTES = 64 * 1024 * 1024;
/** Larger blocks are not worth a seek: each read would unpack as much. */
const MAX_BLOCK_BYTES = 32 * 1024 * 1024;
const MAX_INDEX_BYTES = 16 * 1024 * 1024;
const MAX_STREAMS = 1024;

const CHECK_NONE = 0;
const CHECK_CRC32 = 1;
const CHECK_CRC64 = 4;
const LZMA2 = 0x21;

export const isXz = (head: Uint8Array): boolean => Buffer.from(head).toString("latin1", 0, 6) === MAGIC;

/** Where each block begins, in the file and unpacked, and where the last one ends; the two bytes of flags. */
export interface XzBlocks {
  flags: Buffer;
  /** Of block n, without what fills it up to a multiple of four, `unpadded[n]` bytes from `packed[n]` on. */
  packed: Float64Array;
  unpadded: Float64Array;
  unpacked: Float64Array;
}

/**
 * Looks at the beginning: how the first block is packed.
 * @throws SourceError `image-unsupported` for what can't be unpacked at all
 */
export async function demandReadableXz(source: ImageReader, options: ReadOptions): Promise<void> {
  const head = await readBytes(source, 0, Math.min(source.size, FRAME_BYTES + 1024), options);
  if (!isXz(head) || head.length < FRAME_BYTES + 2) return; // the decoder says what is wrong
  const check = head[7] & 15;
  if (check !== CHECK_NONE && check !== CHECK_CRC32 && check !== CHECK_CRC64) {
    throw unsupportedImage(XZ_FORMAT, `has checks of type ${check}`, "compress it again: xz --check=crc64");
  }
  const end = FRAME_BYTES + (head[FRAME_BYTES] + 1) * 4;
  if (head[FRAME_BYTES] === 0 || end > head.length) return; // no block, or no file
  const numbers = new Numbers(head.subarray(FRAME_BYTES + 2, end));
  const flags = head[FRAME_BYTES + 1];
  if ((flags & 0x40) !== 0) numbers.next();
  if ((flags & 0x80) !== 0) numbers.next();
  for (let filters = (flags & 3) + 1; filters > 0; filters--) {
    const id = numbers.next();
    const properties = numbers.bytes(numbers.next());
    if (!Number.isFinite(id)) return;
    if (id !== LZMA2) {
      const hint = "compress it again without filters: unxz, then xz";
      throw unsupportedImage(XZ_FORMAT, `uses filter ${id.toString(16)}`, hint);
    }
    const bits = properties.length === 1 ? properties[0] & 63 : 0;
    const bytes = (2 | (bits & 1)) * 2 ** ((bits >> 1) + 11);
    if (bytes > MAX_DICTIONARY_BYTES) {
      const most = MAX_DICTIONARY_BYTES / 2 ** 20;
      const hint = "compress it again with a smaller one: unxz, then xz";
      const why = `needs a dictionary of ${Math.ceil(bytes / 2 ** 20)} MiB, and has to do with ${most} MiB`;
      throw unsupportedImage(XZ_FORMAT, why, hint);
    }
  }
}

/**
 * All blocks of all streams, from the indexes at their ends.
 * @returns undefined when reading block by block is of no use: there is only one, or a large one; or no end that could be
 * believed, which whoever unpacks it all will meet
 * @throws SourceError `image-damaged` for an index that can't be right
 */
export async function readXzBlocks(source: ImageReader, options: ReadOptions): Promise<XzBlocks | undefined> {
  const pages = new PageCache(source);
  const streams: { flags: Buffer; start: number; records: Float64Array }[] = [];
  for (let end = source.size; end > 0; end = streams[0].start) {
    end = await withoutPadding(pages, end, options);
    if (end < 2 * FRAME_BYTES + 8 || streams.length === MAX_STREAMS) return undefined;
    const footer = await pages.bytes(end - FRAME_BYTES, FRAME_BYTES, options);
    const genuine = footer.toString("latin1", 10) === "YZ" && crc32(footer.subarray(4, 10)) === footer.readUInt32LE(0);
    const indexBytes = (footer.readUInt32LE(4) + 1) * 4;
    const indexAt = end - FRAME_BYTES - indexBytes;
    if (!genuine || indexBytes > MAX_INDEX_BYTES) return undefined;
    if (indexAt < FRAME_BYTES) throw damagedImage(XZ_FORMAT, `its index of ${indexBytes} bytes does not fit`);
    const records = recordsOf(await readBytes(source, indexAt, indexBytes, options));
    let start = indexAt - FRAME_BYTES;
    for (let at = 0; at < records.length; at += 2) start -= padded(records[at]);
    if (!within(start, FRAME_BYTES, source.size))
      throw damagedImage(XZ_FORMAT, "its index is about more than there is");
    const header = await pages.bytes(start, FRAME_BYTES, options);
    const flags = Buffer.from(footer.subarray(8, 10));
    if (!isXz(header) || !header.subarray(6, 8).equals(flags)) {
      throw damagedImage(XZ_FORMAT, `there is no stream at ${start}, where its index says`);
    }
    streams.unshift({ flags, start, records });
  }
  const count = streams.reduce((sum, { records }) => sum + records.length / 2, 0);
  if (count < 2 || streams.some(({ flags }) => !flags.equals(streams[0].flags))) return undefined;
  return placed(streams, count);
}

function placed(
  streams: readonly { flags: Buffer; start: number; records: Float64Array }[],
  count: number,
): XzBlocks | undefined {
  const packed = new Float64Array(count);
  const unpadded = new Float64Array(count);
  const unpacked = new Float64Array(count + 1);
  let block = 0;
  for (const { start, records } of streams) {
    for (let record = 0, at = start + FRAME_BYTES; record < records.length; record += 2, block++) {
      const bytes = records[record + 1];
      if (bytes > MAX_BLOCK_BYTES || records[record] > 2 * MAX_BLOCK_BYTES) return undefined;
      packed[block] = at;
      unpadded[block] = records[record];
      unpacked[block + 1] = unpacked[block] + bytes;
      at += padded(records[record]);
    }
  }
  return { flags: streams[0].flags, packed, unpadded, unpacked };
}

/** The end of what comes before zeros, four at a time. */
async function withoutPadding(pages: PageCache, end: number, options: ReadOptions): Promise<number> {
  while (end >= 4 && (await pages.bytes(end - 4, 4, options)).readUInt32LE(0) === 0) end -= 4;
  return end;
}

/** Pairs: bytes without what fills them up, bytes unpacked. */
function recordsOf(index: Buffer): Float64Array {
  const bad = (): Error => damagedImage(XZ_FORMAT, "its index is none, or has a wrong checksum");
  const end = index.length - 4;
  if (index[0] !== 0 || crc32(index.subarray(0, end)) !== index.readUInt32LE(end)) throw bad();
  const numbers = new Numbers(index.subarray(1, end));
  const count = numbers.next();
  if (!(count * 2 <= index.length)) throw bad();
  const records = new Float64Array(count * 2);
  for (let at = 0; at < records.length; at++) {
    records[at] = numbers.next();
    if (!Number.isSafeInteger(records[at]) || (at % 2 === 0 && records[at] < 5)) throw bad();
  }
  return records;
}

const padded = (bytes: number): number => Math.ceil(bytes / 4) * 4;

/** Numbers of variable length. */
class Numbers {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  /** NaN: there is none. */
  next(): number {
    let value = 0;
    for (let scale = 1, count = 0; count < 9 && this.#at < this.#bytes.length; count++, scale *= 128) {
      const byte = this.#bytes[this.#at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    return NaN;
  }

  bytes(count: number): Buffer {
    const taken = this.#bytes.subarray(this.#at, this.#at + (Number.isFinite(count) ? count : 0));
    this.#at += taken.length;
    return taken;
  }
}

/**
 * A file with one block, made of a block's bytes.
 * @param block with what fills it up
 */
export function xzFileOf(block: Buffer, unpadded: number, unpacked: number, flags: Buffer): Buffer {
  const records = Buffer.from([0, 1, ...variable(unpadded), ...variable(unpacked)]);
  const index = Buffer.alloc(padded(records.length) + 4);
  records.copy(index);
  index.writeUInt32LE(crc32(index.subarray(0, -4)), index.length - 4);
  const header = Buffer.concat([Buffer.from(MAGIC, "latin1"), flags, Buffer.alloc(4)]);
  header.writeUInt32LE(crc32(flags), 8);
  const footer = Buffer.alloc(FRAME_BYTES);
  footer.writeUInt32LE(index.length / 4 - 1, 4);
  flags.copy(footer, 8);
  footer.write("YZ", 10, "latin1");
  footer.writeUInt32LE(crc32(footer.subarray(4, 10)), 0);
  return Buffer.concat([header, block, index, footer]);
}

function variable(value: number): number[] {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}
