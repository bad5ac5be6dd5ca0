import type { ReadOptions } from "../backend/backend.ts";
import { crc32c } from "../base/crc32c.ts";
import { damagedImage, unsupportedImage, type ImageFormat, type ImageReader } from "./image-format.ts";
import { u64le, within } from "./integers.ts";
import { leadingZeros, type BlockMap, type Extent } from "./block-map.ts";
import { MappedReader } from "./mapped-reader.ts";
import { PageCache } from "./page-cache.ts";
import { readBytes } from "./read-bytes.ts";
import { replayLog } from "./vhdx-log.ts";

/*
 * VHDX (MS-VHDX), fixed and dynamic. All integers little-endian.
 *
 *     0       "vhdxfile"
 *     64 K    header, and another one at 128 K: the one with the higher sequence number and a right checksum counts
 *     192 K   region table, and a copy of it at 256 K: where the block allocation table and the metadata are
 *
 * After every (2^23 x sector / block) entries of the table comes one for a bitmap, which only differencing disks use.
 * A file that was not closed has a log, which is replayed first (vhdx-log.ts).
 */

const FORMAT = "vhdx";
const KIB = 1024;
const MIB = 1024 * KIB;
const HEADER_BYTES = 4 * KIB;
const REGION_TABLE_BYTES = 64 * KIB;
const METADATA_TABLE_BYTES = 64 * KIB;

const BAT_REGION = guid("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA_REGION = guid("8b7ca206-4790-4b9a-b8fe-575f050f886e");
const FILE_PARAMETERS = guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE = guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const SECTOR_SIZE = guid("8141bf1d-a96f-4709-ba47-f233a8faab5f");

const FULLY_PRESENT = 6;
const PARTIALLY_PRESENT = 7;

export const vhdxFormat: ImageFormat = {
  name: FORMAT,
  container: false,
  detect: (head) => Buffer.from(head.buffer, head.byteOffset, head.length).toString("latin1", 0, 8) === "vhdxfile",
  async open(file, { signal }) {
    const options = signal === undefined ? {} : { signal };
    if (file.size < MIB) throw damagedImage(FORMAT, `it has ${file.size} bytes, less than its headers`);
    const source = await replayLog(file, await currentHeader(file, options), options);
    const head = await readBytes(source, 0, 320 * KIB, options);
    const regions = regionsOf(head, source.size);
    const disk = await readMetadata(source, regions.metadata, options);
    const chunkRatio = (2 ** 23 * disk.sectorBytes) / disk.blockBytes;
    const blocks = Math.ceil(disk.size / disk.blockBytes);
    const entries = blocks + Math.floor((blocks - 1) / chunkRatio);
    if (entries * 8 > regions.table.length) {
      throw damagedImage(FORMAT, `its table of ${regions.table.length} bytes is too short for ${entries} entries`);
    }
    return new MappedReader(source, new VhdxMap(new PageCache(source), regions.table.offset, disk, chunkRatio));
  },
};

async function currentHeader(source: ImageReader, options: ReadOptions): Promise<Buffer> {
  const head = await readBytes(source, 0, 192 * KIB, options);
  const valid = [64 * KIB, 128 * KIB]
    .map((at) => head.subarray(at, at + HEADER_BYTES))
    .filter((header) => header.toString("latin1", 0, 4) === "head" && checksumFits(header));
  const newest = valid.sort((a, b) => u64le(b, 8) - u64le(a, 8)).at(0);
  if (newest === undefined) throw damagedImage(FORMAT, "neither of its headers has a right checksum");
  const version = newest.readUInt16LE(66);
  if (version !== 1) throw unsupportedImage(FORMAT, `has version ${version}`);
  return newest;
}

interface Region {
  offset: number;
  length: number;
}

function regionsOf(head: Buffer, fileBytes: number): { table: Region; metadata: Region } {
  const region = [192 * KIB, 256 * KIB]
    .map((at) => head.subarray(at, at + REGION_TABLE_BYTES))
    .find((table) => table.toString("latin1", 0, 4) === "regi" && checksumFits(table));
  if (region === undefined) throw damagedImage(FORMAT, "neither of its region tables has a right checksum");
  const count = region.readUInt32LE(8);
  if (count > 2047) throw damagedImage(FORMAT, `its region table has ${count} entries`);
  const found = new Map<string, Region>();
  for (let at = 16; at < 16 + count * 32; at += 32) {
    const id = region.toString("hex", at, at + 16);
    const offset = u64le(region, at + 16);
    const length = region.readUInt32LE(at + 24);
    const required = (region.readUInt32LE(at + 28) & 1) !== 0;
    if (id !== BAT_REGION && id !== METADATA_REGION) {
      if (required) throw unsupportedImage(FORMAT, "needs a region that this version does not know");
      continue;
    }
    if (offset < MIB || !within(offset, length, fileBytes)) throw damagedImage(FORMAT, `a region is at ${offset}`);
    found.set(id, { offset, length });
  }
  const table = found.get(BAT_REGION);
  const metadata = found.get(METADATA_REGION);
  if (table === undefined || metadata === undefined) throw damagedImage(FORMAT, "a region is missing");
  return { table, metadata };
}

interface Disk {
  size: number;
  blockBytes: number;
  sectorBytes: number;
}

async function readMetadata(source: ImageReader, region: Region, options: ReadOptions): Promise<Disk> {
  if (region.length < METADATA_TABLE_BYTES) throw damagedImage(FORMAT, "its metadata are too short");
  const pages = new PageCache(source);
  const bytes = await pages.bytes(region.offset, METADATA_TABLE_BYTES, options);
  if (bytes.toString("latin1", 0, 8) !== "metadata") throw damagedImage(FORMAT, "its metadata are none");
  const count = bytes.readUInt16LE(10);
  if (count > 1023) throw damagedImage(FORMAT, `its metadata have ${count} items`);
  const item = async (id: string, length: number): Promise<Buffer> => {
    for (let at = 32; at < 32 + count * 32; at += 32) {
      if (bytes.toString("hex", at, at + 16) !== id) continue;
      const offset = bytes.readUInt32LE(at + 16);
      if (offset < METADATA_TABLE_BYTES || !within(offset, length, region.length)) break;
      return pages.bytes(region.offset + offset, length, options);
    }
    throw damagedImage(FORMAT, "an item is missing from its metadata");
  };
  const parameters = await item(FILE_PARAMETERS, 8);
  const blockBytes = parameters.readUInt32LE(0);
  if ((parameters.readUInt32LE(4) & 2) !== 0) throw unsupportedImage(FORMAT, "is a differencing disk");
  if (blockBytes < MIB || blockBytes > 256 * MIB || !Number.isInteger(Math.log2(blockBytes))) {
    throw damagedImage(FORMAT, `its blocks have ${blockBytes} bytes`);
  }
  const sectorBytes = (await item(SECTOR_SIZE, 4)).readUInt32LE(0);
  if (sectorBytes !== 512 && sectorBytes !== 4096) throw damagedImage(FORMAT, `its sectors have ${sectorBytes} bytes`);
  const size = u64le(await item(DISK_SIZE, 8), 0);
  if (size > 64 * MIB * MIB || size % sectorBytes !== 0) throw damagedImage(FORMAT, `its disk has ${size} bytes`);
  return { size, blockBytes, sectorBytes };
}

class VhdxMap implements BlockMap {
  readonly name = FORMAT;
  readonly size: number;
  readonly #pages: PageCache;
  readonly #table: number;
  readonly #blockBytes: number;
  readonly #chunkRatio: number;

  constructor(pages: PageCache, table: number, disk: Disk, chunkRatio: number) {
    this.size = disk.size;
    this.#pages = pages;
    this.#table = table;
    this.#blockBytes = disk.blockBytes;
    this.#chunkRatio = chunkRatio;
  }

  async extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]> {
    const first = Math.floor(offset / this.#blockBytes);
    const end = Math.ceil((offset + length) / this.#blockBytes);
    const entryOf = (block: number): number => block + Math.floor(block / this.#chunkRatio);
    const from = entryOf(first);
    const entries = await this.#pages.bytes(this.#table + from * 8, (entryOf(end - 1) + 1 - from) * 8, options);
    const extents: Extent[] = [];
    for (let block = first; block < end; block++) {
      const start = Math.max(offset, block * this.#blockBytes);
      const count = Math.min(offset + length, (block + 1) * this.#blockBytes) - start;
      const entry = (entryOf(block) - from) * 8;
      const state = entries[entry] & 7;
      if (state === PARTIALLY_PRESENT || state === 4) throw damagedImage(FORMAT, `block ${block} has state ${state}`);
      if (state !== FULLY_PRESENT) {
        extents.push({ kind: "zero", length: count });
        continue;
      }
      const at = Math.floor(u64le(entries, entry) / MIB) * MIB + (start - block * this.#blockBytes);
      if (!within(at, count, this.#pages.size)) throw damagedImage(FORMAT, `block ${block} lies outside of the file`);
      extents.push({ kind: "stored", length: count, at });
    }
    return extents;
  }

  zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number> {
    return leadingZeros(this, this.#blockBytes * 2048, offset, length, options);
  }
}

/** CRC-32C over all, with the checksum itself as zeros. */
function checksumFits(bytes: Buffer): boolean {
  const copy = Buffer.from(bytes);
  copy.writeUInt32LE(0, 4);
  return crc32c(copy, 0, copy.length) === bytes.readUInt32LE(4);
}

/** As it stands in a file: the first three groups little-endian; in hex digits. */
function guid(text: string): string {
  const [a, b, c, d, e] = text.split("-");
  const swapped = (group: string): string => Buffer.from(Buffer.from(group, "hex").toReversed()).toString("hex");
  return swapped(a) + swapped(b) + swapped(c) + d + e;
}
