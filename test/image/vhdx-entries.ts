import { crc32c } from "../../src/base/crc32c.ts";

export interface LogEntry {
  tail: number;
  /** 4096 bytes each. */
  data: { to: number; bytes: Buffer }[];
  zeros?: { to: number; length: number }[];
  sequence: number;
}

const logId = Buffer.alloc(16, 0x77);

/** Names the log in both headers, and puts entries into it, from `at` on, around its end. */
export function writeLog(image: Buffer, at: number, entries: LogEntry[]): number[] {
  for (const header of [65_536, 131_072]) {
    logId.copy(image, header + 48);
    image.writeUInt32LE(0, header + 4);
    image.writeUInt32LE(crc32c(image, header, header + 4096), header + 4);
  }
  const offset = Number(image.readBigUInt64LE(65_536 + 72));
  const length = image.readUInt32LE(65_536 + 68);
  const places: number[] = [];
  for (const { tail, data, zeros = [], sequence } of entries) {
    const bytes = Buffer.alloc(4096 * (1 + data.length));
    bytes.write("loge");
    bytes.writeUInt32LE(bytes.length, 8);
    bytes.writeUInt32LE(tail, 12);
    bytes.writeBigUInt64LE(BigInt(sequence), 16);
    bytes.writeUInt32LE(data.length + zeros.length, 24);
    logId.copy(bytes, 32);
    bytes.writeBigUInt64LE(BigInt(image.length), 48);
    bytes.writeBigUInt64LE(BigInt(image.length), 56);
    let descriptor = 64;
    for (const zero of zeros) {
      bytes.write("zero", descriptor);
      bytes.writeBigUInt64LE(BigInt(zero.length), descriptor + 8);
      bytes.writeBigUInt64LE(BigInt(zero.to), descriptor + 16);
      bytes.writeBigUInt64LE(BigInt(sequence), descriptor + 24);
      descriptor += 32;
    }
    for (const [n, { to, bytes: sector }] of data.entries()) {
      bytes.write("desc", descriptor);
      sector.copy(bytes, descriptor + 4, 4092, 4096);
      sector.copy(bytes, descriptor + 8, 0, 8);
      bytes.writeBigUInt64LE(BigInt(to), descriptor + 16);
      bytes.writeBigUInt64LE(BigInt(sequence), descriptor + 24);
      descriptor += 32;
      const place = 4096 * (1 + n);
      sector.copy(bytes, place);
      bytes.write("data", place);
      bytes.writeUInt32LE(0, place + 4);
      bytes.writeUInt32LE(sequence, place + 4092);
    }
    bytes.writeUInt32LE(crc32c(bytes, 0, bytes.length), 4);
    places.push(at);
    for (let done = 0; done < bytes.length; done += 4096) {
      bytes.copy(image, offset + ((at + done) % length), done, done + 4096);
    }
    at = (at + bytes.length) % length;
  }
  return places;
}

/** Where the table is that says where blocks are. */
export const tableOf = (image: Buffer): number => {
  for (let at = 196_608 + 16; ; at += 32) {
    if (image.toString("hex", at, at + 4) === "6677c22d") return Number(image.readBigUInt64LE(at + 16));
  }
};

/** Makes an entry's checksum right again. */
export function sumEntry(image: Buffer, at: number): void {
  image.writeUInt32LE(0, at + 4);
  image.writeUInt32LE(crc32c(image, at, at + image.readUInt32LE(at + 8)), at + 4);
}
