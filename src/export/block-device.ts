import type { IoBuffer } from "../base/io-buffer.ts";

/**
 * A disk as every export protocol sees it. Offsets and lengths are bytes at any alignment, inside [0, size): the export
 * checks bounds before it calls. The `try…` forms do the whole operation on the calling thread, or nothing at all and
 * return false; then the asynchronous form must be used. Nothing is durable before a `flush` that started after the
 * operation was answered has resolved; FUA is the operation followed by `flush`.
 *
 * Errors: rejections and exceptions whose `errnoOf` is what the client gets; the device stays usable for others.
 * The asynchronous forms use `buffer` until they settle; the caller must not touch the range before.
 */
export interface BlockDevice {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly readOnly: boolean;
  readonly state: "serving" | "held" | "fenced";
  /** Changes when acknowledged writes may have been lost, so that reconnecting clients can be told. 32 hex digits. */
  readonly lineage: string;

  tryRead(offset: number, length: number, buffer: IoBuffer, at: number): boolean;
  read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void>;

  tryWrite(offset: number, length: number, buffer: IoBuffer, at: number): boolean;
  write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void>;

  /** The whole blocks inside the range read as zeros afterwards and use no space; unaligned edges are left alone. */
  trim(offset: number, length: number): Promise<void>;

  /**
   * The range reads as zeros afterwards.
   * @param options.allocate NBD's NO_HOLE: the space is taken, so that later writes there cannot meet a full disk
   * @param options.fast NBD's FAST_ZERO: reject with errno `ENOTSUP`, at once, when it would be no faster than writing
   */
  zero(offset: number, length: number, options: { allocate: boolean; fast: boolean }): Promise<void>;

  /** Resolves when every operation answered before the call, on any connection, is durable. */
  flush(): Promise<void>;

  /** Brings the range into the local cache. Failures are not reported: a later read will meet them. */
  prefetch(offset: number, length: number): Promise<void>;

  /**
   * To be asked before `extents`: what is zeros may still have to be learnt from the tables of an image. Waits for that for a
   * moment at most, and never fails.
   * @returns undefined: there is nothing to wait for, `extents` can be asked at once. Else about how many bytes from `offset`
   * on, 1 at least, it is best asked now
   */
  learnZeros(offset: number, length: number): Promise<number> | undefined;

  /**
   * Where the bytes are, as runs from `offset` on; never causes a fetch, nor waits for anything.
   * @param limit at most this many runs; fewer bytes than `length` may be covered, at least one run is
   */
  extents(offset: number, length: number, limit: number): Extent[];

  /** Must be awaited before the first operation of a connection; see `Attachment`. Rejects when it is refused. */
  attach(client: Client): Promise<Attachment>;
}

/** The four values of the `ullage:hydration` metadata context. */
export const ExtentState = { local: 0, remote: 1, written: 2, zero: 3 } as const;
export type ExtentState = (typeof ExtentState)[keyof typeof ExtentState];

/** A run of bytes that are in one place. */
export interface Extent {
  /** bytes, > 0 */
  length: number;
  state: ExtentState;
}

/** Who is connected, and how. */
export interface ClientInfo {
  /** `http`: a download; `library`: a program that has the device in its own process */
  protocol: "nbd" | "http" | "library";
  /** For people: `127.0.0.1:5123`, `unix` */
  address: string;
  /** The peer may outlive this machine's power cut: TCP and not loopback. */
  remote: boolean;
  writable: boolean;
}

/** A connection, as the device needs to know it. */
export interface Client extends ClientInfo {
  /** The device asks the export to end the connection, e.g. because the volume is being removed. */
  close(reason: string): void;
}

/**
 * A connection's stay at a device. `broken` is called the moment the connection is known to be gone, `release` once its
 * last started operation has ended. A new `attach` waits for every broken one to be released, so that no operation of a
 * dead connection can land after what its successor wrote (durability rule 25).
 */
export interface Attachment {
  broken(): void;
  /** @param clean the client said goodbye (NBD_CMD_DISC), it will not come back with requests to resend */
  release(clean: boolean): void;
}

/** What an export server serves: names and the devices behind them. */
export interface ExportDirectory {
  /** Names, for NBD_OPT_LIST. */
  list(): ExportEntry[];
  /** "" is the only volume when there is exactly one. Opens the device when it is not open yet. */
  lookup(name: string): Promise<ExportLookup>;
}

export interface ExportEntry {
  name: string;
  description?: string;
}

export type ExportLookup =
  | { kind: "device"; name: string; device: BlockDevice; readOnly: boolean; snapshots?: ComparableSnapshots }
  | { kind: "none"; reason: string };

/** The snapshots that an export can be compared with, for incremental backups. */
export interface ComparableSnapshots {
  names(): string[];
  /** Rejects when there is no such snapshot. */
  changesSince(name: string): Promise<Changes>;
}

/**
 * Which bytes of a range may differ from a snapshot: as runs from `offset` on, like `BlockDevice.extents`. Blocks that were
 * written since, with whatever bytes, are changed.
 */
export type Changes = (offset: number, length: number, limit: number) => { length: number; changed: boolean }[];
