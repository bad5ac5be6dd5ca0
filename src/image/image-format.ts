import type { ReadOptions, Sink, ZeroTaker } from "../backend/backend.ts";
import { SourceError } from "../base/errors.ts";

/**
 * A sequence of bytes that is read in ranges: a remote object as it is, what a container holds, or a disk. Immutable.
 */
export interface ImageReader {
  /** bytes */
  readonly size: number;

  /** Same contract as `Backend.read`: exactly the range, in order, good once the promise has resolved. */
  read(offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void>;

  /**
   * How many bytes from `offset` on, at most `length`, are zeros as far as the format's own tables tell: they need not be
   * read. 0: nothing is known. May read tables. Absent: nothing is ever known.
   */
  zeroRun?(offset: number, length: number, options?: ReadOptions): Promise<number>;

  /**
   * Tells what the tables say of a range, run by run from `offset` on. Reads tables and waits for them, but never for data;
   * lets others run in between. Absent: nothing is ever known.
   * @throws SourceError when a table can't be read, or is damaged: what was told by then holds
   */
  tellZeros?(offset: number, length: number, take: ZeroTaker, options?: ReadOptions): Promise<void>;
}

/** What opening an image may need beside its bytes. */
export interface OpenContext {
  signal?: AbortSignal;
  /** What the object is called; only looked at where its first bytes say nothing. */
  name?: string;
  /**
   * Opens the image that this one lies on, by the name and format that it gives. Absent: an image that needs one is
   * refused.
   */
  openBacking?(name: string, format: string): Promise<ImageReader>;
}

/** Unpacks a stream from its beginning to its end; what comes out goes to the sink that it was made with. */
export interface Unpacker {
  /** Takes the next packed bytes; resolves when they have been worked off. @throws SourceError; what the sink threw */
  write(chunk: Uint8Array): Promise<void>;
  /** Resolves when all has gone to the sink. @throws SourceError `image-damaged` when the stream does not end here */
  end(): Promise<void>;
  /** To be called at the end, whatever happened. */
  close(): Promise<void>;
}

/** An image format maps the bytes of an object to those of a disk, or of what it contains. Read-only, lazy. */
export interface ImageFormat {
  readonly name: string;
  /** What it contains is an object again, whose format is looked at anew. */
  readonly container: boolean;

  /**
   * Whether an object that begins like this is of this format. Only asked at import, never of data a guest can write.
   * @param size bytes of the object; Infinity: unknown
   */
  detect(head: Uint8Array, size: number): boolean;

  /**
   * Looks at the headers. Tables are checked before they are used, here or when they are.
   * @returns undefined when this object can only be unpacked from its beginning to its end
   * @throws SourceError `image-unsupported`, `image-damaged`
   */
  open(source: ImageReader, context: OpenContext): Promise<ImageReader | undefined>;

  /** For formats whose `open` may return undefined. */
  unpacker?: (this: void, sink: Sink) => Unpacker;
}

/** The image is of a kind that can't be read; `why` follows the format's name. */
export function unsupportedImage(format: string, why: string, hint?: string): SourceError {
  return new SourceError("image-unsupported", `the ${format} image ${why}`, {
    transient: false,
    hint: `${hint ?? "convert it first: qemu-img convert -O qcow2"}; --format raw serves its bytes as they are`,
  });
}

/** The image contradicts itself or its format; `what` follows the format's name. */
export function damagedImage(format: string, what: string, cause?: unknown, hint?: string): SourceError {
  return new SourceError("image-damaged", `the ${format} image is damaged: ${what}`, {
    transient: false,
    hint: hint ?? "compare it with its publisher's checksum, or run qemu-img check on it",
    cause,
  });
}
