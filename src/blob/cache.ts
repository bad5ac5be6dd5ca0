import { join } from "node:path";
import type { Identity } from "../backend/backend.ts";
import { isSameIdentity } from "../backend/file/file-identity.ts";
import type { Clock } from "../base/clock.ts";
import { UllageError, describeError } from "../base/errors.ts";
import type { DirectoryLock, FileSystem } from "../base/file-system.ts";
import { type Hashing, HashThread } from "../base/threads/hash-thread.ts";
import { isId } from "../base/ids.ts";
import { Slots } from "../base/pool-slots.ts";
import type { ImageReader } from "../image/image-format.ts";
import {
  type BlobHistory,
  type IndexedBlob,
  indexName,
  noHistory,
  readBlobIndex,
  writeBlobIndex,
} from "./blob-index.ts";
import { lookAtFiles, type BlobLook } from "./blob-look.ts";
import { diskBytesOf, readBlobMeta, removeBlobDirectory } from "./blob-files.ts";
import { isSameBacking, isUnit, usualUnit, type BackingMeta, type BlobMeta } from "./blob-meta.ts";
import { type CacheLimits, CacheSpace } from "./cache-space.ts";
import { StagingBuffers } from "./cache-writer.ts";
import { CachedBlob, type BlobEnvironment } from "./cached-blob.ts";
import { memoryFiles } from "./memory-files.ts";
import { FetchTraffic } from "./fetch-lanes.ts";
import { MISS_BYTES } from "./neighbours.ts";
import { SourceTraffics } from "./source-traffic.ts";
import { MAKING, makeClonedFiles, makeUnpackedFiles, type UnpackOptions } from "./unpacked-files.ts";

/*
 * The blobs of a data directory: <data>/blobs/<id>/. Known are all whose meta.json can be read, at the price of one
 * small file each; open are those that somebody uses. There is one blob per object and identity, whoever asks for it.
 */

/** What a blob's directory is called while it is being removed, and after that was interrupted. */
const TOMBSTONE = ".removed";

export interface BlobCacheOptions {
  fs: FileSystem;
  clock: Clock;
  /** The data directory; `blobs` is made in it. */
  dataDir: string;
  randomBytes(length: number): Buffer;
  log(level: "info" | "warn" | "error", message: string, fields?: { code?: string; blobId?: string }): void;
  /** Default: in a thread. */
  startHash?: (algorithm: string) => Hashing;
  /** A blob is gone, by whomever. */
  onRemoved?(id: string): void;
  /** What a read that misses brings, bytes: see neighbours.ts, whose `MISS_BYTES` is the default. 0: the units that it needs. */
  missBytes?: number;
  /** How much space all blobs may take; default: see cache-space.ts. */
  cacheLimits?: CacheLimits;
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
  /** bytes, a power of two; default: see `usualUnit` */
  unitBytes?: number;
  /** See `BlobMeta.guarded`. */
  guarded?: boolean;
  /** See `BlobMeta.backing`; empty: none. */
  backing?: readonly BackingMeta[];
  /** See `BlobMeta.uncached`. */
  uncached?: boolean;
}

/** Who knows which blobs are needed. Without one, none that is closed is ever evicted. */
export interface BlobNeeds {
  /** The blobs that volumes refer to, open or not; true: each of these volumes is content with less than all of it. */
  needed(): ReadonlyMap<string, boolean>;
}

/** What is kept in memory of a blob that is not cached, bytes: enough for its readers not to get into each other's way. */
const UNCACHED_BYTES = 64 * 1024 * 1024;

/** The index is written so long after a change, ms, and when the cache is closed. */
const INDEX_DELAY_MS = 5000;

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
  readonly #known: Map<string, IndexedBlob>;
  readonly #indexPath: string;
  readonly #closing = new AbortController();
  #indexing: Promise<void> | undefined;
  /** Of closed blobs: what their cache files take on disk. */
  #closedBytes = 0;
  /** What is unpacked just now, and no blob yet. */
  #makingBytes = 0;
  #needs: BlobNeeds | undefined;
  /** How much the cache takes, and what goes when that is too much. */
  readonly space: CacheSpace;
  readonly #open = new Map<string, OpenBlob>();
  /** Directories that are closing, or being removed: an `open` of the same id waits for it. */
  readonly #leaving = new Map<string, Promise<void>>();
  #closed: Promise<void> | undefined;

  private constructor(options: BlobCacheOptions, dir: string, lock: DirectoryLock, known: Map<string, IndexedBlob>) {
    const { clock } = options;
    this.#options = options;
    this.#indexPath = join(options.dataDir, indexName);
    for (const { diskBytes } of known.values()) this.#closedBytes += diskBytes;
    this.space = new CacheSpace(
      {
        clock,
        use: () => this.diskBytes,
        fileSystem: () => options.fs.space(options.dataDir),
        unneeded: () => this.#unneeded(),
        removeBlob: (id) => this.#evictBlob(id),
        thinnable: () => this.#thinnable(),
        log: (level, message) => options.log(level, message),
      },
      options.cacheLimits,
    );
    this.#environment = {
      fs: options.fs,
      clock,
      log: (level, message, fields) => options.log(level, message, fields),
      hashSlots: new Slots(1),
      startHash: options.startHash ?? ((algorithm) => new HashThread(algorithm)),
      openSource: (meta, signal) => options.openSource(meta, signal),
      traffic: new FetchTraffic(clock),
      buffers: new StagingBuffers(),
      missBytes: options.missBytes ?? MISS_BYTES,
      sources: this.sources,
      totalOf: (id) => this.#historyOf(id).total,
      evicts: () => this.#needs !== undefined,
      filled: (bytes) => this.space.filled(bytes),
      makeRoom: () => this.space.makeRoom(),
      claimRoom: (bytes, evict) => this.space.claim(bytes, evict),
      disclaimRoom: (bytes) => this.space.disclaim(bytes),
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
      const known = new Map<string, IndexedBlob>();
      const index = await readBlobIndex(fs, join(dataDir, indexName), (level, message) => options.log(level, message));
      for (const id of await fs.readdir(dir)) {
        if (id.endsWith(TOMBSTONE) || id.endsWith(MAKING)) await removeBlobDirectory(fs, join(dir, id));
        if (!isId(id)) continue;
        const indexed = index.get(id);
        if (indexed !== undefined) {
          known.set(id, indexed);
          continue;
        }
        try {
          const meta = await readBlobMeta(fs, join(dir, id));
          known.set(id, { meta, ...noHistory(), diskBytes: await diskBytesOf(fs, join(dir, id)) });
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

  /** What a blob is; undefined when there is none of this id. */
  metaOf(id: string): BlobMeta | undefined {
    return this.#known.get(id)?.meta;
  }

  list(): BlobMeta[] {
    return Array.from(this.#known.values(), ({ meta }) => meta);
  }

  /** What is needed is known from now on: what is not may be evicted. To be called before a blob is opened. */
  setNeeds(needs: BlobNeeds): void {
    this.#needs = needs;
  }

  /** Bytes that all cache files take on disk, those under way too; of closed ones as they were when they were closed. */
  get diskBytes(): number {
    let bytes = this.#closedBytes + this.#makingBytes;
    for (const blob of this.opened()) bytes += onDisk(blob);
    return bytes;
  }

  #historyOf(id: string): BlobHistory {
    return this.#known.get(id) ?? noHistory();
  }

  /** What is to be seen of a blob. Opens nothing. @returns undefined when there is none; it may be on its way out */
  async look(id: string): Promise<BlobLook | undefined> {
    await this.#leaving.get(id);
    const known = this.#known.get(id);
    if (known === undefined) return undefined;
    const entry = this.#open.get(id);
    const blob = entry?.opened;
    if (entry === undefined || blob === undefined) {
      return lookAtFiles(this.#options.fs, join(this.#dir, id), known).catch((error: unknown) => {
        if (this.#known.has(id)) throw error;
        return undefined; // it was removed meanwhile
      });
    }
    const { readyBytes, pins, stats, check, sourceTrouble } = blob;
    const diskBytes = onDisk(blob);
    const { meta, usedAt } = known;
    const trouble = check?.trouble ?? sourceTrouble;
    const verified = check === undefined ? null : check.state === "verified";
    return { meta, readyBytes, diskBytes, pins, users: entry.users, stats, usedAt, trouble, verified };
  }

  /**
   * The blob that caches this object already. Never one whose identity is weak: it may be something else by now.
   * @param imageFormat a chain, or the beginning of one when the rest isn't known
   * @param uncached whether it shall be one of which nothing is kept
   */
  find(
    url: string,
    imageFormat: string,
    identity: Identity,
    uncached = false,
    backing: readonly BackingMeta[] = [],
  ): BlobMeta | undefined {
    if (!identity.strong) return undefined;
    return this.list().find(
      (meta) =>
        meta.url === url &&
        isSameBacking(meta.backing ?? [], backing) &&
        (meta.uncached === true) === uncached &&
        (meta.imageFormat === imageFormat || meta.imageFormat.startsWith(`${imageFormat}+`)) &&
        meta.identity.strong &&
        isSameIdentity(meta.identity, identity),
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
    const { url, imageFormat, identity, size, unitBytes = usualUnit(size) } = options;
    const { guarded = false, uncached = false, backing = [] } = options;
    if (!isUnit(unitBytes)) throw new RangeError("a unit must be a power of two, 4096 to 8 MiB");
    const { fs, clock } = this.#options;
    const id = this.#options.randomBytes(16).toString("hex");
    const createdAt = clock.wallTime();
    const flags = {
      ...(backing.length > 0 ? { backing } : {}),
      ...(guarded ? { guarded } : {}),
      ...(uncached ? { uncached } : {}),
    };
    const meta: BlobMeta = { id, url, imageFormat, identity, size, unitBytes, createdAt, ...flags };
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
    this.#known.set(id, { meta, usedAt: this.#wallClock(), diskBytes: 0, total: blob.stats });
    this.#indexLater();
    if (uncached) {
      await blob.close();
      blob = await this.#openUncached(meta);
    }
    if (reader !== undefined) blob.attach(reader);
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
    const describe = (size: number): BlobMeta => ({
      id,
      url,
      imageFormat: about.imageFormat(),
      identity,
      size,
      unitBytes: usualUnit(size),
      createdAt: clock.wallTime(),
      ...(guarded ? { guarded } : {}),
      unpacked: true,
    });
    let taken = 0;
    const took = (bytes: number): void => {
      taken += bytes;
      this.#makingBytes += bytes;
    };
    const room = (bytes: number): Promise<void> => this.space.demandRoom(bytes);
    try {
      await this.#makeWhole(id, (dir) => makeUnpackedFiles({ ...unpacking, fs, dir, describe, room, took }));
    } finally {
      took(-taken);
    }
    return this.open(id);
  }

  /**
   * Makes a new blob, complete and durable, from a file that shares its space with the object, and opens it.
   * @param about of a raw image
   * @param clone makes that file at the path it gets; false: it can't be made
   * @returns undefined when it could not be made
   */
  async createCloned(
    about: Pick<CreateBlobOptions, "url" | "identity" | "guarded">,
    clone: (path: string) => Promise<boolean>,
  ): Promise<CachedBlob | undefined> {
    const { fs, clock } = this.#options;
    const { url, identity, guarded = false } = about;
    const id = this.#options.randomBytes(16).toString("hex");
    const flags = guarded ? { guarded } : {};
    const { size } = identity;
    const createdAt = clock.wallTime();
    const meta = { id, url, imageFormat: "raw", identity, size, unitBytes: usualUnit(size), createdAt, ...flags };
    const made = await this.#makeWhole(id, (dir) => makeClonedFiles(fs, dir, meta, clone));
    return made ? this.open(id) : undefined;
  }

  /**
   * @param make fills the directory, durably; undefined: it could not, and nothing is to stay
   * @returns whether there is a blob now
   */
  async #makeWhole(id: string, make: (dir: string) => Promise<BlobMeta | undefined>): Promise<boolean> {
    const { fs } = this.#options;
    const dir = join(this.#dir, `${id}${MAKING}`);
    await fs.mkdir(dir);
    let meta: BlobMeta | undefined;
    try {
      meta = await make(dir);
      if (meta === undefined) {
        await removeBlobDirectory(fs, dir);
        return false;
      }
      await fs.rename(dir, join(this.#dir, id));
      await fs.syncDirectory(this.#dir);
    } catch (error) {
      await removeBlobDirectory(fs, dir).catch(() => undefined); // the next start tries again
      throw error;
    }
    this.#known.set(id, { meta, ...noHistory(), usedAt: this.#wallClock() });
    this.#indexLater();
    return true;
  }

  /** The same object for everybody, opened when it is not yet. @throws UllageError `not-found`; see `CachedBlob.open` */
  async open(id: string): Promise<CachedBlob> {
    // Whoever has just found it begins to use it in the same turn, before anybody can throw it out.
    if (this.#leaving.has(id)) await this.#leaving.get(id);
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

  /** In its directory is only what it is; its bytes are in memory for a while, and then fetched again. */
  async #openUncached(meta: BlobMeta): Promise<CachedBlob> {
    let blob: CachedBlob | undefined;
    let thinning = false;
    const thin = async (): Promise<void> => {
      if (thinning || blob === undefined || blob.file.allocated() <= UNCACHED_BYTES) return;
      thinning = true;
      await blob.evict(blob.file.allocated() - UNCACHED_BYTES / 2).catch(() => undefined); // memory: it does not fail
      thinning = false;
    };
    const environment = {
      ...this.#environment,
      fs: memoryFiles,
      evicts: () => true,
      filled: () => void thin(),
      claimRoom: () => Promise.resolve(),
      disclaimRoom: () => undefined,
    };
    blob = await CachedBlob.create(environment, join(this.#dir, meta.id), meta);
    return blob;
  }

  #opening(id: string): OpenBlob {
    const { meta } = this.#known.get(id)!;
    const entry: OpenBlob = {
      users: 0,
      blob: meta.uncached === true ? this.#openUncached(meta) : CachedBlob.open(this.#environment, join(this.#dir, id)),
      opened: undefined,
    };
    this.#open.set(id, entry);
    entry.blob.then(
      (blob) => {
        entry.opened = blob;
        this.#closedBytes -= this.#historyOf(id).diskBytes;
        this.#remember(id, 0);
      },
      () => this.#open.delete(id),
    );
    return entry;
  }

  /** @param diskBytes that its cache file takes while it is closed; 0 while it is open */
  #remember(id: string, diskBytes: number): void {
    const known = this.#known.get(id);
    if (known === undefined) return;
    known.usedAt = this.#wallClock();
    known.diskBytes = diskBytes;
    this.#closedBytes += diskBytes;
    this.#indexLater();
  }

  #wallClock(): number {
    return Date.parse(this.#options.clock.wallTime());
  }

  /** Never rejects: the index is a convenience. */
  #indexLater(): void {
    const { clock } = this.#options;
    this.#indexing ??= clock
      .sleep(INDEX_DELAY_MS, this.#closing.signal)
      .catch(() => undefined) // closing, which writes it
      .then(async () => {
        this.#indexing = undefined;
        if (!this.#closing.signal.aborted) await this.#writeIndex();
      });
  }

  async #writeIndex(): Promise<void> {
    const { fs } = this.#options;
    const blobs = Array.from(this.#known.values(), (known) => {
      const open = this.#open.get(known.meta.id)?.opened;
      return open === undefined ? known : { ...known, diskBytes: onDisk(open) };
    });
    await writeBlobIndex(fs, this.#indexPath, blobs).catch((error: unknown) => {
      this.#options.log("warn", `the index of the cache could not be written: ${describeError(error)}`);
    });
  }

  /** The blob, if somebody uses it. */
  ifOpen(id: string): CachedBlob | undefined {
    return this.#open.get(id)?.opened;
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
    await this.#leave(id, () => this.#closeBlob(id, entry));
  }

  async #closeBlob(id: string, entry: OpenBlob): Promise<void> {
    const blob = await entry.blob;
    const diskBytes = onDisk(blob);
    await blob.close();
    this.#remember(id, diskBytes);
  }

  /**
   * Removes a blob that no volume refers to. Its directory goes as a whole, under another name first, so that an
   * interrupted removal leaves nothing that looks like a blob (durability rule 13).
   * @throws UllageError `in-use` when it is open or pinned
   */
  async remove(id: string): Promise<void> {
    await this.#leaving.get(id);
    if (this.#open.has(id)) throw new UllageError("in-use", `blob ${id} is in use`);
    const pins = await this.#pinsOf(id);
    if (pins.length > 0) throw new UllageError("in-use", `blob ${id} is needed by detached volumes ${pins.join(", ")}`);
    if (this.#open.has(id)) throw new UllageError("in-use", `blob ${id} is in use`); // since a moment ago
    this.#closedBytes -= this.#historyOf(id).diskBytes;
    this.#known.delete(id);
    this.#indexLater();
    await this.#leave(id, () => this.#removeFiles(id));
    this.#options.onRemoved?.(id);
  }

  #pinsOf(id: string): Promise<string[]> {
    return this.#options.fs.readdir(join(this.#dir, id, "pins"));
  }

  // ---- eviction ----------------------------------------------------------------------------------------------------

  /** Closed, and needed by nobody; least recently used first. */
  #unneeded(): string[] {
    const needs = this.#needs;
    if (needs === undefined) return [];
    const needed = needs.needed();
    return [...this.#known.values()]
      .filter(({ meta: { id } }) => !this.#open.has(id) && !this.#leaving.has(id) && !needed.has(id))
      .sort((a, b) => a.usedAt - b.usedAt)
      .map(({ meta: { id } }) => id);
  }

  /**
   * Throws out a blob, or as much of it as volumes can do without.
   * @returns bytes freed; undefined when none of it may go
   */
  async evict(id: string): Promise<number | undefined> {
    const thinnable = this.#thinnable().find((blob) => blob.id === id);
    if (thinnable !== undefined) return thinnable.evict(this.#known.get(id)!.meta.size);
    const freed = await this.#evictBlob(id);
    return this.#known.has(id) ? undefined : freed;
  }

  /** Of volumes that can do without a part of it: those that are closed, least recently used first, then the open ones. */
  #thinnable(): { id: string; evict(bytes: number): Promise<number> }[] {
    const needed = this.#needs?.needed();
    const isOpen = ({ meta }: IndexedBlob): boolean => this.#open.has(meta.id);
    return [...this.#known.values()]
      .filter(({ meta }) => needed?.get(meta.id) === true && meta.uncached !== true && meta.unpacked !== true)
      .sort((a, b) => Number(isOpen(a)) - Number(isOpen(b)) || a.usedAt - b.usedAt)
      .map(({ meta: { id } }) => ({ id, evict: (bytes) => this.#thin(id, bytes) }));
  }

  /** @returns bytes freed; 0 when nothing of it may go */
  async #thin(id: string, bytes: number): Promise<number> {
    const { usedAt } = this.#historyOf(id);
    const wasOpen = this.#open.has(id);
    if (!wasOpen && (await this.#pinsOf(id)).length > 0) return 0;
    const blob = await this.open(id).catch((error: unknown) => {
      this.#options.log("warn", `blob ${id} can't be made smaller: ${describeError(error)}`);
      return undefined;
    });
    if (blob === undefined) return 0;
    try {
      return blob.mayBeEvicted ? await blob.evict(bytes) : 0;
    } finally {
      await this.release(id);
      if (!wasOpen && !this.#open.has(id)) this.#historyOf(id).usedAt = usedAt; // nobody has used it
    }
  }

  /** @returns bytes freed; 0 when somebody has begun to need it, or pinned it */
  async #evictBlob(id: string): Promise<number> {
    if (this.#open.has(id) || this.#needs?.needed().has(id) !== false) return 0;
    const look = await this.look(id);
    try {
      await this.remove(id);
    } catch (error) {
      if (error instanceof UllageError && error.code === "in-use") return 0;
      throw error;
    }
    this.#options.log("info", `blob ${id} was evicted: no volume needs it`);
    return look?.diskBytes ?? 0;
  }

  /** Closes everything, saving the range maps. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#closing.abort(new UllageError("closed", "the cache is being closed"));
    const open = [...this.#open];
    this.#open.clear();
    await Promise.all(open.map(([id, entry]) => this.#leave(id, () => this.#closeBlob(id, entry))));
    await Promise.all(this.#leaving.values());
    await this.#indexing;
    await this.#writeIndex();
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

/** Bytes that an open blob takes on disk. */
const onDisk = ({ meta, file }: CachedBlob): number => (meta.uncached === true ? 0 : file.allocated());
