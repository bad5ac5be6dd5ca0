/*
 * CRC-32C (Castagnoli, polynomial 0x1EDC6F41 reflected: 0x82F63B78), slice-by-8. In JavaScript because for records of
 * some tens of bytes a call into native code costs more than the sum itself.
 */

const tables: Uint32Array[] = Array.from({ length: 8 }, () => new Uint32Array(256));
for (let n = 0; n < 256; n++) {
  let value = n;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  tables[0][n] = value;
}
for (let n = 0; n < 256; n++) {
  for (let table = 1; table < 8; table++) {
    const previous = tables[table - 1][n];
    tables[table][n] = (previous >>> 8) ^ tables[0][previous & 0xff];
  }
}
const [t0, t1, t2, t3, t4, t5, t6, t7] = tables as [
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
  Uint32Array,
];

/**
 * CRC-32C of bytes [start, end).
 * @param seed the checksum of what came before, so that crc32c(b, …, crc32c(a, …)) is the checksum of a then b
 * @returns an unsigned 32-bit number; 0xE3069283 for the ASCII string "123456789"
 */
export function crc32c(bytes: Uint8Array, start: number, end: number, seed = 0): number {
  let crc = ~seed;
  let i = start;
  for (; i + 8 <= end; i += 8) {
    crc ^= bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    crc =
      t7[crc & 0xff] ^
      t6[(crc >>> 8) & 0xff] ^
      t5[(crc >>> 16) & 0xff] ^
      t4[crc >>> 24] ^
      t3[bytes[i + 4]] ^
      t2[bytes[i + 5]] ^
      t1[bytes[i + 6]] ^
      t0[bytes[i + 7]];
  }
  for (; i < end; i++) crc = (crc >>> 8) ^ t0[(crc ^ bytes[i]) & 0xff];
  return ~crc >>> 0;
}
