import { crc32c } from "../base/crc32c.ts";
import { identityHash, newerFormat, type BlobMeta } from "./blob-meta.ts";
import { bitmapBytes } from "./range-map.ts";

/*
 * The durable range map, <data>/blobs/<id>/map (durability rule 12). All integers little-endian:
 *
 *     0  8   magic "ULLGRMAP"
 *     8  u32 format version, 1
 *    12  u32 bytes of the header, 96
 *    16  16  blob id
 *    32  32  SHA-256 of the identity (blob-meta.ts)
 *    64  u64 size of the blob in bytes
 *    72  u64 bytes of a unit
 *    80  u64 inode number of the data file
 *    88  u64 bytes of the bitmap = ceil(ceil(size / unit) / 8)
 *    96  …   bitmap: unit n is bit (n & 7) of byte n >> 3; bits beyond the last unit are zero
 *     …  u32 CRC-32C of everything before it
 *
 * A map says nothing about a data file with another inode number: that one is a copy, a restored backup or a new
 * beginning, and which of its bytes are there is anybody's guess.
 */

const MAGIC = Buffer.from("ULLGRMAP");
const VERSION = 1;
const HEADER_BYTES = 96;

export function encodeRangeMap(meta: BlobMeta, inode: number, bits: Uint8Array): Buffer {
  const file = Buffer.alloc(HEADER_BYTES + bits.length + 4);
  MAGIC.copy(file, 0);
  file.writeUInt32LE(VERSION, 8);
  file.writeUInt32LE(HEADER_BYTES, 12);
  file.write(meta.id, 16, "hex");
  identityHash(meta).copy(file, 32);
  file.writeBigUInt64LE(BigInt(meta.size), 64);
  file.writeBigUInt64LE(BigInt(meta.unitBytes), 72);
  file.writeBigUInt64LE(BigInt(inode), 80);
  file.writeBigUInt64LE(BigInt(bits.length), 88);
  file.set(bits, HEADER_BYTES);
  file.writeUInt32LE(crc32c(file, 0, file.length - 4), file.length - 4);
  return file;
}

export type DecodedRangeMap = { bits: Uint8Array } | { reason: string };

/** The inode number of the data file that a map was written for; undefined when this is no map. */
export function rangeMapInode(file: Buffer): number | undefined {
  return file.length >= HEADER_BYTES && file.subarray(0, 8).equals(MAGIC)
    ? Number(file.readBigUInt64LE(80))
    : undefined;
}

/**
 * @param path where the bytes came from, for messages
 * @returns the bits, or why the map can't be believed
 * @throws UllageError `newer-format` when a later version wrote it
 */
export function decodeRangeMap(file: Buffer, path: string, meta: BlobMeta, inode: number): DecodedRangeMap {
  if (file.length < HEADER_BYTES + 4 || !file.subarray(0, 8).equals(MAGIC)) return { reason: "it is not a range map" };
  const version = file.readUInt32LE(8);
  if (version > VERSION) throw newerFormat(path, version, VERSION);
  if (file.readUInt32LE(file.length - 4) !== crc32c(file, 0, file.length - 4)) {
    return { reason: "its checksum is wrong" };
  }
  const bitsLength = bitmapBytes(Math.ceil(meta.size / meta.unitBytes));
  const id = file.toString("hex", 16, 32);
  if (id !== meta.id) return { reason: `it belongs to blob ${id}` };
  if (!file.subarray(32, 64).equals(identityHash(meta))) return { reason: "it belongs to another identity" };
  for (const [name, at, expected] of [
    ["blob size", 64, meta.size],
    ["unit", 72, meta.unitBytes],
    ["data file's inode", 80, inode],
    ["bitmap length", 88, bitsLength],
  ] as const) {
    const found = Number(file.readBigUInt64LE(at));
    if (found !== expected) return { reason: `its ${name} is ${found}, not ${expected}` };
  }
  if (file.length !== HEADER_BYTES + bitsLength + 4) return { reason: `it has ${file.length} bytes` };
  const bits = new Uint8Array(file.subarray(HEADER_BYTES, HEADER_BYTES + bitsLength));
  const lastUnits = Math.ceil(meta.size / meta.unitBytes) % 8;
  if (lastUnits !== 0 && bits.at(-1)! >> lastUnits !== 0) return { reason: "it has bits beyond the last unit" };
  return { bits };
}
