/*
 * Just enough of RFC 8878 to walk over Zstandard frames without unpacking them.
 *
 *     magic 28 b5 2f fd | descriptor | [window] | [dictionary id] | [content size] | blocks | [checksum]
 *     magic 50-5f 2a 4d 18 | u32 length | anything                    a skippable frame
 */

const FRAME_MAGIC = 0xfd2fb528;

/** The longest header: magic, descriptor, window, dictionary id, content size. */
export const MAX_FRAME_HEADER_BYTES = 18;

export interface ZstdFrameHeader {
  headerBytes: number;
  /** undefined: the frame does not say */
  contentBytes: number | undefined;
  /** Memory that unpacking takes. */
  windowBytes: number;
  checksum: boolean;
}

export const isZstdFrame = (bytes: Uint8Array): boolean => bytes.length >= 4 && u32(bytes, 0) === FRAME_MAGIC;

/** @returns undefined when the bytes are too few or no header of a frame with content */
export function zstdFrameHeader(bytes: Uint8Array): ZstdFrameHeader | undefined {
  if (!isZstdFrame(bytes) || bytes.length < 6) return undefined;
  const descriptor = bytes[4];
  if ((descriptor & 0x08) !== 0) return undefined; // a reserved bit
  const singleSegment = (descriptor & 0x20) !== 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3];
  const sizeFlag = descriptor >> 6;
  const sizeBytes = sizeFlag === 0 ? (singleSegment ? 1 : 0) : 1 << sizeFlag;
  const sizeAt = 5 + (singleSegment ? 0 : 1) + dictionaryBytes;
  const headerBytes = sizeAt + sizeBytes;
  if (bytes.length < headerBytes) return undefined;
  let contentBytes: number | undefined;
  if (sizeBytes > 0) {
    contentBytes = 0;
    for (let at = headerBytes - 1; at >= sizeAt; at--) contentBytes = contentBytes * 256 + bytes[at];
    if (sizeBytes === 2) contentBytes += 256;
    if (!Number.isSafeInteger(contentBytes)) return undefined;
  }
  const window = bytes[5];
  const windowBase = 2 ** (10 + (window >> 3));
  const windowBytes = singleSegment ? contentBytes! : windowBase + (windowBase / 8) * (window & 7);
  return { headerBytes, contentBytes, windowBytes, checksum: (descriptor & 4) !== 0 };
}

/** Bytes of the frame that the bytes begin with. @returns undefined when it is none, or does not end in them */
export function zstdFrameBytes(bytes: Uint8Array): number | undefined {
  const header = zstdFrameHeader(bytes);
  if (header === undefined) return undefined;
  let at = header.headerBytes;
  for (;;) {
    if (at + 3 > bytes.length) return undefined;
    const block = bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16);
    const type = (block >> 1) & 3;
    if (type === 3) return undefined;
    at += 3 + (type === 1 ? 1 : block >> 3);
    if ((block & 1) !== 0) break;
  }
  at += header.checksum ? 4 : 0;
  return at <= bytes.length ? at : undefined;
}

function u32(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}
