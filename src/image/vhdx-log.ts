import type { ReadOptions } from "../backend/backend.ts";
import { crc32c } from "../base/crc32c.ts";
import { damagedImage, unsupportedImage, type ImageReader } from "./image-format.ts";
import { u64le, within } from "./integers.ts";
import { PatchedReader } from "./patched-reader.ts";
import { readBytes } from "./read-bytes.ts";

/*
 * The log of a VHDX file that was not closed (MS-VHDX 2.3): what was to be written to its tables, and perhaps was. It is
 * replayed in memory; the file stays as it is.
 *
 *     an entry       header of 64 bytes, descriptors of 32, filled up to 4096 | a sector of 4096 for each data descriptor
 *     header         "loge" crc32c, bytes, tail, sequence number, descriptors, log id, flushed and last bytes of the file
 *     a descriptor   "desc" last 4 bytes, first 8 bytes, where to;  "zero" how many, where to
 *     a sector       "data" high part of the sequence number | bytes 8 to 4091 | low part
 *
 * The log is a ring. Of all runs of entries that follow each other, and that reach back to the tail which the last of them
 * names, the one with the highest number counts; its entries from that tail on are replayed.
 */

const FORMAT = "vhdx";
const MIB = 1024 * 1024;
const SECTOR = 4096;
const HEADER_BYTES = 64;
const DESCRIPTOR_BYTES = 32;
/** 1 MiB is usual. */
const MAX_LOG_BYTES = 16 * MIB;
/** Checksums are computed over so many times the log: entries that count do not lie in each other. */
const MAX_CHECKED = 4;
const MAX_ZEROED = 4096;

interface Entry {
  /** In the log. */
  at: number;
  bytes: Buffer;
  tail: number;
  sequence: number;
}

/**
 * The file as it is with its log replayed.
 * @param header the file's current one
 * @throws SourceError `image-damaged`, `image-unsupported`
 */
export async function replayLog(source: ImageReader, header: Buffer, options: ReadOptions): Promise<ImageReader> {
  const id = header.subarray(48, 64);
  if (id.every((byte) => byte === 0)) return source;
  const length = header.readUInt32LE(68);
  const offset = u64le(header, 72);
  if (header.readUInt16LE(64) !== 0) throw unsupportedImage(FORMAT, "has a log of another version", HINT);
  if (length === 0 || length % MIB !== 0 || offset < MIB || !within(offset, length, source.size)) {
    throw damagedImage(FORMAT, `its log, ${length} bytes at ${offset}, lies outside of the file`);
  }
  if (length > MAX_LOG_BYTES) throw unsupportedImage(FORMAT, `has a log of ${length} bytes to be replayed`, HINT);
  const log = await readBytes(source, offset, length, options);
  const active = activeRun(entriesOf(log, id), length);
  // Its writer ended before its first entry was whole; tables are only written to behind that. As QEMU has it.
  if (active === undefined) return source;
  const patched = new PatchedReader(source);
  const zeroed = { count: 0 };
  for (const entry of active) replay(entry, patched, zeroed);
  const { bytes } = active.at(-1)!;
  const flushed = u64le(bytes, 48);
  const last = u64le(bytes, 56);
  if (flushed > source.size || !Number.isSafeInteger(last)) {
    throw damagedImage(FORMAT, `it has ${source.size} bytes, and had ${flushed} when its log was written`);
  }
  patched.extend(last);
  return patched;
}

const HINT = "have it repaired where it was written: attach it once, or qemu-img check -r all";

/** All entries that are right by themselves, by where they are. */
function entriesOf(log: Buffer, id: Buffer): Map<number, Entry> {
  const ring = Buffer.concat([log, log]);
  const entries = new Map<number, Entry>();
  let left = log.length * MAX_CHECKED;
  for (let at = 0; at < log.length; at += SECTOR) {
    if (ring.toString("latin1", at, at + 4) !== "loge" || !ring.subarray(at + 32, at + 48).equals(id)) continue;
    const length = ring.readUInt32LE(at + 8);
    const tail = ring.readUInt32LE(at + 12);
    const sequence = u64le(ring, at + 16);
    if (length === 0 || length % SECTOR !== 0 || length > log.length) continue;
    if (tail % SECTOR !== 0 || tail >= log.length || !Number.isSafeInteger(sequence) || sequence === 0) continue;
    left -= length;
    if (left < 0) throw damagedImage(FORMAT, "the entries of its log lie in each other");
    const bytes = Buffer.from(ring.subarray(at, at + length));
    const sum = bytes.readUInt32LE(4);
    bytes.writeUInt32LE(0, 4);
    if (crc32c(bytes, 0, length) === sum) entries.set(at, { at, bytes, tail, sequence });
  }
  return entries;
}

function isSector(data: Buffer, sequence: number): boolean {
  const low = sequence % 2 ** 32;
  return (
    data.length === SECTOR &&
    data.toString("latin1", 0, 4) === "data" &&
    data.readUInt32LE(4) === (sequence - low) / 2 ** 32 &&
    data.readUInt32LE(SECTOR - 4) === low
  );
}

/** What is to be replayed, in order. */
function activeRun(entries: Map<number, Entry>, logBytes: number): Entry[] | undefined {
  let active: Entry[] | undefined;
  const followed = new Set<Entry>();
  // Whoever comes behind another one is not where a run begins; so each entry is walked over once.
  for (const entry of entries.values()) {
    const next = follower(entries, entry, logBytes);
    if (next !== undefined) followed.add(next);
  }
  for (const first of entries.values()) {
    if (followed.has(first)) continue;
    const run = [first];
    for (let next = follower(entries, first, logBytes); next !== undefined;) {
      run.push(next);
      next = follower(entries, next, logBytes);
    }
    const head = run.at(-1)!;
    const tail = run.findIndex(({ at }) => at === head.tail);
    if (tail >= 0 && head.sequence > (active?.at(-1)!.sequence ?? 0)) active = run.slice(tail);
  }
  return active;
}

function follower(entries: Map<number, Entry>, { at, bytes, sequence }: Entry, logBytes: number): Entry | undefined {
  const next = entries.get((at + bytes.length) % logBytes);
  return next?.sequence === sequence + 1 ? next : undefined;
}

function replay({ bytes, sequence }: Entry, file: PatchedReader, zeroed: { count: number }): void {
  const bad = (what: string): Error => damagedImage(FORMAT, `an entry of its log ${what}`, undefined, HINT);
  const count = bytes.readUInt32LE(24);
  const sectors = Math.ceil((HEADER_BYTES + count * DESCRIPTOR_BYTES) / SECTOR) * SECTOR;
  if (sectors > bytes.length) throw bad(`has ${count} descriptors`);
  let sector = sectors;
  for (let at = HEADER_BYTES; at < HEADER_BYTES + count * DESCRIPTOR_BYTES; at += DESCRIPTOR_BYTES) {
    const kind = bytes.toString("latin1", at, at + 4);
    const offset = u64le(bytes, at + 16);
    if (!Number.isSafeInteger(offset) || offset % SECTOR !== 0 || u64le(bytes, at + 24) !== sequence) {
      throw bad(`has a descriptor for ${offset}`);
    }
    if (kind === "zero") {
      const length = u64le(bytes, at + 8);
      if (length % SECTOR !== 0 || !Number.isSafeInteger(offset + length)) throw bad(`zeroes ${length} bytes`);
      if (++zeroed.count > MAX_ZEROED) throw unsupportedImage(FORMAT, "has too long a log", HINT);
      file.write(offset, length, undefined);
    } else if (kind === "desc") {
      const data = bytes.subarray(sector, sector + SECTOR);
      if (!isSector(data, sequence)) throw bad("has a sector that is not its own");
      const written = Buffer.from(data);
      bytes.copy(written, 0, at + 8, at + 16);
      bytes.copy(written, SECTOR - 4, at + 4, at + 8);
      file.write(offset, SECTOR, written);
      sector += SECTOR;
    } else throw bad("has a descriptor of another kind");
  }
}
