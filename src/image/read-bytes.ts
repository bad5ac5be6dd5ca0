import type { ReadOptions, Sink, ZeroTaker } from "../backend/backend.ts";
import type { ImageReader } from "./image-format.ts";

/** Reads a range into a new buffer; for headers and tables, and for what has to be unpacked as a whole. */
export async function readBytes(
  source: ImageReader,
  offset: number,
  length: number,
  options?: ReadOptions,
): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(length);
  await readInto(source, offset, bytes, options);
  return bytes;
}

/** Reads as many bytes as the buffer has. */
export async function readInto(
  source: ImageReader,
  offset: number,
  bytes: Buffer,
  options?: ReadOptions,
): Promise<void> {
  let at = 0;
  const sink: Sink = (chunk) => {
    bytes.set(chunk, at);
    at += chunk.length;
  };
  if (bytes.length > 0) await source.read(offset, bytes.length, sink, options);
}

const zeros = Buffer.alloc(256 * 1024);

/** Hands so many zeros to the sink. */
export async function sendZeros(length: number, sink: Sink): Promise<void> {
  for (let left = length; left > 0;) {
    const count = Math.min(left, zeros.length);
    const drained = sink(zeros.subarray(0, count));
    if (drained !== undefined) await drained;
    left -= count;
  }
}

/** The bytes [start, start + size) of another reader. */
export function windowReader(source: ImageReader, start: number, size: number): ImageReader {
  const inner = source.zeroRun?.bind(source);
  const tell = source.tellZeros?.bind(source);
  return {
    size,
    read: (offset, length, sink, options) => source.read(start + offset, length, sink, options),
    ...(inner === undefined
      ? {}
      : {
          zeroRun: (offset: number, length: number, options?: ReadOptions) => inner(start + offset, length, options),
        }),
    ...(tell === undefined
      ? {}
      : {
          tellZeros: (offset: number, length: number, take: ZeroTaker, options?: ReadOptions) =>
            tell(start + offset, length, take, options),
        }),
  };
}
