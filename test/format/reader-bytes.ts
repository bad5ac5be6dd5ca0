/** Part of the independent reader (reader.ts): numbers, checksums and headers, FORMAT.md "Conventions". */
import { readdirSync, readSync } from "node:fs";

export const blockBytes = 4096;
export const headerBytes = 4096;

/** A file that can't be what was written. */
export class Damaged extends Error {}

const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  return crc;
});

/** CRC-32C; with `before`, the checksum of other bytes, that of those bytes followed by these. */
export function crc32c(bytes: Uint8Array, before = 0): number {
  let crc = ~before;
  for (const byte of bytes) crc = (crc >>> 8) ^ crcTable[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

export function u64(bytes: Buffer, at: number): number {
  const value = Number(bytes.readBigUInt64LE(at));
  demand(Number.isSafeInteger(value), "a number of 2^53 or more");
  return value;
}

export function hex(bytes: Buffer, at: number): string {
  return bytes.toString("hex", at, at + 16);
}

export function text(bytes: Buffer, from: number, length: number): string {
  return bytes.toString("latin1", from, from + length).replace(/\0+$/, "");
}

export function demand(truth: boolean, what: string): asserts truth {
  if (!truth) throw new Damaged(what);
}

export function demandVersion(what: string, version: number, newest = 1): void {
  if (version >= 1 && version <= newest) return;
  const known = newest === 1 ? "version 1" : `versions 1 to ${newest}`;
  throw new Error(`${what} has format version ${version}; this reader knows ${known}`);
}

export function demandHeader(file: Buffer, magic: string): void {
  demand(file.length >= headerBytes && file.toString("latin1", 0, 8) === magic, `no header ${magic}`);
  demandVersion(magic, file.readUInt32LE(8), 2);
  const zeroed = Buffer.from(file.subarray(0, headerBytes));
  zeroed.writeUInt32LE(0, 12);
  demand(file.readUInt32LE(12) === crc32c(zeroed), `the checksum of header ${magic} is wrong`);
}

/** The n of the files `kind`.n, ascending. */
export function numbers(directory: string, kind: string): number[] {
  const found = readdirSync(directory).map((name) => /^(\w+)\.([1-9]\d*)$/.exec(name));
  return found.flatMap((match) => (match?.[1] === kind ? Number(match[2]) : [])).sort((a, b) => a - b);
}

export function readFully(file: number, path: string, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length;) {
    const read = readSync(file, bytes, done, length - done, offset + done);
    demand(read > 0, `${path} ends at byte ${offset + done}, too early`);
    done += read;
  }
  return bytes;
}
