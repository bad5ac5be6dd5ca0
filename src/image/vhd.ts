import type { ReadOptions } from "../backend/backend.ts";
import {
  damagedImage,
  unsupportedImage,
  type ImageFormat,
  type ImageReader,
  type OpenContext,
} from "./image-format.ts";
import { u64be, within } from "./integers.ts";
import { leadingZeros, type BlockMap, type Extent } from "./block-map.ts";
import { MappedReader } from "./mapped-reader.ts";
import { PageCache } from "./page-cache.ts";
import { readBytes, windowReader } from "./read-bytes.ts";

/*
 * Virtual Hard Disk (Microsoft's specification of 2006), fixed and dynamic. All integers big-endian.
 *
 *     fixed     the disk | footer
 *     dynamic   copy of the footer | dynamic header | block allocation table, blocks … | footer
 *     a block   bitmap of its sectors, filled up to a sector | its bytes
 *
 * The bitmaps are not looked at: of a disk without a parent, a sector that was never written is zeros in the block.
 * Auto-detection knows dynamic disks; a fixed one begins with the disk's own bytes and is raw but for its last sector,
 * which is only looked at when the object is called *.vhd: for all others that would be a request in vain.
 */

const FORMAT = "vhd";
const FOOTER_BYTES = 512;
const DYNAMIC_HEADER_BYTES = 1024;
const FIXED = 2;
const DYNAMIC = 3;
const NOWHERE = 0xffffffff;

export const vhdFormat: ImageFormat = {
  name: FORMAT,
  container: false,
  detect: (head) => Buffer.from(head.buffer, head.byteOffset, head.length).toString("latin1", 0, 8) === "conectix",
  async open(source, { signal }) {
    const options = signal === undefined ? {} : { signal };
    if (source.size < FOOTER_BYTES) throw damagedImage(FORMAT, `it has ${source.size} bytes, less than a footer`);
    const head = await readBytes(source, 0, FOOTER_BYTES, options);
    const footer = isFooter(head) ? head : await readBytes(source, source.size - FOOTER_BYTES, FOOTER_BYTES, options);
    if (!isFooter(footer)) throw damagedImage(FORMAT, "it has no footer with a right checksum");
    const size = u64be(footer, 48);
    if (!Number.isSafeInteger(size)) throw damagedImage(FORMAT, "its disk has more than 2^53 bytes");
    const type = footer.readUInt32BE(60);
    if (type === FIXED) {
      if (size > source.size - FOOTER_BYTES)
        throw damagedImage(FORMAT, `it has less than the ${size} bytes of its disk`);
      return windowReader(source, 0, size);
    }
    if (type !== DYNAMIC) {
      throw unsupportedImage(FORMAT, type === 4 ? "is a differencing disk" : `is of type ${type}`);
    }
    return new MappedReader(source, await dynamicMap(source, u64be(footer, 16), size, options));
  },
};

async function dynamicMap(source: ImageReader, at: number, size: number, options: ReadOptions): Promise<VhdMap> {
  if (!within(at, DYNAMIC_HEADER_BYTES, source.size)) throw damagedImage(FORMAT, `its dynamic header is at ${at}`);
  const header = await readBytes(source, at, DYNAMIC_HEADER_BYTES, options);
  if (header.toString("latin1", 0, 8) !== "cxsparse" || !checksumFits(header, 36)) {
    throw damagedImage(FORMAT, "its dynamic header is none, or has a wrong checksum");
  }
  const tableOffset = u64be(header, 16);
  const entries = header.readUInt32BE(28);
  const blockBytes = header.readUInt32BE(32);
  if (blockBytes < 4096 || blockBytes > 256 * 1024 * 1024 || !Number.isInteger(Math.log2(blockBytes))) {
    throw damagedImage(FORMAT, `its blocks have ${blockBytes} bytes`);
  }
  if (entries < Math.ceil(size / blockBytes) || !within(tableOffset, entries * 4, source.size)) {
    throw damagedImage(FORMAT, `its table has ${entries} entries at ${tableOffset}`);
  }
  return new VhdMap(new PageCache(source), tableOffset, blockBytes, size);
}

/** Whether a source is called a vhd. */
export function isCalledVhd(name: string): boolean {
  return /\.vhd(?:$|[?#])/i.test(name);
}

/** Whether the object is called a vhd, and ends like a fixed one. */
export async function isFixedVhd(source: ImageReader, { name = "", signal }: OpenContext): Promise<boolean> {
  if (!isCalledVhd(name) || source.size < FOOTER_BYTES) return false;
  const options = signal === undefined ? {} : { signal };
  const footer = await readBytes(source, source.size - FOOTER_BYTES, FOOTER_BYTES, options);
  return isFooter(footer) && footer.readUInt32BE(60) === FIXED;
}

function isFooter(bytes: Buffer): boolean {
  return bytes.toString("latin1", 0, 8) === "conectix" && checksumFits(bytes, 64);
}

/** The complement of the sum of all bytes but those of the checksum. */
function checksumFits(bytes: Buffer, at: number): boolean {
  let sum = 0;
  for (let byte = 0; byte < bytes.length; byte++) sum += byte >= at && byte < at + 4 ? 0 : bytes[byte];
  return bytes.readUInt32BE(at) === ~sum >>> 0;
}

class VhdMap implements BlockMap {
  readonly name = FORMAT;
  readonly size: number;
  readonly #pages: PageCache;
  readonly #table: number;
  readonly #blockBytes: number;
  readonly #bitmapBytes: number;

  constructor(pages: PageCache, table: number, blockBytes: number, size: number) {
    this.size = size;
    this.#pages = pages;
    this.#table = table;
    this.#blockBytes = blockBytes;
    this.#bitmapBytes = Math.ceil(blockBytes / 512 / 8 / 512) * 512;
  }

  async extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]> {
    const first = Math.floor(offset / this.#blockBytes);
    const end = Math.ceil((offset + length) / this.#blockBytes);
    const entries = await this.#pages.bytes(this.#table + first * 4, (end - first) * 4, options);
    const extents: Extent[] = [];
    for (let block = first; block < end; block++) {
      const start = Math.max(offset, block * this.#blockBytes);
      const count = Math.min(offset + length, (block + 1) * this.#blockBytes) - start;
      const sector = entries.readUInt32BE((block - first) * 4);
      if (sector === NOWHERE) {
        extents.push({ kind: "zero", length: count });
        continue;
      }
      const at = sector * 512 + this.#bitmapBytes + (start - block * this.#blockBytes);
      if (!within(at, count, this.#pages.size)) throw damagedImage(FORMAT, `block ${block} is at sector ${sector}`);
      extents.push({ kind: "stored", length: count, at });
    }
    return extents;
  }

  async zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number> {
    return leadingZeros(this, this.#blockBytes * 4096, offset, length, options);
  }
}
