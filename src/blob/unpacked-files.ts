import { join } from "node:path";
import type { ReadOptions, Sink } from "../backend/backend.ts";
import { IoError } from "../base/errors.ts";
import type { File, FileSystem } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import type { ImageReader } from "../image/image-format.ts";
import { dataFileBytes } from "./blob-files.ts";
import { encodeBlobMeta, type BlobMeta } from "./blob-meta.ts";
import { replaceFile } from "./durable-file.ts";
import { bitmapBytes } from "./range-map.ts";
import { encodeRangeMap } from "./range-map-file.ts";

/*
 * A blob whose image can't be read in ranges is made from one pass over it, in a directory under another name
 * (`<id>.making`), so that neither its size nor its format need be known before the end:
 *
 *     unpacked [-> within -> unpacked …] -> data -> map -> meta.json -> everything synced -> the directory gets its name: it is a blob
 *
 * A blob that is a clone of a local file (FICLONE) is made the same way: it has everything at once, and takes no space.
 * Room is asked for as it is written: whoever unpacks must fill neither the disk nor more than the cache may have. A failure
 * before the name leaves nothing; a crash before that leaves a directory that nobody knows, and that the next start removes.
 */

/** What a blob's directory is called until all of it is there. */
export const MAKING = ".making";

export interface UnpackOptions {
  fs: FileSystem;
  /** New, empty directory. */
  dir: string;
  signal?: AbortSignal;
  /** Asked before so many bytes more are written. @throws IoError ENOSPC */
  room(bytes: number): Promise<void>;
  /** So many bytes more are in the directory; negative: fewer. */
  took(bytes: number): void;
  /** Sends everything that is unpacked to the sink. */
  unpack(sink: Sink): Promise<void>;
  /** The disk within what was unpacked, the same reader when it is the disk; or what has to be unpacked once more. */
  openDisk(unpacked: ImageReader): Promise<ImageReader | StillPacked>;
  /** What the blob is, now that its size is known. */
  describe(size: number): BlobMeta;
}

/** Something packed in what was unpacked. */
export interface StillPacked {
  /** Sends everything that is in it to the sink. */
  unpack(sink: Sink): Promise<void>;
}

/** Fills the directory, durably. @returns what the blob is */
export async function makeUnpackedFiles(options: UnpackOptions): Promise<BlobMeta> {
  const { fs, dir, signal } = options;
  let name = "unpacked";
  let data = await fs.open(join(dir, name), "create");
  try {
    let written = await write(options, data, (sink) => options.unpack(sink));
    let reader = fileReader(data, written.size);
    let found = await options.openDisk(reader);
    while (found !== reader) {
      const within = found;
      const [before, nameBefore] = [data, name];
      name = name === "unpacked" ? "within" : "unpacked";
      data = await fs.open(join(dir, name), "create");
      try {
        const fill = (sink: Sink): Promise<void> =>
          "unpack" in within ? within.unpack(sink) : copyDisk(within, sink, signal);
        const packedBytes = written.bytes;
        written = await write(options, data, fill);
        reader = fileReader(data, written.size);
        await fs.unlink(join(dir, nameBefore));
        options.took(-packedBytes);
      } finally {
        await before.close();
      }
      found = "unpack" in within ? await options.openDisk(reader) : reader;
    }
    await fs.rename(join(dir, name), join(dir, "data"));
    const meta = options.describe(reader.size);
    await complete(fs, dir, data, meta);
    return meta;
  } finally {
    await data.close();
  }
}

/**
 * The same from a clone of the object, which is the disk.
 * @param clone makes it at this path @returns undefined: it could not be made
 */
export async function makeClonedFiles(
  fs: FileSystem,
  dir: string,
  meta: BlobMeta,
  clone: (path: string) => Promise<boolean>,
): Promise<BlobMeta | undefined> {
  const path = join(dir, "data");
  if (!(await clone(path))) return undefined;
  const made = await fs.open(path, "read");
  try {
    await made.unseal(); // it has the object's mode
  } finally {
    await made.close();
  }
  const data = await fs.open(path, "write");
  try {
    if (data.size() !== meta.size) throw new IoError("EIO", `${path} has ${data.size()} bytes, not ${meta.size}`);
    await complete(fs, dir, data, meta);
    return meta;
  } finally {
    await data.close();
  }
}

/** The data file has everything: makes that, and it, durable. */
async function complete(fs: FileSystem, dir: string, data: File, meta: BlobMeta): Promise<void> {
  await data.truncate(dataFileBytes(meta));
  await data.datasync();
  await fs.mkdir(join(dir, "pins"));
  const units = Math.ceil(meta.size / meta.unitBytes);
  const bits = new Uint8Array(bitmapBytes(units)).fill(0xff);
  if (units % 8 !== 0) bits[bits.length - 1] = (1 << (units % 8)) - 1;
  await replaceFile(fs, dir, "map", encodeRangeMap(meta, data.binding().inode, bits));
  await replaceFile(fs, dir, "meta.json", encodeBlobMeta(meta));
}

const BUFFER_BYTES = 256 * 1024;
const zeros = Buffer.alloc(BUFFER_BYTES);

/** Room is asked for in portions of so much. */
const PORTION_BYTES = 1024 * 1024;

/**
 * Writes what comes into the new file, zeros as holes; one buffer is written while the other one is filled.
 * @returns the file's size, and how many bytes of it are no holes
 */
async function write(
  options: UnpackOptions,
  file: File,
  fill: (sink: Sink) => Promise<void>,
): Promise<{ size: number; bytes: number }> {
  const { signal } = options;
  let filling = new IoBuffer(BUFFER_BYTES);
  let other = new IoBuffer(BUFFER_BYTES);
  let filled = 0;
  let offset = 0;
  let bytes = 0;
  let writing: Promise<void> = Promise.resolve();
  const flush = async (): Promise<void> => {
    await writing;
    signal?.throwIfAborted();
    const [full, length, at] = [filling, filled, offset];
    if (full.bytes.compare(zeros, 0, length, 0, length) !== 0) {
      if (bytes % PORTION_BYTES === 0) await options.room(PORTION_BYTES);
      writing = file.write(full, 0, length, at);
      writing.catch(() => undefined); // whoever waits next gets it
      bytes += length;
      options.took(length);
    }
    [filling, other] = [other, full];
    offset += length;
    filled = 0;
  };
  try {
    await fill(async (chunk) => {
      for (let from = 0; from < chunk.length;) {
        const count = Math.min(chunk.length - from, BUFFER_BYTES - filled);
        filling.bytes.set(chunk.subarray(from, from + count), filled);
        filled += count;
        from += count;
        if (filled === BUFFER_BYTES) await flush();
      }
    });
    await flush();
    await writing;
  } catch (error) {
    await writing.catch(() => undefined);
    throw error;
  }
  await file.truncate(offset);
  return { size: offset, bytes };
}

async function copyDisk(disk: ImageReader, sink: Sink, signal: AbortSignal | undefined): Promise<void> {
  const step = 8 * 1024 * 1024;
  for (let at = 0; at < disk.size; at += step) {
    await disk.read(at, Math.min(step, disk.size - at), sink, signal === undefined ? {} : { signal });
  }
}

/** The bytes of a file of our own. */
function fileReader(file: File, size: number): ImageReader {
  const read = async (offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> => {
    const buffer = new IoBuffer(Math.min(length, BUFFER_BYTES));
    for (let done = 0; done < length;) {
      options.signal?.throwIfAborted();
      const count = Math.min(BUFFER_BYTES, length - done);
      if ((await file.read(buffer, 0, count, offset + done)) !== count) {
        throw new IoError("EIO", `${file.path} ends before its ${size} bytes do`);
      }
      await sink(buffer.bytes.subarray(0, count));
      done += count;
    }
  };
  return { size, read };
}
