import type { ReadOptions } from "../../backend/backend.ts";
import { damagedImage, type ImageReader } from "../image-format.ts";
import { within } from "../integers.ts";
import { leadingZeros, type BlockMap, type Extent } from "../block-map.ts";
import type { PageCache, PageView } from "../page-cache.ts";
import { zstdFrameBytes } from "../zstd-frame.ts";
import type { Qcow2Header } from "./header.ts";

/*
 *     L1 entry                     -> L2 table, one cluster
 *     L2 entry   0                 -> nothing here: the backing file's bytes, or zeros
 *                bit 0             -> zeros (version 3)
 *                bit 62            -> compressed: 512-byte sectors, from any byte on
 *                offset            -> a cluster of the file
 *     extended L2: each entry has 64 bits more, two for each of 32 parts: allocated here; zeros
 */

/** How long a question about zeros may go on, and how many tables each round of it is about. */
const ZERO_RUN_ROUNDS = 8;
const ZERO_RUN_TABLES = 8192;

/** Who goes through the disk finds so many tables coming, or fewer, of so many bytes (of all that are kept, the half). */
const AHEAD_TABLES = 16;
const AHEAD_BYTES = 2 * 1024 * 1024;
/** They are looked for among so many entries of L1. */
const AHEAD_ENTRIES = 1024;

export class Qcow2Map implements BlockMap {
  readonly name = "qcow2";
  readonly size: number;
  readonly trim: (packed: Buffer) => Buffer;
  readonly #header: Qcow2Header;
  readonly #pages: PageCache;
  readonly #backing: ImageReader | undefined;
  readonly #entryBytes: number;
  /** Entries of an L2 table. */
  readonly #l2Entries: number;
  /** Bytes of the disk that an L2 table is about. */
  readonly #l2Span: number;
  /** The first of the tables that were asked for ahead last. */
  #aheadFrom = -1;

  constructor(header: Qcow2Header, pages: PageCache, backing: ImageReader | undefined) {
    this.size = header.size;
    // The table knows a compressed cluster's length to the sector only, and the next one follows at once.
    this.trim = (packed) => (header.compression === "zstd" ? packed.subarray(0, zstdFrameBytes(packed)) : packed);
    this.#header = header;
    this.#pages = pages;
    this.#backing = backing;
    this.#entryBytes = header.extendedL2 ? 16 : 8;
    this.#l2Entries = header.clusterBytes / this.#entryBytes;
    this.#l2Span = header.clusterBytes * this.#l2Entries;
  }

  async extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]> {
    const first = Math.floor(offset / this.#l2Span);
    const end = Math.ceil((offset + length) / this.#l2Span);
    const tables = await this.#tables(first, end, options);
    const wanted: { offset: number; length: number }[] = [];
    for (let table = first; table < end; table++) {
      const { from, to } = this.#entriesOf(table, offset, length);
      const at = tables[table - first];
      if (at !== 0) wanted.push({ offset: at + from * this.#entryBytes, length: (to - from) * this.#entryBytes });
    }
    const view = await this.#pages.view(wanted, options);
    const extents: Extent[] = [];
    for (let table = first; table < end; table++) {
      const start = Math.max(offset, table * this.#l2Span);
      const stop = Math.min(offset + length, (table + 1) * this.#l2Span);
      const at = tables[table - first];
      if (at === 0) this.#unallocated(start, stop - start, extents);
      else this.#clusters(view, at, start, stop, extents);
    }
    return extents;
  }

  /** Tables that are not there say so for all that they would be about; the others are looked at piece by piece. */
  async zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number> {
    const end = offset + length;
    let at = offset;
    for (let rounds = 0; at < end && rounds < ZERO_RUN_ROUNDS; rounds++) {
      const first = Math.floor(at / this.#l2Span);
      const last = Math.min(Math.ceil(end / this.#l2Span), first + ZERO_RUN_TABLES);
      const tables = await this.#tables(first, last, options);
      const there = tables.findIndex((table) => table !== 0);
      const missing = there < 0 ? last - first : there;
      const stop = Math.min(end, (first + Math.max(missing, 1)) * this.#l2Span);
      const zeros = await (missing > 0
        ? this.#zerosBehind(at, stop - at, options)
        : leadingZeros(this, this.#l2Span, at, stop - at, options));
      at += zeros;
      if (at < stop) break;
    }
    return at - offset;
  }

  ahead(offset: number, options: ReadOptions | undefined): void {
    const first = Math.floor(offset / this.#l2Span);
    if (first === this.#aheadFrom) return;
    this.#aheadFrom = first;
    this.#bring(first, options?.background === true).catch(() => undefined); // whoever needs them meets the failure
  }

  /** Brings table `first` and those that follow, as far as they are there. */
  async #bring(first: number, background: boolean): Promise<void> {
    const { l1Entries, clusterBytes } = this.#header;
    const tables = await this.#tables(first, Math.min(l1Entries, first + AHEAD_ENTRIES), { background });
    const most = Math.min(AHEAD_TABLES, Math.floor(AHEAD_BYTES / clusterBytes));
    const wanted = tables.filter((at) => at !== 0).slice(0, most);
    await this.#pages.view(
      wanted.map((at) => ({ offset: at, length: clusterBytes })),
      { background },
    );
  }

  /** Zeros of the backing file, and behind its end. */
  async #zerosBehind(at: number, length: number, options: ReadOptions | undefined): Promise<number> {
    const inside = Math.max(0, Math.min(length, (this.#backing?.size ?? 0) - at));
    if (inside === 0) return length;
    const zeros = (await this.#backing!.zeroRun?.(at, inside, options)) ?? 0;
    return zeros === inside ? length : zeros;
  }

  /** Where the L2 tables [first, end) are; 0: nowhere. */
  async #tables(first: number, end: number, options: ReadOptions | undefined): Promise<number[]> {
    const { l1Offset, l1Entries, clusterBytes } = this.#header;
    if (end > l1Entries) throw damagedImage(this.name, `it has no L1 entry ${end - 1}`);
    const entries = await this.#pages.bytes(l1Offset + first * 8, (end - first) * 8, options);
    const tables: number[] = [];
    for (let at = 0; at < entries.length; at += 8) {
      const table = hostOffset(entries, at);
      if (table !== 0 && (table % clusterBytes !== 0 || !within(table, clusterBytes, this.#pages.size))) {
        throw damagedImage(this.name, `L2 table ${first + at / 8} is at ${table}`);
      }
      tables.push(table);
    }
    return tables;
  }

  /** The entries [from, to) of a table that the part of the range within it needs. */
  #entriesOf(table: number, offset: number, length: number): { from: number; to: number } {
    const start = Math.max(0, offset - table * this.#l2Span);
    const stop = Math.min(this.#l2Span, offset + length - table * this.#l2Span);
    const { clusterBytes } = this.#header;
    return { from: Math.floor(start / clusterBytes), to: Math.ceil(stop / clusterBytes) };
  }

  #clusters(view: PageView, table: number, start: number, stop: number, extents: Extent[]): void {
    const { clusterBytes } = this.#header;
    const { from, to } = this.#entriesOf(Math.floor(start / this.#l2Span), start, stop - start);
    const entries = view.bytes(table + from * this.#entryBytes, (to - from) * this.#entryBytes);
    for (let at = start, entry = 0; at < stop; entry += this.#entryBytes) {
      const skip = at % clusterBytes;
      const length = Math.min(clusterBytes - skip, stop - at);
      this.#cluster(entries, entry, at, skip, length, extents);
      at += length;
    }
  }

  /** [skip, skip + length) of the cluster that the entry is about; it is at `offset` of the disk. */
  #cluster(entries: Buffer, entry: number, offset: number, skip: number, length: number, extents: Extent[]): void {
    const { clusterBytes, extendedL2, version } = this.#header;
    if ((entries[entry] & 0x40) !== 0) {
      extents.push(this.#packed(entries, entry, skip, length));
      return;
    }
    const host = hostOffset(entries, entry);
    if (host % clusterBytes !== 0) throw damagedImage(this.name, `the cluster of byte ${offset} is at ${host}`);
    if (extendedL2) {
      this.#parts(entries, entry, host, offset, skip, length, extents);
      return;
    }
    if (version >= 3 && (entries[entry + 7] & 1) !== 0) extents.push({ kind: "zero", length });
    else if (host === 0) this.#unallocated(offset, length, extents);
    else this.#stored(host + skip, length, extents);
  }

  #parts(
    entries: Buffer,
    entry: number,
    host: number,
    offset: number,
    skip: number,
    length: number,
    extents: Extent[],
  ): void {
    const partBytes = this.#header.clusterBytes / 32;
    const zeros = entries.readUInt32BE(entry + 8);
    const allocated = entries.readUInt32BE(entry + 12);
    if (allocated !== 0 && host === 0) throw damagedImage(this.name, `the cluster of byte ${offset} is nowhere`);
    for (let at = skip; at < skip + length;) {
      const part = Math.floor(at / partBytes);
      const count = Math.min((part + 1) * partBytes, skip + length) - at;
      const bit = (1 << part) >>> 0;
      if ((allocated & bit) !== 0) this.#stored(host + at, count, extents);
      else if ((zeros & bit) !== 0) extents.push({ kind: "zero", length: count });
      else this.#unallocated(offset + at - skip, count, extents);
      at += count;
    }
  }

  /** The file's last cluster may be short: what was never written to it are zeros. */
  #stored(at: number, length: number, extents: Extent[]): void {
    const { size } = this.#pages;
    if (Math.floor(at / this.#header.clusterBytes) * this.#header.clusterBytes >= size) {
      throw damagedImage(this.name, `a cluster is at ${at}, behind the file's end`);
    }
    const inside = Math.max(0, Math.min(length, size - at));
    if (inside > 0) extents.push({ kind: "stored", length: inside, at });
    if (inside < length) extents.push({ kind: "zero", length: length - inside });
  }

  #packed(entries: Buffer, entry: number, skip: number, length: number): Extent {
    const { clusterBytes, compression } = this.#header;
    const offsetBits = 62 - (Math.log2(clusterBytes) - 8);
    const high = entries.readUInt32BE(entry) & 0x3fffffff;
    const low = entries.readUInt32BE(entry + 4);
    const sectors = high >>> (offsetBits - 32);
    const at = (high & ((1 << (offsetBits - 32)) - 1)) * 0x1_0000_0000 + low;
    const packedBytes = Math.min((sectors + 1) * 512 - (at % 512), this.#pages.size - at);
    if (packedBytes <= 0) throw damagedImage(this.name, `a compressed cluster is at ${at}, behind the file's end`);
    return { kind: "packed", length, at, packedBytes, codec: compression, bytes: clusterBytes, skip };
  }

  #unallocated(offset: number, length: number, extents: Extent[]): void {
    const inside = Math.max(0, Math.min(length, (this.#backing?.size ?? 0) - offset));
    if (inside > 0) extents.push({ kind: "stored", length: inside, at: offset, source: this.#backing! });
    if (inside < length) extents.push({ kind: "zero", length: length - inside });
  }
}

/** Bits 9 to 55 of a table's entry. */
function hostOffset(entries: Buffer, at: number): number {
  const high = entries.readUInt32BE(at) & 0x00ffffff;
  return high * 0x1_0000_0000 + ((entries.readUInt32BE(at + 4) & 0xfffffe00) >>> 0);
}
