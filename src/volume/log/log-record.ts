import { crc32c } from "../../base/crc32c.ts";

/*
 * Records of the intent log: 40 bytes each, little-endian, 8-byte aligned.
 *
 *      0 u32  CRC-32C of bytes 4 … 39, seeded with the CRC-32C of the log's generation id
 *      4 u32  the CRC of the record before it (0 for the first one of a log)
 *      8 u64  LSN: consecutive through all logs of a volume
 *     16 u16  length of the record: 40
 *     18 u8   type
 *     19 u8   0
 *     20 u16  small number: set, owner: owner · snapshot: owner id of the new head · clients: 1 = remote writers are
 *             connected, 0 = no longer
 *     22 u16  owner: 1 = layer, 2 = blob · others 0
 *     24 u64  set: first block · commit: cut · resize: bytes · others 0
 *     32 u64  set: number of blocks · commit: durable LSN · others 0
 *     24 16   owner: id of the layer or blob · snapshot: id of the frozen map
 *
 * A record stands for itself (its CRC covers the link to its predecessor), so that a reader that lost its way behind a
 * damaged record can still believe a later one: that is how damage is told from a torn tail (durability rule 9).
 */

export const recordBytes = 40;

export const RecordType = {
  /** blocks [a, a + b) belong to owner `small` */
  set: 1,
  /** everything up to LSN `a` is durable; `b` is the highest LSN whose log sync had returned when this was written */
  commit: 2,
  /** the log ends here; the next log goes on with the next LSN */
  end: 3,
  /** remote writers are connected (`small` = 1), or all of them have left with everything flushed (0) */
  clients: 4,
  /** small owner id `small` stands for a layer or blob from here on */
  owner: 5,
  /** the map as of here is frozen under an id; from here on the layer that is owner `small` is the head */
  snapshot: 6,
  /** the volume has `a` bytes from here on */
  resize: 7,
} as const;

/** A record's words, for encoding in place and decoding without allocation. */
export class RecordView {
  readonly #bytes: Uint8Array;
  readonly #data: DataView;

  /** @param bytes the memory that holds records */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  /** Writes a record at `at`. @returns its CRC */
  encode(
    at: number,
    seed: number,
    previousCrc: number,
    lsn: number,
    type: number,
    small: number,
    a: number,
    b: number,
  ): number {
    const data = this.#data;
    data.setUint32(at + 4, previousCrc, true);
    putU64(data, at + 8, lsn);
    data.setUint32(at + 16, recordBytes | (type << 16), true);
    data.setUint32(at + 20, small, true);
    putU64(data, at + 24, a);
    putU64(data, at + 32, b);
    const crc = crc32c(this.#bytes, at + 4, at + recordBytes, seed);
    data.setUint32(at, crc, true);
    return crc;
  }

  /** Writes a record that carries an id. @param id 32 hex digits @returns its CRC */
  encodeWithId(
    at: number,
    seed: number,
    previousCrc: number,
    lsn: number,
    type: number,
    small: number,
    kind: number,
    id: string,
  ): number {
    this.encode(at, seed, previousCrc, lsn, type, small, 0, 0);
    this.#data.setUint16(at + 22, kind, true);
    this.#bytes.set(Buffer.from(id, "hex"), at + 24);
    const crc = crc32c(this.#bytes, at + 4, at + recordBytes, seed);
    this.#data.setUint32(at, crc, true);
    return crc;
  }

  /** Whether a well-formed record of this generation stands at `at`, whatever its predecessor. */
  valid(at: number, seed: number): boolean {
    const data = this.#data;
    const head = data.getUint32(at + 16, true);
    if ((head & 0xffff) !== recordBytes) return false;
    return data.getUint32(at, true) === crc32c(this.#bytes, at + 4, at + recordBytes, seed);
  }

  crc(at: number): number {
    return this.#data.getUint32(at, true);
  }
  previousCrc(at: number): number {
    return this.#data.getUint32(at + 4, true);
  }
  lsn(at: number): number {
    return getU64(this.#data, at + 8);
  }
  type(at: number): number {
    return this.#data.getUint8(at + 18);
  }
  small(at: number): number {
    return this.#data.getUint16(at + 20, true);
  }
  kind(at: number): number {
    return this.#data.getUint16(at + 22, true);
  }
  /** 32 hex digits */
  id(at: number): string {
    return Buffer.from(this.#bytes.subarray(at + 24, at + 40)).toString("hex");
  }
  a(at: number): number {
    return getU64(this.#data, at + 24);
  }
  b(at: number): number {
    return getU64(this.#data, at + 32);
  }
}

/** Numbers below 2^53 as two words: a BigInt per record would be an allocation per record. */
export function putU64(data: DataView, at: number, value: number): void {
  data.setUint32(at, value >>> 0, true);
  data.setUint32(at + 4, Math.floor(value / 4294967296), true);
}

export function getU64(data: DataView, at: number): number {
  return data.getUint32(at, true) + data.getUint32(at + 4, true) * 4294967296;
}
