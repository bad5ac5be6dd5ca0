import { inflate, inflateRaw, zstdDecompress } from "node:zlib";
import type { Codec } from "../base/native-codecs.ts";
import { computeSlots } from "../base/pool-slots.ts";

/** How a small piece of an image is compressed. */
export type { Codec } from "../base/native-codecs.ts";

/** What a piece must come to: `bytes` bytes, or `least` at least. */
export interface Expected {
  codec: Codec;
  bytes: number;
  least?: number | undefined;
}

interface UnpackOptions {
  maxOutputLength: number;
  chunkSize: number;
}

type Unpack = (packed: Uint8Array, options: UnpackOptions, done: (error: Error | null, result: Buffer) => void) => void;

const codecs: Record<Codec, Unpack> = { deflate: inflateRaw, zlib: inflate, zstd: zstdDecompress };

/** One buffer for all of the output and a byte more, so that one call into the library says that there is no more. */
export function unpackOptions({ bytes }: Expected): UnpackOptions {
  return { maxOutputLength: bytes + 1, chunkSize: Math.max(64, bytes + 1) };
}

/** @throws Error when a piece has come to something else */
export function demandExpected(length: number, { bytes, least = bytes }: Expected): void {
  if (length >= least && length <= bytes) return;
  throw new Error(`it unpacks to ${length > bytes ? "more than" : `${length} bytes instead of`} ${bytes}`);
}

/**
 * Unpacks a piece in the thread pool, as far as its share allows. For many pieces at once, see unpack-threads.ts.
 * @throws Error when it is not what is expected
 */
export async function unpack(packed: Uint8Array, expected: Expected): Promise<Buffer> {
  const result = await computeSlots.run(
    () =>
      new Promise<Buffer>((resolve, reject) => {
        codecs[expected.codec](packed, unpackOptions(expected), (error, unpacked) => {
          if (error === null) resolve(unpacked);
          else reject(error);
        });
      }),
  );
  demandExpected(result.length, expected);
  return result;
}
