import type { ReadableFile } from "../base/file-system.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import type { ContentCheck } from "./content-check.ts";

/**
 * An immutable, disk-addressed byte sequence with a local cache file. A unit (a power of two of bytes) of it is *ready*
 * once its bytes are in the cache file; only ready ranges may be read from `file`. Local and remote (blob manager)
 * implementations are interchangeable.
 */
export interface Blob {
  /** 32 hex digits: the directory below <data>/blobs and the id in the owner table. */
  readonly id: string;
  /** Bytes; need not be a multiple of anything. Beyond it a volume reads zeros. */
  readonly size: number;
  readonly unitBytes: number;
  /**
   * The cache file: byte n of the blob is byte n of the file, up to `size`; from there to the next multiple of 4096 it
   * has zeros. After a read, ask `isReady` again: a failed sync may have taken the readiness back in between, and the
   * bytes then count for nothing (durability rules 12 and 13).
   */
  readonly file: ReadableFile;
  /** Bytes of ready units (the last one counted short). */
  readonly readyBytes: number;
  /**
   * Changes whenever units are taken back because a sync of their bytes had failed. A read of `file` counts only if this
   * is what it was before `isReady` was asked: the unit may have been lost, and fetched again, meanwhile; a remote
   * blob's at any moment.
   */
  readonly losses: number;
  /** Absent: nothing tells whether its bytes are right. */
  readonly check?: ContentCheck | undefined;
  /** Absent: nothing is ever known. */
  readonly zeros?: BlobZeros | undefined;
  /** What was asked of the source: of a cached blob since it was made, of a remote one since it was opened. */
  readonly stats: Readonly<BlobStats>;

  /** Whether every byte of the range that lies below `size` can be read from `file` now. No allocation, no wait. */
  isReady(offset: number, length: number): boolean;

  /** How many bytes from `offset` on, at most `length`, have the same readiness as the byte at `offset`. */
  readyRun(offset: number, length: number): number;

  /**
   * Makes the range ready. Single-flight with everyone else's fetches.
   * @param options.background never delays a foreground fetch; used by hydration and readahead
   * @throws SourceError, or IoError when the cache file can't take the bytes; nothing is marked ready then
   */
  fetch(offset: number, length: number, options?: FetchOptions): Promise<void>;

  /**
   * Reads a range below `size` from the source, ready or not, and keeps nothing of it: for when the cache has no room.
   * Absent: the source is out of reach.
   * @throws SourceError
   */
  readThrough?(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void>;

  /** Tells the cache that a range was read, for readahead. Cheap, never throws. */
  noteRead(offset: number, length: number): void;

  /** Everything ready now becomes durably ready: data synced, then the range map. @throws IoError */
  sync(): Promise<void>;

  /** Whether the range's units are durably ready, i.e. survive a power cut. */
  isDurable(offset: number, length: number): boolean;

  /** Durably forbids every eviction of this blob, on behalf of a volume that is detached from its source. */
  pin(volumeId: string): Promise<void>;
  unpin(volumeId: string): Promise<void>;
  isPinnedBy(volumeId: string): boolean;
}

/** Which units of a blob are zeros as the image's tables tell, ready or not. */
export interface BlobZeros {
  /** Whether the unit of the byte at `offset` is known to be zeros. No allocation, no wait. */
  has(offset: number): boolean;

  /** How many bytes from `offset` on, at most `length`, `has` is the same for. */
  run(offset: number, length: number): number;

  /**
   * Asks the tables about a range below the blob's size, and waits for them for a moment at most; never rejects.
   * @returns undefined: there is nothing to wait for. Else how many bytes from `offset` on the tables have told of by then.
   */
  learn(offset: number, length: number): Promise<number> | undefined;
}

/** In the place of a volume's id: somebody wants a blob to be kept, whether a volume needs it or not. */
export const keptByUser = "0".repeat(32);

/** For whom something is fetched; default: somebody waits for it. */
export interface FetchOptions {
  background?: boolean;
  /** Nobody waits for it yet, but somebody probably will in a moment: before the background, behind who waits. */
  soon?: boolean;
  /**
   * The caller can do without its being kept (`readThrough`, or not at all): he is refused with ENOSPC before the last
   * bytes of a disk are taken, which are for what volumes write.
   */
  optional?: boolean;
  signal?: AbortSignal;
}

/** What was asked of a source for a blob's sake. */
export interface BlobStats {
  /** Bytes received from the source because somebody waited for them. */
  foregroundBytes: number;
  /** Bytes received because somebody would probably want them in a moment. */
  readaheadBytes: number;
  /** Bytes received to fill the blob. */
  backgroundBytes: number;
  /** Requests to the source. */
  requests: number;
  /** Requests that failed, be it at the source or at the cache file. */
  errors: number;
}
