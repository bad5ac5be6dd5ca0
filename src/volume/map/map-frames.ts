import { crc32c } from "../../base/crc32c.ts";
import { CorruptionError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes } from "../header.ts";
import { encodeMap } from "./map-codec.ts";
import type { OwnerMap } from "./owner-map.ts";
import type { OwnerTable } from "./owner-table.ts";

/*
 * What checkpoints and frozen maps have in common: a header, and behind it the map in frames.
 *
 *     | header 4096 | u32 length, u32 CRC, frame | … | u32 0, u32 CRC |
 *
 * The CRC of a frame covers its length word and its bytes and is seeded with the CRC before it (the first with the
 * header's), so frames can't be lost, reordered or taken from another file.
 */

const maxFrameBytes = 4 * 1024 * 1024;

/**
 * Writes a sealed header and the frames of a map; not synced.
 * @param map undefined: only the table
 * @returns bytes of the file
 */
export async function writeFrames(
  file: File,
  header: IoBuffer,
  map: OwnerMap | undefined,
  table: OwnerTable,
): Promise<number> {
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

/**
 * Reads frames behind a header, checking them.
 * @param onFrame returns true when it needs no more, or a promise that the next frame has to wait for
 * @returns bytes of the file, as far as it was read
 * @throws CorruptionError
 */
export async function readFrames(
  file: File,
  headerCrc: number,
  onFrame: (frame: Buffer) => boolean | void | Promise<void>,
): Promise<number> {
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
      const answer = onFrame(buffer.bytes.subarray(at + 8, at + 8 + length));
      if (answer === true) return position + at;
      if (answer instanceof Promise) await answer;
      at += 8 + length;
    }
    if (at === 0) {
      if (got < buffer.length) throw new CorruptionError(`${file.path} ends inside a frame at ${position}`);
      buffer = new IoBuffer(buffer.length * 2);
    }
    position += at;
  }
}
