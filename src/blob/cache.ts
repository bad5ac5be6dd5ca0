import { join } from "node:path";
import type { Identity } from "../backend/backend.ts";
import type { Clock } from "../base/clock.ts";
import { UllageError, describeError } from "../base/errors.ts";
import type { DirectoryLock, FileSystem } from "../base/file-system.ts";
import type { ImageReader } from "../image/image-format.ts";
import { lookAtFiles, type BlobLook } from "./blob-look.ts";
import { readBlobMeta, removeBlobDirectory } from "./blob-files.ts";
import { isBlobId, isUnit, type BlobMeta } from "./blob-meta.ts";
import { StagingBuffers } from "./cache-writer.ts";
import { CachedBlob, type BlobEnvironment } from "./cached-blob.ts";
import { FetchTraffic } from "./fetch-lanes.ts";
import { SourceTraffics } from "./source-traffic.ts";
import { MAKING, makeUnpackedFiles, type UnpackOptions } from "./unpacked-files.ts";

/*
 * The blobs of a data directory: <data>/blobs/<id>/. Known are all whose meta.json can be read, at the price of one
 * small file each; open are those that somebody uses. There is one blob per object and identity, whoever asks for it.
 */

/** Small enough that a first read waits for little more than itself, large enough for few requests and a small map. */
export const DEFAULT_UNIT_BYTES = 256 * 1024;

/** What a blob's directory is called while it is being removed, and after that was interrupted. */
const TOMBSTONE = ".removed";

export interface BlobCacheOptions {
  fs: FileSystem;
  clock: Clock;
  /** The data directory; `blobs` is made in it. */
  dataDir: string;
  randomBytes(length: number): Buffer;
  log(level: "info" | "warn" | "error", message: string): void;
  /** See `BlobEnvironment.openSource`. */
  openSource(meta: BlobMeta, signal: AbortSignal): Promise<ImageReader>;
}

export interface CreateBlobOptions {
  /** Without credentials. */
  url: string;
  imageFormat: string;
  identity: Identity;
  /** bytes of the blob */
  size: number;
  /** bytes, a power of two; default `DEFAULT_UNIT_BYTES` */
  unitBytes?: number;
  /** See `BlobMeta.guarded`. */
  guarded?: boolean;
}

interface OpenBlob {
  users: number;
  blob: Promise<CachedBlob>;
  /** Once the promise has resolved. */
  opened: CachedBlob | undefined;
}

export class BlobCache {
  /** What was asked of the sources. */
  readonly sources = new SourceTraffics();
  readonly #options: BlobCacheOptions;
  readonly #environment: BlobEnvironment;
  readonly #dir: string;
  readonly #lock: DirectoryLock;
  readonly #known: Map<string, BlobMeta>;
  readonly #open = new Map<string, OpenBlob>();
  /** Directories that are closing, or being removed: an `open` of the same id waits for it. */
  readonly #leaving = new Map<string, Promise<void>>();
  #closed: Promise<void> | undefined;

  private constructor(options: BlobCacheOptions, dir: string, lock: DirectoryLock, known: Map<string, BlobMeta>) {
    const { clock } = options;
    this.#options = options;
    this.#environment = {
      fs: options.fs,
      clock,
      log: (level, message) => options.log(level, message),
      openSource: (meta, signal) => options.openSource(meta, signal),
      traffic: new FetchTraffic(clock),
      buffers: new StagingBuffers(),
      sources: this.sources,
    };
    this.#dir = dir;
    this.#lock = lock;
    this.#known = known;
  }

  /** @throws UllageError `locked` when another process has the directory, `newer-format`; IoError */
  static async open(options: BlobCacheOptions): Promise<BlobCache> {
    const { fs, dataDir } = options;
    const dir = join(dataDir, "blobs");
    await fs.mkdir(dir);
    await fs.syncDirectory(dataDir);
    const lock = await fs.lockDirectory(dir);
    try {
      await fs.syncDirectory(dir); // a blob whose creator was killed half-way may be found, and used
      const known = new Map<string, BlobMeta>();
      for (const id of await fs.readdir(dir)) {
        if (id.endsWith(TOMBSTONE) || id.endsWith(MAKING)) await removeBlobDirectory(fs, join(dir, id));
        if (!isBlobId(id)) continue;
        try {
          known.set(id, await readBlobMeta(fs, join(dir, id)));
        } catch (error) {
          if (error instanceof UllageError && error.code === "newer-format") throw error;
          // Half made when something crashed, or damaged. It is nobody's; `check` tells which.
          options.log("warn", `blob ${id} is left alone: ${describeError(error)}`);
        }
      }
      return new BlobCache(options, dir, lock, known);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  list(): BlobMeta[] {
    return [...this.#known.values()];
  }

  /** What is to be seen of a blob. Opens nothing. @returns undefined when there is none; it may be on its way out */
  async look(id: string): Promise<BlobLook | undefined> {
    await this.#leaving.get(id);
    const meta = this.#known.get(id);
    if (meta === undefined) return undefined;
    const entry = this.#open.get(id);
    const blob = entry?.opened;
    if (entry === undefined || blob === undefined) {
      return lookAtFiles(this.#options.fs, join(this.#dir, id), meta).catch((error: unknown) => {
        if (this.#known.has(id)) throw error;
        return undefined; // it was removed meanwhile
      });
    }
    const { readyBytes, pins, stats, sourceTrouble: trouble } = blob;
    return { meta, readyBytes, diskBytes: blob.file.allocated(), pins, users: entry.users, stats, trouble };
  }

  /**
   * The blob that caches this object already. Never one whose identity is weak: it may be something else by now.
   * @param imageFormat a chain, or the beginning of one when the rest isn't known
   */
  find(url: string, imageFormat: string, identity: Identity): BlobMeta | undefined {
    if (!identity.strong) return undefined;
    return this.list().find(
      (meta) =>
        meta.url === url &&
        (meta.imageFormat === imageFormat || meta.imageFormat.startsWith(`${imageFormat}+`)) &&
        meta.identity.strong &&
        meta.identity.version === identity.version &&
        meta.identity.size === identity.size,
    );
  }

  /** A client is about to read from some blob that is not complete: background requests leave it room for a moment. */
  expectReads(): void {
    this.#environment.traffic.expected();
  }

  /**
   * Makes a new blob, durably, and opens it: `release` it like any other.
   * @param reader reads the object; absent: the source is opened at the first miss
   */
  async create(options: CreateBlobOptions, reader?: ImageReader): Promise<CachedBlob> {
    const { url, imageFormat, identity, size, unitBytes = DEFAULT_UNIT_BYTES, guarded = false } = options;
    if (!isUnit(unitBytes)) throw new RangeError("a unit must be a power of two, 4096 to 8 MiB");
    const { fs, clock } = this.#options;
    const id = this.#options.randomBytes(16).toString("hex");
    const createdAt = clock.wallTime();
    const meta = { id, url, imageFormat, identity, size, unitBytes, createdAt, ...(guarded ? { guarded } : {}) };
    const dir = join(this.#dir, id);
    let blob: CachedBlob | undefined;
    try {
      blob = await CachedBlob.create(this.#environment, dir, meta);
      await fs.syncDirectory(this.#dir);
    } catch (error) {
      await blob?.close();
      await this.#removeFiles(id).catch(() => undefined); // nobody knows its id; `check` finds what stays
      throw error;
    }
    if (reader !== undefined) blob.attach(reader);
    this.#known.set(id, meta);
    this.#open.set(id, { users: 1, blob: Promise.resolve(blob), opened: blob });
    return blob;
  }

  /**
   * Makes a new blob, complete and durable, from an image that has to be unpacked, and opens it.
   * @param about `imageFormat` is asked for when the disk was opened
   * @param unpacking.onId called with the blob's id before anything is made
   */
  async createUnpacked(
    about: Pick<CreateBlobOptions, "url" | "identity" | "guarded"> & { imageFormat(): string },
    unpacking: Pick<UnpackOptions, "signal" | "unpack" | "openDisk"> & { onId?: (id: string) => Promise<unknown> },
  ): Promise<CachedBlob> {
    const { fs, clock } = this.#options;
    const { url, identity, guarded = false } = about;
    const id = this.#options.randomBytes(16).toString("hex");
    await unpacking.onId?.(id);
    const dir = join(this.#dir, `${id}${MAKING}`);
    await fs.mkdir(dir);
    let meta: BlobMeta;
    try {
      meta = await makeUnpackedFiles({
        ...unpacking,
        fs,
        dir,
        describe: (size) => ({
          id,
          url,
          imageFormat: about.imageFormat(),
          identity,
          size,
          unitBytes: DEFAULT_UNIT_BYTES,
          createdAt: clock.wallTime(),
          ...(guarded ? { guarded } : {}),
        }),
      });
      await fs.rename(dir, join(this.#dir, id));
      await fs.syncDirectory(this.#dir);
    } catch (error) {
      await removeBlobDirectory(fs, dir).catch(() => undefined); // the next start tries again
      throw error;
    }
    this.#known.set(id, meta);
    return this.open(id);
  }

  /** The same object for everybody, opened when it is not yet. @throws UllageError `not-found`; see `CachedBlob.open` */
  async open(id: string): Promise<CachedBlob> {
    await this.#leaving.get(id);
    if (!this.#known.has(id)) {
      throw new UllageError("not-found", `there is no blob ${id} below ${this.#dir}`, {
        hint: "run `ullage check DATA`",
      });
    }
    let entry = this.#open.get(id);
    if (entry === undefined) {
      entry = this.#opening(id);
    }
    entry.users++;
    return entry.blob;
  }

  #opening(id: string): OpenBlob {
    const entry: OpenBlob = {
      users: 0,
      blob: CachedBlob.open(this.#environment, join(this.#dir, id)),
      opened: undefined,
    };
    this.#open.set(id, entry);
    entry.blob.then(
      (blob) => (entry.opened = blob),
      () => this.#open.delete(id),
    );
    return entry;
  }

  /** Those that somebody uses. */
  opened(): CachedBlob[] {
    return [...this.#open.values()].flatMap(({ opened }) => opened ?? []);
  }

  /** Ends one use; the last one closes the blob. */
  async release(id: string): Promise<void> {
    const entry = this.#open.get(id);
    if (entry === undefined) return;
    entry.users--;
    if (entry.users > 0) return;
    this.#open.delete(id);
    await this.#leave(id, async () => (await entry.blob).close());
  }

  /**
   * Removes a blob that no volume refers to. Its directory goes as a whole, under another name first, so that an
   * interrupted removal leaves nothing that looks like a blob (durability rule 13).
   * @throws UllageError `in-use` when it is open or pinned
   */
  async remove(id: string): Promise<void> {
    await this.#leaving.get(id);
    if (this.#open.has(id)) throw new UllageError("in-use", `blob ${id} is in use`);
    const pins = await this.#options.fs.readdir(join(this.#dir, id, "pins"));
    if (pins.length > 0) throw new UllageError("in-use", `blob ${id} is needed by detached volumes ${pins.join(", ")}`);
    this.#known.delete(id);
    await this.#leave(id, () => this.#removeFiles(id));
  }

  /** Closes everything, saving the range maps. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    const open = [...this.#open];
    this.#open.clear();
    await Promise.all(open.map(([id, entry]) => this.#leave(id, async () => (await entry.blob).close())));
    await Promise.all(this.#leaving.values());
    this.#environment.traffic.close();
    await this.#lock.release();
  }

  async #leave(id: string, work: () => Promise<void>): Promise<void> {
    const leaving = work().finally(() => this.#leaving.delete(id));
    this.#leaving.set(
      id,
      leaving.catch(() => undefined),
    );
    await leaving;
  }

  async #removeFiles(id: string): Promise<void> {
    const { fs } = this.#options;
    const dir = join(this.#dir, id);
    const tombstone = join(this.#dir, `${id}${TOMBSTONE}`);
    await fs.rename(dir, tombstone);
    await fs.syncDirectory(this.#dir);
    await removeBlobDirectory(fs, tombstone);
  }
}
