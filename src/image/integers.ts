/** A big-endian u64; Infinity when a Number can't hold it, which then fails every check against a size. */
export function u64be(bytes: Buffer, at: number): number {
  return exact(bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4));
}

/** The same, little-endian. */
export function u64le(bytes: Buffer, at: number): number {
  return exact(bytes.readUInt32LE(at + 4), bytes.readUInt32LE(at));
}

function exact(high: number, low: number): number {
  return high >= 0x200000 ? Infinity : high * 0x1_0000_0000 + low;
}

/** Whether the range lies within so many bytes. */
export const within = (offset: number, length: number, bytes: number): boolean =>
  offset >= 0 && length >= 0 && offset + length <= bytes;
