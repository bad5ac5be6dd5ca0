import type { SourceError } from "../base/errors.ts";

/**
 * A backend reads ranges of one remote object, and nothing else: it neither caches nor interprets. Wrappers (retry,
 * timeout, rate limit) are backends around a backend.
 */
export interface Backend {
  /** The source as it may be shown and stored: no credentials. */
  readonly url: string;

  /**
   * One round trip that finds out what the object is now: identity and the first bytes of the content.
   * @param headBytes how much of the content's beginning to bring along (fewer when the object is shorter)
   * @throws SourceError
   */
  probe(headBytes: number, signal?: AbortSignal): Promise<Probe>;

  /**
   * Reads exactly [offset, offset + length) of the object pinned by `identity` and hands the bytes, in order, to `sink`.
   * The bytes count only once the promise has resolved: whatever the sink saw before a rejection is worthless.
   * `sink` may keep the chunk only until it returns or, when it returns a promise, until that resolves.
   * @throws SourceError with code `source-changed` when the object is not the pinned one any more
   */
  read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void>;

  /**
   * How many bytes from `offset` on, at most `length`, are zeros as far as the source tells without sending them. 0: nothing
   * is known, or not yet. Absent: nothing is ever known.
   */
  zeroRun?(identity: Identity, offset: number, length: number, options?: ReadOptions): Promise<number>;

  /**
   * Tells of a range, run by run from `offset` on, what the source tells of it without sending it; waits for its answers.
   * Absent: nothing is ever known.
   * @throws SourceError; what was told by then holds
   */
  tellZeros?(identity: Identity, offset: number, length: number, take: ZeroTaker, options?: ReadOptions): Promise<void>;

  /**
   * Makes the object a file of its own that shares its space with it, if it is on the same file system and that can do so.
   * @param path must not exist @returns false: it can't, and nothing is there
   * @throws SourceError as `read` does; what is there then is worthless
   */
  cloneTo?(identity: Identity, path: string): Promise<boolean>;

  /** Streams the whole object (no ranges needed), for sources that cannot seek. Same contract as `read`. */
  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void>;

  /** Releases connections. Reads under way are rejected. */
  close(): Promise<void>;
}

export type Sink = (chunk: Uint8Array) => void | Promise<void>;

/** The next `length` bytes are zeros; false: they are something else, or nothing is known about them. */
export type ZeroTaker = (length: number, zero: boolean) => void;

export interface ReadOptions {
  signal?: AbortSignal;
  /** Prefetch and hydration: must never delay or fail a foreground read. */
  background?: boolean;
  /** Aborted when somebody has come to wait for what the background reads: what is still ahead of it is then foreground. */
  hurry?: AbortSignal;
  /** An attempt failed and is made again; for metrics and health. */
  onRetry?: (error: SourceError) => void;
}

export interface Probe {
  identity: Identity;
  /** The first bytes of the content. */
  head: Buffer;
  /** False when the source can't serve ranges: it must be streamed whole into the cache (`--download`). */
  ranges: boolean;
  /** The object's media type, where who keeps the object says so with authority (a registry's manifest). */
  mediaType?: string;
}

/** What pins an object's content. Two that are the same (file/file-identity.ts) mean equal bytes, unless `strong` is false. */
export interface Identity {
  /** Bytes of the object. */
  size: number;
  /** `etag:"abc"`, `last-modified:… etag:W/"abc"`, `file:ino:mtimeNs:ctimeNs`, `digest:sha256:…`, `sample:sha256:…`; "" when the source offers nothing */
  version: string;
  /** False: a change could go unnoticed (no validator, or a weak one); needs `--unpinned`. */
  strong: boolean;
}
