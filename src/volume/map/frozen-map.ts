import { allOf } from "../../base/all-of.ts";
import { CorruptionError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes, openHeader, sealHeader } from "../header.ts";
import { getU64, putU64 } from "../log/log-record.ts";
import { MapDecoder, type MapVisitor, usedOwners, visitFrames } from "./map-codec.ts";
import { readFrames, writeFrames } from "./map-frames.ts";
import { blockBytes, OwnerMap } from "./owner-map.ts";
import { OwnerTable } from "./owner-table.ts";
import { frozenMapPath, mapsDir } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";
import { writeWhole } from "../whole-file.ts";

/*
 * A frozen map, <data>/maps/<id>: a volume's owner map as it was when a snapshot was taken. Never changed, owned by nobody,
 * complete or absent. It begins with its owner table, so that what it refers to can be read without the rest.
 *
 * Until it is there, the volume's checkpoint and log can rebuild it, and neither goes before.
 */

const magic = "ULLAGEFM";

/** What a frozen map is about. */
export interface FrozenHeader {
  /** 32 hex digits */
  id: string;
  /** the volume that it was taken of */
  volumeId: string;
  /** bytes of the disk */
  size: number;
}

export interface FrozenMap extends FrozenHeader {
  map: OwnerMap;
  table: OwnerTable;
}

/** Durable, and read back, when it resolves. @returns its table in the file: what no block refers to is not in it */
export async function writeFrozenMap(env: VolumeEnvironment, frozen: FrozenMap): Promise<OwnerTable> {
  const { id, map } = frozen;
  const used = await usedOwners(map);
  const table = frozen.table.only((owner) => used.has(owner));
  await env.fs.mkdir(mapsDir(env.dataDir));
  const path = frozenMapPath(env.dataDir, id);
  const write = (file: File): Promise<number> => writeFrames(file, encodeHeader(frozen), map, table);
  const folder = env.fs.syncDirectory(env.dataDir);
  await allOf([folder, writeWhole(env, path, write, folder)]);
  const file = await env.fs.open(path, "read");
  try {
    const { crc } = await readHeader(file, id);
    await readFrames(file, crc, () => undefined);
  } finally {
    await file.close();
  }
  return table;
}

/** @throws CorruptionError, IoError ENOENT */
export async function loadFrozenMap(env: VolumeEnvironment, id: string): Promise<FrozenMap & { fileBytes: number }> {
  const path = frozenMapPath(env.dataDir, id);
  const file = await env.fs.open(path, "read");
  try {
    const { header, crc } = await readHeader(file, id);
    const map = new OwnerMap(Math.ceil(header.size / blockBytes));
    const table = new OwnerTable();
    const decoder = new MapDecoder(map, table, path);
    const fileBytes = await readFrames(file, crc, (frame) => decoder.add(frame));
    decoder.finish();
    return { ...header, map, table, fileBytes };
  } finally {
    await file.close();
  }
}

/** Only what a frozen map is about and the layers and blobs that it refers to. @throws CorruptionError, IoError ENOENT */
export async function readFrozenTable(
  env: VolumeEnvironment,
  id: string,
): Promise<FrozenHeader & { table: OwnerTable }> {
  const path = frozenMapPath(env.dataDir, id);
  const file = await env.fs.open(path, "read");
  try {
    const { header, crc } = await readHeader(file, id);
    const table = new OwnerTable();
    const decoder = new MapDecoder(new OwnerMap(0), table, path);
    await readFrames(file, crc, (frame) => {
      decoder.add(frame);
      return true;
    });
    return { ...header, table };
  } finally {
    await file.close();
  }
}

/** Shows a frozen map without loading it. @throws CorruptionError, IoError ENOENT */
export async function visitFrozenMap(env: VolumeEnvironment, id: string, visitor: MapVisitor): Promise<void> {
  const path = frozenMapPath(env.dataDir, id);
  const file = await env.fs.open(path, "read");
  try {
    const { header, crc } = await readHeader(file, id);
    const blocks = Math.ceil(header.size / blockBytes);
    await visitFrames(visitor, blocks, path, (onFrame) => readFrames(file, crc, onFrame));
  } finally {
    await file.close();
  }
}

function encodeHeader({ id, volumeId, size }: FrozenHeader): IoBuffer {
  const header = new IoBuffer(headerBytes);
  const bytes = header.bytes.fill(0);
  bytes.write(id, 16, "hex");
  bytes.write(volumeId, 32, "hex");
  putU64(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 48, size);
  sealHeader(bytes, magic);
  return header;
}

async function readHeader(file: File, id: string): Promise<{ header: FrozenHeader; crc: number }> {
  const buffer = new IoBuffer(headerBytes);
  const got = await file.read(buffer, 0, headerBytes, 0);
  const bytes = buffer.bytes.subarray(0, got);
  const crc = openHeader(bytes, magic, file.path);
  const size = getU64(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 48);
  const header = { id: bytes.toString("hex", 16, 32), volumeId: bytes.toString("hex", 32, 48), size };
  if (header.id !== id) throw new CorruptionError(`${file.path} holds another map`);
  if (size === 0 || size % 512 !== 0) throw new CorruptionError(`${file.path} names an impossible size, ${size}`);
  return { header, crc };
}
