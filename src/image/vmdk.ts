import type { ReadOptions } from "../backend/backend.ts";
import { damagedImage, unsupportedImage, type ImageFormat, type ImageReader } from "./image-format.ts";
import { u64le, within } from "./integers.ts";
import { leadingZeros, type BlockMap, type Extent } from "./block-map.ts";
import { MappedReader } from "./mapped-reader.ts";
import { PageCache } from "./page-cache.ts";
import { readBytes } from "./read-bytes.ts";

/*
 * VMware's hosted sparse extents (Virtual Disk Format 5.0), in one file: monolithicSparse and streamOptimized. All
 * integers little-endian, positions in sectors of 512 bytes.
 *
 *     header -> grain directory -> grain tables -> grains
 *     table entry  0: nothing, zeros; 1: zeros, if a flag of the header says so; else where the grain is
 *     a grain of a streamOptimized disk   u64 first sector | u32 bytes | zlib
 *
 * A streamOptimized disk may have its directory at the end; then a copy of the header, next to last, knows where.
 */

const FORMAT = "vmdk";
const SECTOR = 512;
const ZERO_GRAINS = 1 << 2;
const COMPRESSED = 1 << 16;
const MARKERS = 1 << 17;
const MARKER_BYTES = 12;
const MAX_DESCRIPTOR_BYTES = 1024 * 1024;
/** Entries of a table, as qemu has it. */
const MAX_TABLE_ENTRIES = 512;
const MAX_DIRECTORY_ENTRIES = 16 * 1024 * 1024;

const latin1 = (head: Uint8Array, length: number): string =>
  Buffer.from(head.buffer, head.byteOffset, Math.min(head.length, length)).toString("latin1");

export const vmdkFormat: ImageFormat = {
  name: FORMAT,
  container: false,
  detect: (head) => /^(?:KDMV|COWD|# Disk DescriptorFile)/.test(latin1(head, 32)),
  async open(source, { signal }) {
    const options = signal === undefined ? {} : { signal };
    if (source.size < SECTOR) throw damagedImage(FORMAT, `it has ${source.size} bytes, less than a header`);
    let header = await readBytes(source, 0, SECTOR, options);
    const magic = header.toString("latin1", 0, 4);
    if (magic === "COWD") throw unsupportedImage(FORMAT, "is an ESX sparse extent");
    if (!vmdkFormat.detect(header, source.size)) throw damagedImage(FORMAT, "it begins like none");
    if (magic !== "KDMV") throw unsupportedImage(FORMAT, "is a descriptor only: its data are in other files");
    await demandOneFile(source, header, options);
    if (u64le(header, 56) === Infinity) {
      // 0xffffffffffffffff: the directory was not known yet.
      header = await readBytes(source, Math.max(0, source.size - 2 * SECTOR), SECTOR, options);
      if (header.toString("latin1", 0, 4) !== "KDMV") throw damagedImage(FORMAT, "it has no footer");
    }
    return new MappedReader(source, new VmdkMap(new PageCache(source), layoutOf(header, source.size)));
  },
};

/** The descriptor within the file must know of no other one. */
async function demandOneFile(source: ImageReader, header: Buffer, options: ReadOptions): Promise<void> {
  const offset = u64le(header, 28) * SECTOR;
  const length = u64le(header, 36) * SECTOR;
  if (offset === 0 || length === 0) throw unsupportedImage(FORMAT, "is one of several files");
  if (length > MAX_DESCRIPTOR_BYTES || !within(offset, length, source.size)) {
    throw damagedImage(FORMAT, `its descriptor has ${length} bytes at ${offset}`);
  }
  const text = (await readBytes(source, offset, length, options)).toString("latin1").replace(/\0[^]*$/, "");
  const type = /^\s*createType\s*=\s*"([^"]*)"/im.exec(text)?.[1];
  if (type === undefined) throw unsupportedImage(FORMAT, "is one of several files");
  if (type !== "monolithicSparse" && type !== "streamOptimized") throw unsupportedImage(FORMAT, `is of type ${type}`);
  const parent = /^\s*parentCID\s*=\s*([0-9a-f]+)/im.exec(text)?.[1] ?? "ffffffff";
  if (parent.toLowerCase() !== "ffffffff") throw unsupportedImage(FORMAT, "lies on another one");
  const extents = text.match(/^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+\S+/gim) ?? [];
  if (extents.length !== 1) throw unsupportedImage(FORMAT, `has ${extents.length} extents`);
}

interface Layout {
  size: number;
  grainBytes: number;
  tableEntries: number;
  directoryOffset: number;
  directoryEntries: number;
  compressed: boolean;
  zeroGrains: boolean;
}

function layoutOf(header: Buffer, fileBytes: number): Layout {
  const version = header.readUInt32LE(4);
  if (version < 1 || version > 3) throw unsupportedImage(FORMAT, `has version ${version}`);
  const flags = header.readUInt32LE(8);
  const compressed = (flags & COMPRESSED) !== 0;
  if (compressed && ((flags & MARKERS) === 0 || header.readUInt16LE(77) !== 1)) {
    throw unsupportedImage(FORMAT, `has compression ${header.readUInt16LE(77)}, or no markers`);
  }
  const size = u64le(header, 12) * SECTOR;
  const grainBytes = u64le(header, 20) * SECTOR;
  const tableEntries = header.readUInt32LE(44);
  if (!Number.isSafeInteger(size)) throw damagedImage(FORMAT, "its disk has more than 2^53 bytes");
  if (grainBytes < 4096 || grainBytes > 2 ** 26 || !Number.isInteger(Math.log2(grainBytes))) {
    throw damagedImage(FORMAT, `its grains have ${grainBytes} bytes`);
  }
  if (tableEntries < 1 || tableEntries > MAX_TABLE_ENTRIES) {
    throw damagedImage(FORMAT, `its grain tables have ${tableEntries} entries`);
  }
  const directoryOffset = u64le(header, 56) * SECTOR;
  const directoryEntries = Math.ceil(size / (grainBytes * tableEntries));
  if (directoryEntries > MAX_DIRECTORY_ENTRIES || !within(directoryOffset, directoryEntries * 4, fileBytes)) {
    throw damagedImage(FORMAT, `its grain directory has ${directoryEntries} entries at ${directoryOffset}`);
  }
  const zeroGrains = (flags & ZERO_GRAINS) !== 0;
  return { size, grainBytes, tableEntries, directoryOffset, directoryEntries, compressed, zeroGrains };
}

class VmdkMap implements BlockMap {
  readonly name = FORMAT;
  readonly size: number;
  readonly #pages: PageCache;
  readonly #layout: Layout;

  constructor(pages: PageCache, layout: Layout) {
    this.size = layout.size;
    this.#pages = pages;
    this.#layout = layout;
  }

  async extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]> {
    const { grainBytes, tableEntries, directoryOffset } = this.#layout;
    const span = grainBytes * tableEntries;
    const first = Math.floor(offset / span);
    const end = Math.ceil((offset + length) / span);
    const directory = await this.#pages.bytes(directoryOffset + first * 4, (end - first) * 4, options);
    const tables: number[] = [];
    for (let table = first; table < end; table++) {
      const at = directory.readUInt32LE((table - first) * 4) * SECTOR;
      if (!within(at, tableEntries * 4, this.#pages.size))
        throw damagedImage(FORMAT, `grain table ${table} is at ${at}`);
      tables.push(at);
    }
    const there = tables.filter((at) => at !== 0);
    const view = await this.#pages.view(
      there.map((at) => ({ offset: at, length: tableEntries * 4 })),
      options,
    );
    const extents: Extent[] = [];
    for (let table = first; table < end; table++) {
      const start = Math.max(offset, table * span);
      const stop = Math.min(offset + length, (table + 1) * span);
      const at = tables[table - first];
      if (at === 0) extents.push({ kind: "zero", length: stop - start });
      else this.#grains(view.bytes(at, tableEntries * 4), table * span, start, stop, extents);
    }
    return extents;
  }

  #grains(table: Buffer, tableStart: number, start: number, stop: number, extents: Extent[]): void {
    const { grainBytes, compressed, zeroGrains } = this.#layout;
    const ends = compressed ? endsOf(table) : undefined;
    for (let at = start; at < stop;) {
      const skip = at % grainBytes;
      const length = Math.min(grainBytes - skip, stop - at);
      const sector = table.readUInt32LE(Math.floor((at - tableStart) / grainBytes) * 4);
      const host = sector * SECTOR;
      if (sector === 0 || (sector === 1 && zeroGrains)) extents.push({ kind: "zero", length });
      else if (ends !== undefined) extents.push(this.#packed(host, ends.get(sector), at, skip, length));
      else if (within(host + skip, length, this.#pages.size)) extents.push({ kind: "stored", length, at: host + skip });
      else throw damagedImage(FORMAT, `the grain of byte ${at} is at sector ${sector}`);
      at += length;
    }
  }

  /** @param next the sector that the next grain is at, if one of the same table follows */
  #packed(host: number, next: number | undefined, at: number, skip: number, length: number): Extent {
    const { grainBytes } = this.#layout;
    const most = MARKER_BYTES + grainBytes + Math.ceil(grainBytes / 64) + SECTOR;
    const end = Math.min(next === undefined ? Infinity : next * SECTOR, host + most, this.#pages.size);
    if (end - host <= MARKER_BYTES) throw damagedImage(FORMAT, `the grain of byte ${at} is at ${host}`);
    // The disk's last grain may be as short as the disk.
    const least = Math.min(grainBytes, this.size - (at - skip));
    return { kind: "packed", length, at: host, packedBytes: end - host, codec: "zlib", bytes: grainBytes, skip, least };
  }

  /** The table does not know how long a grain is; the marker before it does. */
  trim(packed: Buffer): Buffer {
    if (!this.#layout.compressed) return packed;
    const bytes = packed.readUInt32LE(8);
    if (MARKER_BYTES + bytes > packed.length) throw new Error(`a grain of ${bytes} bytes`);
    return packed.subarray(MARKER_BYTES, MARKER_BYTES + bytes);
  }

  zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number> {
    const { grainBytes, tableEntries } = this.#layout;
    return leadingZeros(this, grainBytes * tableEntries * 16, offset, length, options);
  }
}

/** For each grain's sector that of the next one: in a file that was written as a stream it ends there. */
function endsOf(table: Buffer): Map<number, number> {
  const sectors: number[] = [];
  for (let at = 0; at < table.length; at += 4) sectors.push(table.readUInt32LE(at));
  sectors.sort((a, b) => a - b);
  const ends = new Map<number, number>();
  for (let n = 1; n < sectors.length; n++) if (sectors[n] > sectors[n - 1]) ends.set(sectors[n - 1], sectors[n]);
  return ends;
}
