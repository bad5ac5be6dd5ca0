import { CorruptionError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes, openHeader, sealHeader } from "../header.ts";
import { getU64, putU64 } from "../log/log-record.ts";
import { loadFrozenMap } from "./frozen-map.ts";
import { MapDecoder, type MapVisitor, usedOwners, visitFrames } from "./map-codec.ts";
import { readFrames, writeFrames } from "./map-frames.ts";
import { blockBytes, OwnerMap } from "./owner-map.ts";
import { OwnerTable } from "./owner-table.ts";
import { mapPath } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";
import { writeWhole } from "../whole-file.ts";

/*
 * A checkpoint: a volume's owner map as of one LSN, in a file that is complete or absent. It holds the map itself or, the
 * first one of a clone and of a reverted volume, only names the frozen map that it begins with, and the new head.
 */

const magic = "ULLAGEMP";

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
  /** id of the frozen map that it begins with; undefined: it holds its own */
  base?: string;
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
 * @param map undefined: the checkpoint names a frozen map, and `table` has only what is not in that one's
 * @param before what must be durable before the file gets its name
 * @returns bytes of the file, and the layers of the table that no block of the map has
 */
export async function writeMapFile(
  env: VolumeEnvironment,
  dir: string,
  checkpoint: Checkpoint,
  map: OwnerMap | undefined,
  table: OwnerTable,
  before?: Promise<unknown>,
): Promise<{ bytes: number; unused: number[] }> {
  const path = mapPath(dir, checkpoint.number);
  const unused: number[] = [];
  if (map !== undefined) {
    const used = await usedOwners(map);
    for (const [id, { kind }] of table.entries()) {
      if (kind === "layer" && id !== checkpoint.head && !used.has(id)) unused.push(id);
    }
  }
  const written = unused.length === 0 ? table : table.only((id) => !unused.includes(id));
  const write = (file: File): Promise<number> => writeFrames(file, encodeHeader(checkpoint), map, written);
  const bytes = await writeWhole(env, path, write, before);
  await verifyMapFile(env, path);
  return { bytes, unused };
}

/** Reads a whole checkpoint, with the frozen map that it names. @throws CorruptionError */
export async function loadMapFile(env: VolumeEnvironment, path: string): Promise<LoadedMap> {
  const file = await env.fs.open(path, "read");
  try {
    const { checkpoint, crc } = await readHeader(file);
    const base = checkpoint.base === undefined ? undefined : await loadFrozenMap(env, checkpoint.base);
    const blocks = Math.ceil(checkpoint.size / blockBytes);
    const map = base?.map ?? new OwnerMap(blocks);
    const table = base?.table ?? new OwnerTable();
    if (base !== undefined && base.size > checkpoint.size) {
      throw new CorruptionError(`${path} has ${checkpoint.size} bytes, fewer than the frozen map that it names`);
    }
    const decoder = new MapDecoder(base === undefined ? map : new OwnerMap(0), table, path);
    const fileBytes = await readFrames(file, crc, (frame) => decoder.add(frame));
    decoder.finish();
    map.grow(blocks);
    if (table.get(checkpoint.head)?.kind !== "layer") throw new CorruptionError(`${path} names no head layer`);
    return { checkpoint, map, table, fileBytes: fileBytes + (base?.fileBytes ?? 0) };
  } finally {
    await file.close();
  }
}

/** Only what a checkpoint says of itself, and its own table. @throws CorruptionError */
export async function readMapTable(
  env: VolumeEnvironment,
  path: string,
): Promise<{ checkpoint: Checkpoint; table: OwnerTable }> {
  const file = await env.fs.open(path, "read");
  try {
    const { checkpoint, crc } = await readHeader(file);
    const table = new OwnerTable();
    const decoder = new MapDecoder(new OwnerMap(0), table, path);
    await readFrames(file, crc, (frame) => {
      decoder.add(frame);
      return true;
    });
    return { checkpoint, table };
  } finally {
    await file.close();
  }
}

/**
 * Shows a checkpoint's own map without loading it; a frozen map that it names is not looked at.
 * @throws CorruptionError, IoError ENOENT
 */
export async function visitMapFile(
  env: VolumeEnvironment,
  path: string,
  visitor: MapVisitor,
): Promise<{ checkpoint: Checkpoint; table: OwnerTable }> {
  const file = await env.fs.open(path, "read");
  try {
    const { checkpoint, crc } = await readHeader(file);
    const blocks = checkpoint.base === undefined ? Math.ceil(checkpoint.size / blockBytes) : 0;
    const table = await visitFrames(visitor, blocks, path, (onFrame) => readFrames(file, crc, onFrame));
    return { checkpoint, table };
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
  if (checkpoint.base !== undefined) bytes.write(checkpoint.base, 80, "hex");
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
  const base = bytes.toString("hex", 80, 96);
  return {
    crc,
    checkpoint: {
      ...(/[1-9a-f]/.test(base) ? { base } : {}),
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
