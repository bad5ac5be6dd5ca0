import type { ReadOptions } from "../backend/backend.ts";
import { firstIndex } from "../base/first-index.ts";
import { damagedImage, type ImageFormat, type ImageReader } from "./image-format.ts";
import type { BlockMap, Extent } from "./block-map.ts";
import { MappedReader } from "./mapped-reader.ts";
import { readBytes } from "./read-bytes.ts";
import { unzstd } from "./unpacker.ts";
import { isZstdFrame } from "./zstd-frame.ts";

/*
 * Zstandard (RFC 8878). With a seek table at its end (the "seekable format" of the zstd project) it is read lazily: the
 * frame that holds a byte is unpacked, whole. Without one it is unpacked once, from its beginning to its end.
 *
 *     frames … | skippable frame 0x184d2a5e: per frame u32 packed, u32 unpacked, [u32 checksum]; u32 frames, flags, magic
 */

const FORMAT = "zstd";
const SEEK_MAGIC = 0x8f92eab1;
const SKIPPABLE_MAGIC = 0x184d2a5e;
const FOOTER_BYTES = 9;
const MAX_TABLE_BYTES = 48 * 1024 * 1024;
/** Larger frames are not worth a seek: each read would unpack as much. */
const MAX_FRAME_BYTES = 64 * 1024 * 1024;

export const zstdFormat: ImageFormat = {
  name: FORMAT,
  container: true,
  detect: (head) => isZstdFrame(head),
  async open(source, { signal }) {
    const table = await readSeekTable(source, signal === undefined ? {} : { signal });
    return table === undefined ? undefined : new MappedReader(source, table);
  },
  unpacker: unzstd,
};

/** @returns undefined when there is none @throws SourceError `image-damaged` for one that can't be right */
async function readSeekTable(source: ImageReader, options: ReadOptions): Promise<SeekTable | undefined> {
  if (source.size < FOOTER_BYTES + 8) return undefined;
  const footer = await readBytes(source, source.size - FOOTER_BYTES, FOOTER_BYTES, options);
  if (footer.readUInt32LE(5) !== SEEK_MAGIC) return undefined;
  const frames = footer.readUInt32LE(0);
  const entryBytes = (footer[4] & 0x80) === 0 ? 8 : 12;
  const tableBytes = frames * entryBytes + FOOTER_BYTES;
  const start = source.size - tableBytes - 8;
  if ((footer[4] & 0x7c) !== 0 || tableBytes > MAX_TABLE_BYTES || start < 0) {
    throw damagedImage(FORMAT, `its seek table of ${frames} frames does not fit`);
  }
  const table = await readBytes(source, start, tableBytes + 8, options);
  if (table.readUInt32LE(0) !== SKIPPABLE_MAGIC || table.readUInt32LE(4) !== tableBytes) {
    throw damagedImage(FORMAT, "its seek table is none");
  }
  const packed = new Float64Array(frames + 1);
  const unpacked = new Float64Array(frames + 1);
  for (let frame = 0; frame < frames; frame++) {
    const bytes = table.readUInt32LE(8 + frame * entryBytes + 4);
    if (bytes > MAX_FRAME_BYTES) return undefined;
    packed[frame + 1] = packed[frame] + table.readUInt32LE(8 + frame * entryBytes);
    unpacked[frame + 1] = unpacked[frame] + bytes;
  }
  if (packed[frames] !== start) throw damagedImage(FORMAT, "its seek table is about other frames");
  return new SeekTable(packed, unpacked);
}

class SeekTable implements BlockMap {
  readonly name = FORMAT;
  readonly size: number;
  /** Where each frame begins, in the object and unpacked, and where the last one ends. */
  readonly #packed: Float64Array;
  readonly #unpacked: Float64Array;

  constructor(packed: Float64Array, unpacked: Float64Array) {
    this.size = unpacked.at(-1)!;
    this.#packed = packed;
    this.#unpacked = unpacked;
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    const extents: Extent[] = [];
    const end = offset + length;
    for (let frame = this.#frameOf(offset), at = offset; at < end; frame++) {
      const start = this.#unpacked[frame];
      const bytes = this.#unpacked[frame + 1] - start;
      if (bytes === 0) continue;
      const skip = at - start;
      const count = Math.min(bytes - skip, end - at);
      const packedAt = this.#packed[frame];
      const packedBytes = this.#packed[frame + 1] - packedAt;
      extents.push({ kind: "packed", length: count, at: packedAt, packedBytes, codec: "zstd", bytes, skip });
      at += count;
    }
    return Promise.resolve(extents);
  }

  /** Frames say nothing of what is in them. */
  zeroRun(): Promise<number> {
    return Promise.resolve(0);
  }

  /** The last frame that begins at or before `offset`. */
  #frameOf(offset: number): number {
    const last = this.#unpacked.length - 2;
    return firstIndex(last, (frame) => this.#unpacked[frame + 1] > offset);
  }
}
