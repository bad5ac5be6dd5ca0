import type { ReadOptions } from "../backend/backend.ts";
import type { ImageReader } from "./image-format.ts";
import type { Codec } from "./unpack.ts";

/** A run of the disk. */
export type Extent =
  | { kind: "zero"; length: number }
  /** the object's bytes from `at` on */
  | { kind: "stored"; length: number; at: number; source?: ImageReader }
  | {
      /** [skip, skip + length) of the `bytes` bytes, or, if it is given, `least` at least, that [at, at + packedBytes) hold */
      kind: "packed";
      length: number;
      at: number;
      packedBytes: number;
      codec: Codec | "xz";
      bytes: number;
      skip: number;
      least?: number;
    };

export type Packed = Extract<Extent, { kind: "packed" }>;
export type Stored = Extract<Extent, { kind: "stored" }>;

/** Where the parts of a disk are, as its format's tables say. */
export interface BlockMap {
  /** of the format, for messages */
  readonly name: string;
  /** bytes of the disk */
  readonly size: number;
  /** The extents of a range that lies within the disk, in order; their lengths add up to `length`. */
  extents(offset: number, length: number, options: ReadOptions | undefined): Promise<Extent[]>;
  /** See `ImageReader.zeroRun`. */
  zeroRun(offset: number, length: number, options: ReadOptions | undefined): Promise<number>;
  /**
   * Whoever looks at `offset` now goes on behind it: begins to bring the tables that are needed next. Waits for nothing, fails
   * never, costs little when it is called again. Absent: there is nothing to be gained.
   */
  ahead?(offset: number, options: ReadOptions | undefined): void;
  /**
   * The packed bytes as the codec wants them: without what lies behind them, where the table does not know their exact
   * length; or with what has to be around them, for codecs that get them one by one (xz).
   */
  trim?(packed: Buffer, extent: Packed): Buffer;
}

/** How far a question about zeros looks first, and how much further each time that there were nothing but zeros. */
const FIRST_LOOK_BYTES = 1024 * 1024;
const LOOK_GROWTH = 8;
const LOOKS = 8;

/**
 * Zeros from `offset` on, as the extents have them.
 * @param most bytes of the disk that are looked at in one go
 */
export async function leadingZeros(
  map: Pick<BlockMap, "extents">,
  most: number,
  offset: number,
  length: number,
  options: ReadOptions | undefined,
): Promise<number> {
  let zeros = 0;
  let look = FIRST_LOOK_BYTES;
  for (let looks = 0; zeros < length && looks < LOOKS; looks++) {
    for (const extent of await map.extents(offset + zeros, Math.min(look, length - zeros), options)) {
      if (extent.kind !== "zero") return zeros;
      zeros += extent.length;
    }
    look = Math.min(look * LOOK_GROWTH, Math.max(most, FIRST_LOOK_BYTES));
  }
  return zeros;
}
