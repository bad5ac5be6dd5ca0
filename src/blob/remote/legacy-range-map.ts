import { closeSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import type { CachedBlob } from "../cached-blob.ts";

/*
 * The range map that version-1 clients of the blob manager look into, <data>/blobs/<id>.range_map: a bit for each 256 KiB,
 * most significant bit first, behind a header of 4096 bytes. It is volatile: made anew, from what is ready now, when the
 * first such client asks for the blob, removed with the last one and at every start of a manager, and never read by
 * one (durability rule 12).
 */

const MAGIC_1 = 0x424d4150;
const VERSION = 1;
const MAGIC_2 = 0x434d4150;
const ALL_READY = 0x4d4d4150;
const HEADER_BYTES = 4096;
const GRANULE_BYTES = 2 ** 18;

export const legacySuffix = ".range_map";

export class LegacyRangeMap {
  readonly #path: string;
  readonly #blob: CachedBlob;
  readonly #fd: number;
  readonly #granules: number;
  readonly #bits: Buffer;
  #missing = 0;
  readonly #forget: () => void;

  /** @throws Error with `code` when the file can't be made */
  constructor(path: string, blob: CachedBlob) {
    this.#path = path;
    this.#blob = blob;
    this.#granules = Math.ceil(blob.size / GRANULE_BYTES);
    this.#bits = Buffer.alloc(Math.ceil(this.#granules / 8));
    const fresh = `${path}.new`;
    rmSync(fresh, { force: true });
    this.#fd = openSync(fresh, "wx", 0o600);
    try {
      this.#writeAll();
      renameSync(fresh, path); // who opens it finds it whole
    } catch (error) {
      closeSync(this.#fd);
      throw error;
    }
    this.#forget = blob.watch({
      ready: (first, end) => this.#update(first * blob.unitBytes, end * blob.unitBytes),
      lost: () => this.#writeAll(),
    });
  }

  #writeAll(): void {
    this.#bits.fill(0);
    this.#missing = this.#granules;
    for (let granule = 0; granule < this.#granules; granule++) this.#set(granule);
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32LE(MAGIC_1, 0);
    header.writeUInt32LE(VERSION, 4);
    header.writeUInt32LE(MAGIC_2, 8);
    header.writeUInt32LE(this.#missing === 0 ? ALL_READY : 0, 12);
    writeSync(this.#fd, header, 0, HEADER_BYTES, 0);
    if (this.#bits.length > 0) writeSync(this.#fd, this.#bits, 0, this.#bits.length, HEADER_BYTES);
  }

  /** @returns whether all of the granule is ready */
  #set(granule: number): boolean {
    if (!this.#blob.isReady(granule * GRANULE_BYTES, GRANULE_BYTES)) return false;
    const mask = 0x80 >> (granule & 7);
    if ((this.#bits[granule >> 3] & mask) === 0) this.#missing--;
    this.#bits[granule >> 3] |= mask;
    return true;
  }

  /** @param start @param end bytes that have become ready */
  #update(start: number, end: number): void {
    const first = Math.floor(start / GRANULE_BYTES);
    const last = Math.min(Math.ceil(end / GRANULE_BYTES), this.#granules) - 1;
    for (let granule = first; granule <= last; granule++) this.#set(granule);
    writeSync(this.#fd, this.#bits, first >> 3, (last >> 3) - (first >> 3) + 1, HEADER_BYTES + (first >> 3));
    if (this.#missing > 0) return;
    const word = Buffer.alloc(4);
    word.writeUInt32LE(ALL_READY, 0);
    writeSync(this.#fd, word, 0, 4, 12);
  }

  /** Nobody looks into it any more. */
  close(): void {
    this.#forget();
    closeSync(this.#fd);
    rmSync(this.#path, { force: true });
  }
}
