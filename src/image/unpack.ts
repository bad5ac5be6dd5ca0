import { inflateRaw, inflate, zstdDecompress } from "node:zlib";
import { computeSlots } from "../base/pool-slots.ts";

/** How a piece of an image is compressed. */
export type Codec = "deflate" | "zlib" | "zstd";

type Unpack = (packed: Uint8Array, options: { maxOutputLength: number }, done: Done) => void;
type Done = (error: Error | null, result: Buffer) => void;

const codecs: Record<Codec, Unpack> = {
  deflate: (packed, { maxOutputLength }, done) =>
    inflateRaw(packed, { maxOutputLength, chunkSize: chunkFor(maxOutputLength) }, done),
  zlib: (packed, { maxOutputLength }, done) =>
    inflate(packed, { maxOutputLength, chunkSize: chunkFor(maxOutputLength) }, done),
  zstd: (packed, { maxOutputLength }, done) =>
    zstdDecompress(packed, { maxOutputLength, chunkSize: chunkFor(maxOutputLength) }, done),
};

/** One output buffer for all of it, and one call into the library. */
const chunkFor = (bytes: number): number => Math.max(64, bytes);

/**
 * Unpacks a piece that must come to `bytes` bytes, or `least` at least, in the thread pool, as far as its share allows.
 * @throws Error when it does not
 */
export function unpack(codec: Codec, packed: Uint8Array, bytes: number, least = bytes): Promise<Buffer> {
  return computeSlots.run(
    () =>
      new Promise((resolve, reject) => {
        codecs[codec](packed, { maxOutputLength: bytes }, (error, result) => {
          if (error !== null) reject(error);
          else if (result.length >= least) resolve(result);
          else reject(new Error(`it unpacks to ${result.length} bytes instead of ${bytes}`));
        });
      }),
  );
}
