import { join } from "node:path";
import { digestOf } from "../backend/http/http-answer.ts";
import type { Clock } from "../base/clock.ts";
import { CorruptionError, SourceError, UllageError, describeError } from "../base/errors.ts";
import type { FileSystem, ReadableFile } from "../base/file-system.ts";
import type { Hashing } from "../base/threads/hash-thread.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { orAborted } from "../base/or-aborted.ts";
import type { Slots } from "../base/pool-slots.ts";
import { shownSource } from "../base/without-secrets.ts";
import type { BlobMeta } from "./blob-meta.ts";
import { replaceFile } from "./durable-file.ts";

/*
 * Ranges of an object come without digests; the object as a whole has one. When all of a blob is durably in its cache
 * file, the file is hashed and compared, and only then do volumes count as detached (durability rule 36).
 *
 *     unchecked --equal, mark durable--> verified --some of it is evicted: mark gone first--> unchecked
 *         ^  \--differs: everything is taken back, and fetched again
 *         |   \--differs for the third time, or where volumes count on the bytes--> givenUp --forgive--> unchecked
 *
 * The mark is a file beside the map. It counts only with a map that has every unit, of the same data file; any other is
 * removed before the blob is used.
 */

export type CheckState = "unchecked" | "verified" | "givenUp";

/** Whether a blob has the bytes that its digest names. */
export interface ContentCheck {
  /** givenUp: they were wrong again and again; nothing is fetched any more */
  readonly state: CheckState;
  /** What was wrong the last time; undefined since it was right. */
  readonly trouble: { error: SourceError; at: string } | undefined;
  /**
   * Compares everything with the digest, unless that was done. Single-flight.
   * @returns false: not everything is here, or it was taken back meanwhile
   * @throws SourceError `source-wrong-bytes`, IoError, the reason of `signal`, which ends the waiting only
   */
  run(signal?: AbortSignal): Promise<boolean>;
  /** Begins anew after it was given up. */
  forgive(): void;
}

/** What is checked. */
export interface CheckedBlob {
  readonly meta: BlobMeta;
  readonly file: ReadableFile;
  readonly losses: number;
  /** Whether every unit is durably ready. */
  isComplete(): boolean;
  sync(): Promise<void>;
  /** Volumes were told that they need no source any more. */
  isCountedOn(): boolean;
  /** Nothing is ready any more; durable when it resolves. */
  discard(): Promise<void>;
  /** What the check has come to. */
  entered(state: CheckState): void;
  /** Runs `work` while no unit comes or goes. */
  inMapTurn(work: () => Promise<void>): Promise<void>;
}

export interface CheckSurroundings {
  readonly fs: FileSystem;
  readonly clock: Clock;
  /** One file at a time is hashed. */
  readonly hashSlots: Slots;
  startHash(this: void, algorithm: string): Hashing;
  log(this: void, level: "info" | "warn" | "error", message: string, fields?: { code?: string; blobId?: string }): void;
}

const MARK = "verified";
const FORMAT = "ullage-verified";
const VERSION = 1;

/** So often the source may send something else than the digest names. */
const MAX_MISMATCHES = 3;
const CHUNK_BYTES = 1024 * 1024;

/** The digest of what the cache file has when it is full: only where the disk is the object, byte by byte. */
export function contentDigest(meta: BlobMeta): string | undefined {
  if (meta.imageFormat !== "raw" || meta.unpacked === true || meta.identity.size !== meta.size) return undefined;
  return digestOf(meta.identity);
}

/**
 * Whether the blob's mark says that it was compared.
 * @param inode of the data file @param complete the map has every unit
 */
export async function readMark(
  fs: FileSystem,
  dir: string,
  meta: BlobMeta,
  { inode, complete }: { inode: number; complete: boolean },
): Promise<"none" | "good" | "stale"> {
  const path = join(dir, MARK);
  if (!(await fs.exists(path))) return "none";
  const good = complete && (await fs.readFile(path)).equals(encodeMark(meta, inode));
  return good ? "good" : "stale";
}

/** Durable when it resolves. */
export async function removeMark(fs: FileSystem, dir: string): Promise<void> {
  await fs.unlink(join(dir, MARK));
  await fs.syncDirectory(dir);
}

function encodeMark(meta: BlobMeta, inode: number): Buffer {
  return Buffer.from(
    `${JSON.stringify({ format: FORMAT, version: VERSION, digest: contentDigest(meta), inode }, null, 2)}\n`,
  );
}

export class DigestContentCheck implements ContentCheck {
  trouble: { error: SourceError; at: string } | undefined;
  readonly #surroundings: CheckSurroundings;
  readonly #blob: CheckedBlob;
  readonly #dir: string;
  readonly #inode: number;
  readonly #digest: string;
  readonly #closing = new AbortController();
  #state: CheckState;
  #mismatches = 0;
  #running: Promise<boolean> | undefined;

  private constructor(
    surroundings: CheckSurroundings,
    blob: CheckedBlob,
    place: { dir: string; inode: number },
    digest: string,
    verified: boolean,
  ) {
    this.#surroundings = surroundings;
    this.#blob = blob;
    this.#dir = place.dir;
    this.#inode = place.inode;
    this.#digest = digest;
    this.#state = verified ? "verified" : "unchecked";
  }

  /** Undefined when there is no digest of what the cache file has. */
  static of(
    surroundings: CheckSurroundings,
    blob: CheckedBlob,
    place: { dir: string; inode: number },
    verified: boolean,
  ): DigestContentCheck | undefined {
    const digest = contentDigest(blob.meta);
    return digest === undefined ? undefined : new DigestContentCheck(surroundings, blob, place, digest, verified);
  }

  get state(): CheckState {
    return this.#state;
  }

  #enter(state: CheckState): void {
    this.#state = state;
    this.#blob.entered(state);
  }

  forgive(): void {
    if (this.#state !== "givenUp") return;
    this.#enter("unchecked");
    this.#mismatches = 0;
  }

  /** @throws SourceError when the source was wrong too often */
  demandTrust(): void {
    if (this.#state === "givenUp" && this.trouble !== undefined) throw this.trouble.error;
  }

  /** Begins by itself when everything is here; what comes of it is logged, and to be seen. */
  start(): void {
    if (this.#state !== "unchecked" || this.#running !== undefined || !this.#blob.isComplete()) return;
    if (!this.#closing.signal.aborted) void this.run().catch(() => undefined);
  }

  async run(signal?: AbortSignal): Promise<boolean> {
    signal?.throwIfAborted();
    if (this.#state === "verified") return true;
    this.demandTrust();
    this.#running ??= this.#run().finally(() => (this.#running = undefined));
    return orAborted(this.#running, signal);
  }

  async #run(): Promise<boolean> {
    const { meta } = this.#blob;
    try {
      await this.#blob.sync();
      if (!this.#blob.isComplete()) return false;
      const { losses } = this.#blob;
      const found = await this.#surroundings.hashSlots.run(() => this.#hash());
      if (found !== this.#digest) {
        // Units that came and went meanwhile may have been read half old, half new.
        if (this.#blob.losses !== losses || !this.#blob.isComplete()) return false;
        throw await this.#mismatch(found);
      }
      return await this.#mark(losses);
    } catch (error) {
      if (!(error instanceof SourceError) && !this.#closing.signal.aborted) {
        const message = `blob ${meta.id} could not be compared with its digest: ${describeError(error)}`;
        this.#surroundings.log("warn", message, { blobId: meta.id });
      }
      throw error;
    }
  }

  /** Reads the cache file from its beginning to its end, and takes as long a rest after each part as that took. */
  async #hash(): Promise<string> {
    const { clock, startHash } = this.#surroundings;
    const { signal } = this.#closing;
    const { file, meta } = this.#blob;
    const algorithm = this.#digest.slice(0, this.#digest.indexOf(":"));
    const hash = startHash(algorithm);
    const buffer = new IoBuffer(CHUNK_BYTES);
    try {
      for (let at = 0; at < meta.size; at += CHUNK_BYTES) {
        signal.throwIfAborted();
        const began = clock.now();
        const length = Math.min(CHUNK_BYTES, meta.size - at);
        const got = await file.read(buffer, 0, length, at);
        if (got !== length) throw new CorruptionError(`${file.path} ends at ${at + got}, and has ${meta.size} bytes`);
        await hash.update(buffer.bytes.subarray(0, length));
        await clock.sleep(clock.now() - began, signal);
      }
      return `${algorithm}:${await hash.digest()}`;
    } finally {
      await hash.close();
    }
  }

  async #mark(losses: number): Promise<boolean> {
    await this.#blob.inMapTurn(async () => {
      if (this.#blob.losses !== losses || !this.#blob.isComplete()) return;
      await replaceFile(this.#surroundings.fs, this.#dir, MARK, encodeMark(this.#blob.meta, this.#inode));
      this.#enter("verified");
      this.trouble = undefined;
      this.#mismatches = 0;
    });
    return this.#state === "verified";
  }

  /** @returns the error */
  async #mismatch(found: string): Promise<SourceError> {
    const { meta } = this.#blob;
    const { log, clock } = this.#surroundings;
    this.#mismatches++;
    const source = shownSource(meta.url);
    const error = new SourceError(
      "source-wrong-bytes",
      `what came from ${source} has the digest ${found}, not ${this.#digest}`,
      { transient: false, hint: "what the source keeps is damaged, or something between changes it" },
    );
    this.trouble = { error, at: clock.wallTime() };
    const about = { code: error.code, blobId: meta.id };
    if (this.#blob.isCountedOn()) {
      this.#enter("givenUp");
      log("error", `blob ${meta.id}: ${error.message}; it is kept, since volumes may have nothing else`, about);
      return error;
    }
    if (this.#mismatches >= MAX_MISMATCHES) this.#enter("givenUp");
    const next =
      this.#state === "givenUp" ? `that was ${this.#mismatches} times: reads of it fail now` : "it is fetched again";
    log("error", `blob ${meta.id}: ${error.message}; nothing of it is used any more, and ${next}`, about);
    await this.#blob.discard();
    return error;
  }

  /** To be awaited before a unit is taken away. */
  async invalidate(): Promise<void> {
    if (this.#state !== "verified") return;
    await removeMark(this.#surroundings.fs, this.#dir);
    this.#enter("unchecked");
  }

  /** Ends a comparison that is under way. */
  async close(): Promise<void> {
    this.#closing.abort(new UllageError("closed", "the blob is being closed"));
    await this.#running?.catch(() => undefined);
  }
}
