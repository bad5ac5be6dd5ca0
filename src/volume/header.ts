import { crc32c } from "../base/crc32c.ts";
import { CorruptionError, UllageError } from "../base/errors.ts";

/*
 * Every durable file of a volume begins with 4096 bytes:
 *
 *      0 8    magic
 *      8 u32  format version
 *     12 u32  CRC-32C of these 4096 bytes with this field zero
 *     16      what the kind of file needs (docs/FORMAT.md), zeros to the end
 */

export const headerBytes = 4096;
/** 2: snapshots (records of types 5 to 7, frozen maps, checkpoints that name one). */
export const formatVersion = 2;

/** Fills in magic, version and checksum of a header whose other fields are set. */
export function sealHeader(header: Buffer, magic: string): number {
  header.write(magic, 0, 8, "latin1");
  header.writeUInt32LE(formatVersion, 8);
  header.writeUInt32LE(0, 12);
  const crc = crc32c(header, 0, headerBytes);
  header.writeUInt32LE(crc, 12);
  return crc;
}

/** @returns the header's CRC @throws CorruptionError, or `format-too-new` for a version this program can't know */
export function openHeader(header: Buffer, magic: string, path: string): number {
  if (header.length < headerBytes) throw new CorruptionError(`${path} is too short for a header`);
  if (header.toString("latin1", 0, 8) !== magic) throw new CorruptionError(`${path} does not begin with ${magic}`);
  const version = header.readUInt32LE(8);
  if (version === 0) throw new CorruptionError(`${path} has the impossible format version 0`);
  if (version > formatVersion) {
    throw new UllageError(
      "format-too-new",
      `${path} has format version ${version}; this Ullage knows versions up to ${formatVersion}`,
      { hint: "open it with a newer Ullage" },
    );
  }
  const crc = header.readUInt32LE(12);
  const copy = Buffer.from(header.subarray(0, headerBytes));
  copy.writeUInt32LE(0, 12);
  if (crc32c(copy, 0, headerBytes) !== crc) throw new CorruptionError(`the header of ${path} has a wrong checksum`);
  return crc;
}
