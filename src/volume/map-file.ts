import { crc32c } from "../base/crc32c.ts";
import { CorruptionError } from "../base/errors.ts";
import type { File } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { headerBytes, openHeader, sealHeader } from "./header.ts";
import { getU64, putU64 } from "./log-record.ts";
import { encodeMap, MapDecoder } from "./map-codec.ts";
import { blockBytes, OwnerMap } from "./owner-map.ts";
import { OwnerTable } from "./owner-table.ts";
import { mapPath } from "./paths.ts";
import type { VolumeEnvironment } from "./types.ts";

/*
 * A checkpoint: a volume's owner map as of one LSN, in a file that is complete or absent.
 *
 *     | header 4096 | u32 length, u32 CRC, frame | … | u32 0, u32 CRC |
 *
 * The CRC of a frame covers its length word and its bytes and is seeded with the CRC before it (the first with the
 * header's), so frames can't be lost, reordered or taken from another file.
 */

const magic = "ULLAGEMP";
const maxFrameBytes = 4 * 1024 * 1024;

/** What a checkpoint says besides the map itself. */
export interface Checkpoint {
  volumeId: string;
  /** `map.<number>` is the state at the beginning of `intent.<number>`. */
  number: number;
  /** The map holds the records up to this LSN, all of them with durable data. */
  cut: number;
  /** bytes of the volume */
  size: number;
  lineage: string;
  /** small id of the writable head */
  head: number;
  /** The volume was closed with everything flushed, and no log follows. */
  clean: boolean;
  lostUnflushed: boolean;
  remoteWriters: boolean;
}

export interface LoadedMap {
  checkpoint: Checkpoint;
  map: OwnerMap;
  table: OwnerTable;
  /** bytes of the file */
  fileBytes: number;
}

/**
 * Writes `map.<number>`: temporary file, fsync, rename, directory fsync, then reads it back. A crash in any step leaves
 * the old state whole; a failure removes the temporary file.
 * @returns bytes of the file
 */
export async function writeMapFile(
  env: VolumeEnvironment,
  dir: string,
  checkpoint: Checkpoint,
  map: OwnerMap,
  table: OwnerTable,
): Promise<number> {
  const path = mapPath(dir, checkpoint.number);
  const temporary = `${path}.tmp`;
  await env.fs.unlink(temporary);
  const file = await env.fs.open(temporary, "create");
  let length: number;
  try {
    length = await writeFrames(file, checkpoint, map, table);
    await file.datasync();
  } catch (error) {
    await file.close();
    await env.fs.unlink(temporary);
    throw error;
  }
  await file.close();
  await env.fs.rename(temporary, path);
  await env.fs.syncDirectory(dir);
  await verifyMapFile(env, path);
  return length;
}

async function writeFrames(file: File, checkpoint: Checkpoint, map: OwnerMap, table: OwnerTable): Promise<number> {
  const header = encodeHeader(checkpoint);
  await file.write(header, 0, headerBytes, 0);
  let crc = header.bytes.readUInt32LE(12);
  let position = headerBytes;
  let buffer = new IoBuffer(64 * 1024);
  const put = async (frame: Buffer): Promise<void> => {
    if (buffer.length < frame.length + 8) buffer = new IoBuffer(frame.length + 8);
    crc = encodeFrame(buffer.bytes, frame, crc);
    await file.write(buffer, 0, frame.length + 8, position);
    position += frame.length + 8;
  };
  for (const frame of encodeMap(map, table)) await put(frame);
  await put(Buffer.alloc(0));
  return position;
}

function encodeFrame(into: Buffer, frame: Buffer, seed: number): number {
  into.writeUInt32LE(frame.length, 0);
  frame.copy(into, 8);
  const crc = crc32c(into, 8, 8 + frame.length, crc32c(into, 0, 4, seed));
  into.writeUInt32LE(crc, 4);
  return crc;
}

/** Reads a whole checkpoint. @throws CorruptionError */
export async function loadMapFile(env: VolumeEnvironment, path: string): Promise<LoadedMap> {
  const file = await env.fs.open(path, "read");
  try {
    const { checkpoint, crc } = await readHeader(file);
    const map = new OwnerMap(Math.ceil(checkpoint.size / blockBytes));
    const table = new OwnerTable();
    const decoder = new MapDecoder(map, table, path);
    const fileBytes = await readFrames(file, crc, (frame) => decoder.add(frame));
    decoder.finish();
    if (table.get(checkpoint.head)?.kind !== "layer") throw new CorruptionError(`${path} names no head layer`);
    return { checkpoint, map, table, fileBytes };
  } finally {
    await file.close();
  }
}

/** Reads a checkpoint's checksums only. */
async function verifyMapFile(env: VolumeEnvironment, path: string): Promise<void> {
  const file = await env.fs.open(path, "read");
  try {
    const { crc } = await readHeader(file);
    await readFrames(file, crc, () => undefined);
  } finally {
    await file.close();
  }
}

async function readFrames(file: File, headerCrc: number, onFrame: (frame: Buffer) => void): Promise<number> {
  let crc = headerCrc;
  let position = headerBytes;
  let buffer = new IoBuffer(64 * 1024);
  for (;;) {
    const got = await file.read(buffer, 0, buffer.length, position);
    let at = 0;
    while (at + 8 <= got) {
      const length = buffer.bytes.readUInt32LE(at);
      if (length > maxFrameBytes) throw new CorruptionError(`${file.path} has a damaged frame at ${position + at}`);
      if (at + 8 + length > got) break;
      const wanted = crc32c(buffer.bytes, at + 8, at + 8 + length, crc32c(buffer.bytes, at, at + 4, crc));
      if (buffer.bytes.readUInt32LE(at + 4) !== wanted) {
        throw new CorruptionError(`${file.path} has a wrong checksum at ${position + at}`);
      }
      crc = wanted;
      if (length === 0) return position + at + 8;
      onFrame(buffer.bytes.subarray(at + 8, at + 8 + length));
      at += 8 + length;
    }
    if (at === 0) {
      if (got < buffer.length) throw new CorruptionError(`${file.path} ends inside a frame at ${position}`);
      buffer = new IoBuffer(buffer.length * 2);
    }
    position += at;
  }
}

const flagClean = 1;
const flagLostUnflushed = 2;
const flagRemoteWriters = 4;

function encodeHeader(checkpoint: Checkpoint): IoBuffer {
  const header = new IoBuffer(headerBytes);
  const bytes = header.bytes.fill(0);
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  bytes.write(checkpoint.volumeId, 16, "hex");
  putU64(data, 32, checkpoint.number);
  putU64(data, 40, checkpoint.cut);
  putU64(data, 48, checkpoint.size);
  bytes.write(checkpoint.lineage, 56, "hex");
  data.setUint32(72, checkpoint.head, true);
  const flags =
    (checkpoint.clean ? flagClean : 0) |
    (checkpoint.lostUnflushed ? flagLostUnflushed : 0) |
    (checkpoint.remoteWriters ? flagRemoteWriters : 0);
  data.setUint32(76, flags, true);
  sealHeader(bytes, magic);
  return header;
}

async function readHeader(file: File): Promise<{ checkpoint: Checkpoint; crc: number }> {
  const header = new IoBuffer(headerBytes);
  const got = await file.read(header, 0, headerBytes, 0);
  const bytes = header.bytes.subarray(0, got);
  const crc = openHeader(bytes, magic, file.path);
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const flags = data.getUint32(76, true);
  const size = getU64(data, 48);
  if (size === 0 || size % 512 !== 0 || !Number.isSafeInteger(size)) {
    throw new CorruptionError(`${file.path} names an impossible size, ${size}`);
  }
  return {
    crc,
    checkpoint: {
      volumeId: bytes.toString("hex", 16, 32),
      number: getU64(data, 32),
      cut: getU64(data, 40),
      size,
      lineage: bytes.toString("hex", 56, 72),
      head: data.getUint32(72, true),
      clean: (flags & flagClean) !== 0,
      lostUnflushed: (flags & flagLostUnflushed) !== 0,
      remoteWriters: (flags & flagRemoteWriters) !== 0,
    },
  };
}
