import { inflateRawSync, inflateSync, zstdDecompressSync } from "node:zlib";
import type { PieceInMemory } from "../base/native-codecs.ts";
import { type Codec, unpackOptions } from "./unpack.ts";

const codecs = { deflate: inflateRawSync, zlib: inflateSync, zstd: zstdDecompressSync };

/** Does what `NativeUnpacker` does through `node:zlib`, for a Node whose own libraries can't be called. */
export class PortableUnpacker {
  readonly #memory: Buffer;

  constructor(memory: Buffer) {
    this.#memory = memory;
  }

  /** See `NativeUnpacker`. */
  unpack(codec: Codec, { from, length, to, room }: PieceInMemory): number {
    const packed = this.#memory.subarray(from, from + length);
    const result = codecs[codec](packed, unpackOptions({ codec, bytes: room }));
    if (result.length > room) throw new Error(`it unpacks to more than ${room}`);
    this.#memory.set(result, to);
    return result.length;
  }

  [Symbol.dispose](): void {
    // Everything is the collector's.
  }
}
