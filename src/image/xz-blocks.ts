import { BatchThreads } from "../base/threads/batch-threads.ts";
import { firstIndex } from "../base/first-index.ts";
import { threadFile } from "../base/threads/thread-file.ts";
import type { BlockMap, Extent, Packed } from "./block-map.ts";
import { XZ_FORMAT, xzFileOf, type XzBlocks } from "./xz-index.ts";

/** A file with one block, and what it unpacks to. */
export interface XzBlockRequest {
  file: Uint8Array;
  bytes: number;
}

export interface XzBlockReply {
  bytes?: Uint8Array;
  /** Why there are none. */
  failure?: string;
}

/** Of the process: two blocks at a time are enough to keep a source busy, at some 55 MB/s each. */
const threads = new BatchThreads<XzBlockRequest, XzBlockReply>({
  file: threadFile("xz-block-worker", import.meta.url),
  count: 2,
  perThread: 1,
});

/** @throws Error when it is not what is expected */
export async function unpackXz(file: Uint8Array, bytes: number, background: boolean): Promise<Buffer> {
  const reply = await threads.run({ file, bytes }, background);
  if (reply.bytes === undefined) throw new Error(reply.failure);
  return Buffer.from(reply.bytes.buffer, reply.bytes.byteOffset, reply.bytes.length);
}

/** An xz file of many blocks, each of which can be unpacked by itself. */
export class XzMap implements BlockMap {
  readonly name = XZ_FORMAT;
  readonly size: number;
  readonly #blocks: XzBlocks;

  constructor(blocks: XzBlocks) {
    this.size = blocks.unpacked.at(-1)!;
    this.#blocks = blocks;
  }

  extents(offset: number, length: number): Promise<Extent[]> {
    const { packed, unpadded, unpacked } = this.#blocks;
    const extents: Extent[] = [];
    const end = offset + length;
    for (let block = this.#blockOf(offset), at = offset; at < end; block++) {
      const bytes = unpacked[block + 1] - unpacked[block];
      if (bytes === 0) continue;
      const skip = at - unpacked[block];
      const count = Math.min(bytes - skip, end - at);
      const packedBytes = Math.ceil(unpadded[block] / 4) * 4;
      extents.push({ kind: "packed", length: count, at: packed[block], packedBytes, codec: "xz", bytes, skip });
      at += count;
    }
    return Promise.resolve(extents);
  }

  /** A file of its own. */
  trim(packed: Buffer, { at, bytes }: Packed): Buffer {
    const { packed: starts } = this.#blocks;
    const block = firstIndex(starts.length, (index) => starts[index] >= at);
    return xzFileOf(packed, this.#blocks.unpadded[block], bytes, this.#blocks.flags);
  }

  /** Blocks say nothing of what is in them. */
  zeroRun(): Promise<number> {
    return Promise.resolve(0);
  }

  /** The block that holds a byte of the disk. */
  #blockOf(offset: number): number {
    const { unpacked } = this.#blocks;
    return firstIndex(unpacked.length, (index) => unpacked[index] > offset) - 1;
  }
}
