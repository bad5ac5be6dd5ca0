import { join } from "node:path";
import type { ReadOptions, Sink } from "../backend/backend.ts";
import { schemeOf } from "../backend/source-address.ts";
import { SourceBusyError } from "../backend/source-errors.ts";
import type { Clock } from "../base/clock.ts";
import { IoError, SourceError, UllageError, describeError, errnoOf } from "../base/errors.ts";
import type { DirectoryLock, File, FileSystem } from "../base/file-system.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import type { ImageReader } from "../image/image-format.ts";
import { createBlobFiles, dataFileBytes, loadBlobFiles, type BlobFiles } from "./blob-files.ts";
import type { BlobMeta } from "./blob-meta.ts";
import { type Blob, type BlobStats, type FetchOptions, keptByUser } from "./blob.ts";
import { CacheWriter, type StagingBuffers } from "./cache-writer.ts";
import { ColdUnits, type UnitRun } from "./cold-units.ts";
import { DigestContentCheck, type CheckState, type CheckSurroundings } from "./content-check.ts";
import { overwriteFile, replaceFile } from "./durable-file.ts";
import { FetchLanes, type FetchTraffic, type Lane } from "./fetch-lanes.ts";
import { FetchQueue, type Transfer } from "./fetch-queue.ts";
import { KnownZeros } from "./known-zeros.ts";
import { RangeMap } from "./range-map.ts";
import { encodeRangeMap } from "./range-map-file.ts";
import { ReadaheadFetcher } from "./readahead-fetcher.ts";
import { BufferReceiver, type Receiver } from "./receiver.ts";
import { SharedReadiness } from "./shared-readiness.ts";
import type { SourceTraffic, SourceTraffics } from "./source-traffic.ts";
import { type SourceTrouble, SourceTroubles } from "./source-trouble.ts";

/*
 * A blob in a directory of its own: `data` (sparse, full size), `map` (which units are durably ready), `meta.json`
 * (what it is), `pins/<volume id>` (who can't do without it). Three sets of units, each containing the next:
 *
 *     ready     bytes are in the cache file, perhaps only in the page cache; may be read
 *     synced    an fdatasync that began after they were there has succeeded; never fetched or written again
 *     durable   so says the map file
 *
 * A sync copies `ready`, syncs the data, adds the copy to `synced`, and writes the copy as the map (durability rule 12).
 * When the data sync fails, the kernel may have dropped dirty pages and marked them clean: everything that is not in
 * `synced` stops being ready and is fetched and written anew, and so is what was on its way meanwhile. Therefore a
 * reader must look at `losses` before and after its read of `file`.
 */

/** The map file lags at most this much behind ... */
const PERSIST_AFTER_MS = 2000;
/**
 * ... or this many bytes that came in the background, whatever comes first (plus the time that a sync takes). Where somebody
 * waits for what comes, the disk is his meanwhile, the more so as it may be the one that the source is read from.
 */
const PERSIST_AFTER_BYTES = 64 * 1024 * 1024;

/** Of what is streamed, room is asked for in portions of so much. */
const ROOM_BYTES = 1024 * 1024;

/** What a blob needs from its surroundings; shared by all blobs of a cache. */
export interface BlobEnvironment extends CheckSurroundings {
  readonly fs: FileSystem;
  readonly clock: Clock;
  readonly traffic: FetchTraffic;
  readonly buffers: StagingBuffers;
  /** See `BlobCacheOptions.missBytes`. */
  readonly missBytes: number;
  readonly sources: SourceTraffics;
  /** What was asked for a blob's sake so far; goes on being counted in there. */
  totalOf(id: string): BlobStats;
  /** Whether there may be a need to free some of a blob's space. */
  evicts(): boolean;
  /** So many bytes came into the cache. */
  filled(bytes: number): void;
  /** For bytes that can be done without, until they are there. @throws IoError ENOSPC */
  claimRoom(bytes: number, evict: boolean): Promise<void>;
  disclaimRoom(bytes: number): void;
  /** A request found the disk full. @returns whether it is worth while to try again */
  makeRoom(): Promise<boolean>;
  /** A reader of exactly the object that `meta.identity` pins. Called at the first miss, and again after a failure. */
  openSource(meta: BlobMeta, signal: AbortSignal): Promise<ImageReader>;
}

/** Hears what becomes of a blob's units. */
export interface ReadinessWatcher {
  /** Units [first, end) are ready now. */
  ready(first: number, end: number): void;
  /** Some that were ready are not any more: look at all of them. */
  lost(): void;
}

export class CachedBlob implements Blob {
  readonly meta: BlobMeta;
  readonly file: File;
  readonly stats: BlobStats;
  readonly check: DigestContentCheck | undefined;
  readonly zeros: KnownZeros;
  readonly #troubles = new SourceTroubles();
  readonly #environment: BlobEnvironment;
  readonly #traffic: SourceTraffic;
  readonly #dir: string;
  readonly #lock: DirectoryLock;
  readonly #inode: number;
  readonly #pins: Set<string>;
  readonly #map: RangeMap;
  readonly #synced: RangeMap;
  readonly #durable: RangeMap;
  readonly #queue: FetchQueue;
  readonly #readahead: ReadaheadFetcher;
  readonly #closing = new AbortController();
  #reader: Promise<ImageReader> | undefined;
  /** Undefined: nothing of it is ever evicted. */
  readonly #cold: ColdUnits | undefined;
  /** Where readiness lies once other processes look at it. */
  #shared: SharedReadiness | undefined;
  readonly #watchers = new Set<ReadinessWatcher>();
  /** Counts failed data syncs: bytes written before one are not to be trusted after it. */
  #failedSyncs = 0;
  /** Counts evictions, for the same reason. */
  #evictions = 0;
  /** Bytes of the background that no sync covers yet. */
  #unsyncedBehind = 0;
  #persisting = false;
  #persistFailure = "";
  /** Syncs and evictions, one after the other: both write the map. */
  #mapTurn: Promise<void> = Promise.resolve();
  #syncWaiting: Promise<void> | undefined;
  #closed: Promise<void> | undefined;

  private constructor(environment: BlobEnvironment, dir: string, lock: DirectoryLock, files: BlobFiles) {
    const { meta, data, durableBits, pins, verified } = files;
    this.meta = meta;
    this.stats = environment.totalOf(meta.id);
    this.file = data;
    this.#environment = environment;
    this.#traffic = environment.sources.of(meta.url);
    this.#dir = dir;
    this.#lock = lock;
    this.#inode = data.binding().inode;
    this.#pins = new Set(pins);
    this.#map = new RangeMap(meta.size, meta.unitBytes, durableBits?.slice());
    this.#synced = new RangeMap(meta.size, meta.unitBytes, durableBits?.slice());
    this.#durable = new RangeMap(meta.size, meta.unitBytes, durableBits);
    this.#readahead = new ReadaheadFetcher(
      meta,
      environment.missBytes,
      (offset, length) => this.#map.isReady(offset, length),
      (offset, length) => this.fetch(offset, length, { soon: true, optional: true }),
    );
    this.#cold = environment.evicts() ? new ColdUnits(this.#map) : undefined;
    this.#queue = new FetchQueue({
      map: this.#map,
      lanes: new FetchLanes(environment.traffic, schemeOf(meta.url) === undefined),
      traffic: environment.traffic,
      missBytes: environment.missBytes,
      transfer: (request) => this.#transfer(request),
    });
    this.zeros = new KnownZeros({
      meta,
      clock: environment.clock,
      closing: this.#closing.signal,
      file: this.file,
      isComplete: () => this.#map.missing === 0,
      // An eviction takes its units from the map before it punches anything; what has a digest may be discarded before it is compared.
      isSettled: () => this.#durable.missing === 0 && (this.check === undefined || this.check.state === "verified"),
      reader: () => this.#source(),
    });
    this.check = this.#checkOf(verified);
    this.check?.start();
  }

  #checkOf(verified: boolean): DigestContentCheck | undefined {
    const losses = (): number => this.losses;
    const checked = {
      meta: this.meta,
      file: this.file,
      get losses() {
        return losses();
      },
      isComplete: () => this.#durable.missing === 0,
      sync: () => this.sync(),
      isCountedOn: () => [...this.#pins].some((pin) => pin !== keptByUser),
      discard: () => this.#discard(),
      entered: (state: CheckState) => {
        if (this.#shared !== undefined) this.#shared.check = state;
      },
      inMapTurn: (work: () => Promise<void>) => this.#inMapTurn(work),
    };
    return DigestContentCheck.of(this.#environment, checked, { dir: this.#dir, inode: this.#inode }, verified);
  }

  /**
   * Makes the directory of a new blob, durably: nothing is found there after a crash, or all of it. The parent
   * directory's entry is the caller's to sync.
   */
  static async create(environment: BlobEnvironment, dir: string, meta: BlobMeta): Promise<CachedBlob> {
    await environment.fs.mkdir(dir);
    const lock = await environment.fs.lockDirectory(dir);
    try {
      return new CachedBlob(environment, dir, lock, await createBlobFiles(environment.fs, dir, meta));
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  /**
   * Opens a blob from disk alone; its source may be unreachable.
   * A range map that can't be believed is put aside, and nothing is ready then.
   * @throws CorruptionError when meta.json is damaged, UllageError `locked` or `newer-format`, IoError
   */
  static async open(environment: BlobEnvironment, dir: string): Promise<CachedBlob> {
    const lock = await environment.fs.lockDirectory(dir);
    try {
      return new CachedBlob(environment, dir, lock, await loadBlobFiles(environment, dir));
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  get id(): string {
    return this.meta.id;
  }

  get size(): number {
    return this.meta.size;
  }

  get unitBytes(): number {
    return this.meta.unitBytes;
  }

  get readyBytes(): number {
    return this.#map.readyBytes;
  }

  /** Ids of the volumes that pinned it. */
  get pins(): string[] {
    return [...this.#pins];
  }

  get losses(): number {
    return this.#failedSyncs + this.#evictions;
  }

  isReady(offset: number, length: number): boolean {
    return this.#map.isReady(offset, length);
  }

  readyRun(offset: number, length: number): number {
    return this.#map.readyRun(offset, length);
  }

  isDurable(offset: number, length: number): boolean {
    return this.#durable.isReady(offset, length);
  }

  async fetch(offset: number, length: number, options: FetchOptions = {}): Promise<void> {
    this.check?.demandTrust();
    const { background = false, soon = false, optional = false, signal } = options;
    const lane = background ? "background" : soon ? "readahead" : "foreground";
    if (!optional || this.#map.isReady(offset, length)) return this.#queue.fetch(offset, length, lane, signal);
    await this.#environment.claimRoom(length, lane !== "background");
    try {
      await this.#queue.fetch(offset, length, lane, signal);
    } finally {
      this.#environment.disclaimRoom(length);
    }
  }

  async readThrough(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    this.check?.demandTrust();
    if (this.zeros.has(offset) && this.zeros.run(offset, length) === length) {
      buffer.bytes.fill(0, at, at + length);
      return;
    }
    const { traffic } = this.#environment;
    traffic.started();
    try {
      const source = this.#source();
      await this.#ask(
        "foreground",
        this.#closing.signal,
        new BufferReceiver(buffer, at, length),
        async (sink, options) => {
          await (await source).read(offset, length, sink, options);
        },
      );
    } finally {
      traffic.ended();
    }
  }

  noteRead(offset: number, length: number): void {
    this.#cold?.noteRead(offset, length);
    if (this.#map.missing > 0) this.#readahead.note(offset, length);
  }

  /** Uses `reader` for what is missing, instead of opening the source again. */
  attach(reader: ImageReader): void {
    this.#reader = Promise.resolve(this.#checkReader(reader));
  }

  /**
   * Fills the whole blob from one pass over the object, for sources that can't serve ranges. Nothing becomes ready
   * before the last byte is there and `stream` has resolved; reads that need the source wait for that.
   * @param stream hands all bytes of the blob, in order, to the sink
   * @param options.room asked before so many bytes more are received; ends it by throwing
   * @param options.onProgress called with the bytes received so far
   */
  async fillByStreaming(
    stream: (sink: Sink, options: ReadOptions) => Promise<void>,
    options: {
      signal?: AbortSignal;
      room?: (bytes: number) => Promise<void>;
      onProgress?: (bytes: number) => void;
    } = {},
  ): Promise<void> {
    const { room, onProgress } = options;
    let received = 0;
    let granted = 0;
    await this.#queue.fetchWhole(async (request) => {
      try {
        return await this.#receive(request, (sink, readOptions) =>
          stream(async (chunk) => {
            received += chunk.length;
            for (; granted < received; granted += ROOM_BYTES) await room?.(ROOM_BYTES);
            onProgress?.(received);
            await sink(chunk);
          }, readOptions),
        );
      } catch (error) {
        await this.#freeMissing();
        throw error;
      }
    }, options.signal);
  }

  /** Nothing of what a stream brought counts when it ends too early: it should not take space either. Never rejects. */
  async #freeMissing(): Promise<void> {
    const map = this.#map;
    for (let first = map.nextMissing(0, map.units); first < map.units;) {
      const offset = first * this.unitBytes;
      const length = map.readyRun(offset, this.size - offset);
      const bytes = offset + length === this.size ? dataFileBytes(this.meta) - offset : length;
      await this.file.punch(offset, bytes).catch(() => undefined); // what fails here is written over by the next attempt
      first = map.nextMissing(map.unitEnd(offset, length), map.units);
    }
  }

  // ---- bytes from the source ---------------------------------------------------------------------------------------

  /** A disk that is full is met once more after something was evicted, if somebody waits for the bytes. */
  async #transfer(request: Transfer): Promise<boolean> {
    try {
      return await this.#transferOnce(request);
    } catch (error) {
      const full = error instanceof IoError && error.errno === "ENOSPC";
      if (!full || request.lane !== "foreground" || !(await this.#environment.makeRoom())) throw error;
      return this.#transferOnce(request);
    }
  }

  async #transferOnce(request: Transfer): Promise<boolean> {
    const known = await this.#skipZeros(request.first, this.#knownZeros(request.first));
    if (known === undefined) return false;
    if (known >= request.end) return true;
    const source = this.#source();
    const first = await this.#skipZeros(known, await this.#askForZeros(known, source, request));
    if (first === undefined) return false;
    if (first >= request.end) return true;
    const offset = first * this.unitBytes;
    const length = this.#map.bytesOf(first, request.end);
    const { end, lane, signal, hurry } = request;
    return this.#receive({ first, end, lane, signal, hurry }, async (sink, options) => {
      await (await source).read(offset, length, sink, options);
    });
  }

  /** How many bytes from a unit on are known to be zeros: what was told as zeros can be read without the source. */
  #knownZeros(first: number): number {
    const offset = first * this.unitBytes;
    return this.zeros.has(offset) ? this.zeros.run(offset, this.size - offset) : 0;
  }

  /** How many bytes from a unit on the image's tables say are zeros, beyond what is asked for as well. */
  async #askForZeros(first: number, source: Promise<ImageReader>, { signal, lane }: Transfer): Promise<number> {
    const reader = await source.catch(() => undefined); // the read that follows meets the failure, and counts it
    const offset = first * this.unitBytes;
    const options = { signal, background: lane !== "foreground" };
    return (await reader?.zeroRun?.(offset, this.size - offset, options).catch(() => 0)) ?? 0; // likewise
  }

  /**
   * Zeros become ready without being read or written, however much it is. It is punched all the same, for a request that
   * failed may have left something there, in this life or in an earlier one; a flight that brings some of it meanwhile brings
   * zeros, too. A sync that covers the units covers the holes (durability rule 12).
   * @param zeros bytes @returns the first unit that is not all zeros; undefined when a sync failed meanwhile
   */
  async #skipZeros(first: number, zeros: number): Promise<number | undefined> {
    const offset = first * this.unitBytes;
    const end = offset + zeros === this.size ? this.#map.units : Math.floor((offset + zeros) / this.unitBytes);
    if (end <= first) return first;
    this.zeros.note(first, end);
    const failedSyncs = this.#failedSyncs;
    // The file is longer than the blob: behind its end, up to the next block, are zeros as well.
    const bytes = end === this.#map.units ? dataFileBytes(this.meta) - offset : end * this.unitBytes - offset;
    if (!(await this.file.punch(offset, bytes))) return first;
    if (failedSyncs !== this.#failedSyncs) return undefined;
    this.#becameReady(first, end);
    this.#noteUnsynced();
    return end;
  }

  /** Units [first, end). */
  #becameReady(first: number, end: number): void {
    this.#map.addRun(first, end);
    if (this.#shared !== undefined) this.#shared.readyBytes = this.#map.readyBytes;
    for (const watcher of this.#watchers) watcher.ready(first, end);
  }

  /** @returns false when a sync of the data failed meanwhile: some of the bytes may be lost */
  async #receive(request: Transfer, read: (sink: Sink, options: ReadOptions) => Promise<void>): Promise<boolean> {
    const failedSyncs = this.#failedSyncs;
    const { lane, signal, hurry } = request;
    const writer = new CacheWriter({
      file: this.file,
      map: this.#map,
      buffers: this.#environment.buffers,
      offset: request.first * this.unitBytes,
      length: this.#map.bytesOf(request.first, request.end),
    });
    await this.#ask(lane, signal, writer, (sink, options) => read(sink, { ...options, hurry }));
    if (failedSyncs !== this.#failedSyncs) return false;
    this.#becameReady(request.first, request.end);
    if (lane === "background") this.#unsyncedBehind += writer.received;
    this.#noteUnsynced();
    this.#environment.filled(writer.received);
    return true;
  }

  /** Asks the source for what `receiver` takes, and counts what came of it. */
  async #ask(
    lane: Lane,
    signal: AbortSignal,
    receiver: Receiver,
    read: (sink: Sink, options: ReadOptions) => Promise<void>,
  ): Promise<void> {
    const background = lane !== "foreground";
    const { clock } = this.#environment;
    const began = clock.now();
    const counted = this.#traffic.lane(background);
    counted.requests++;
    this.stats.requests++;
    let failure: { error: unknown } | undefined;
    try {
      await read(receiver.sink, { signal, background, onRetry: (error) => this.#retried(error) });
      await receiver.finish();
    } catch (error) {
      failure = { error };
    }
    // What the cache file said goes before how the source's reader may have wrapped it.
    const writeError = await receiver.close();
    this.stats[`${lane}Bytes`] += receiver.received;
    counted.bytes += receiver.received;
    if (failure !== undefined) {
      if (!signal.aborted) this.stats.errors++;
      if (!signal.aborted && writeError === undefined) this.#noteFailure(failure.error);
      throw writeError ?? failure.error;
    }
    counted.latency.observe(clock.now() - began);
    this.#environment.traffic.took(lane, clock.now() - began);
    this.#troubles.note(undefined);
  }

  #retried(error: SourceError): void {
    this.#traffic.retries++;
    if (error instanceof SourceBusyError) this.#environment.traffic.throttled();
    this.#troubles.note({ error, final: false, at: this.#environment.clock.wallTime() });
  }

  #noteFailure(error: unknown): void {
    if (!(error instanceof SourceError)) return;
    this.#traffic.failed(error);
    this.#troubles.note({ error, final: true, at: this.#environment.clock.wallTime() });
  }

  #source(): Promise<ImageReader> {
    this.#reader ??= this.#environment
      .openSource(this.meta, this.#closing.signal)
      .then((reader) => this.#checkReader(reader))
      .catch((error: unknown) => {
        this.#reader = undefined; // the next miss tries again
        throw this.#unopened(error);
      });
    return this.#reader;
  }

  /** Damage that is met here is not of one place: nothing of the image can be read. */
  #unopened(error: unknown): unknown {
    if (!(error instanceof SourceError && error.code === "image-damaged")) return error;
    return new SourceError("source-changed", `${this.meta.url} can't be opened any more`, {
      transient: false,
      hint: "what was fetched before stays readable; see whether its server, or something on the way, changes bytes",
      cause: error,
    });
  }

  #checkReader(reader: ImageReader): ImageReader {
    if (reader.size === this.size) return reader;
    throw new SourceError("source-changed", `${this.meta.url} has ${reader.size} bytes now, not ${this.size}`, {
      transient: false,
      hint: "make a new volume from it; what was fetched before stays readable",
    });
  }

  // ---- other processes ---------------------------------------------------------------------------------------------

  /**
   * Readiness in memory that other processes can see. Whoever has it may have the cache file too: from here on no byte
   * of that is ever taken away (durability rule 13).
   * @throws UllageError `not-cached`, Error with `code`
   */
  share(): SharedReadiness {
    if (this.meta.uncached === true) {
      throw new UllageError("not-cached", `nothing of blob ${this.id} is kept: there is nothing to share`, {
        hint: "use a volume or a blob with a cache",
      });
    }
    if (this.#shared !== undefined) return this.#shared;
    const shared = SharedReadiness.create(this.#map.units, { zeros: true });
    this.#map.moveTo(shared.ready);
    this.#durable.moveTo(shared.durable);
    if (shared.zeros !== undefined) this.zeros.moveTo(shared.zeros);
    shared.readyBytes = this.#map.readyBytes;
    shared.check = this.check?.state;
    this.#shared = shared;
    return shared;
  }

  /** Whether another process may have the cache file. */
  get isShared(): boolean {
    return this.#shared !== undefined;
  }

  /** Undefined: the last request was answered well, or none was made yet. */
  get sourceTrouble(): SourceTrouble | undefined {
    return this.#troubles.last;
  }

  /** See `SourceTroubles.listen`. */
  onTrouble(listener: () => void): () => void {
    return this.#troubles.listen(listener);
  }

  /** @returns what ends it */
  watch(watcher: ReadinessWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  // ---- durability --------------------------------------------------------------------------------------------------

  sync(): Promise<void> {
    if (this.#syncWaiting !== undefined) return this.#syncWaiting;
    // A round that is running took its copy of the bits before this call: only the next one will do.
    const round = this.#inMapTurn(() => {
      this.#syncWaiting = undefined;
      return this.#syncRound();
    });
    this.#syncWaiting = round;
    return round;
  }

  #inMapTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#mapTurn.catch(() => undefined).then(work);
    this.#mapTurn = turn;
    return turn;
  }

  async #syncRound(): Promise<void> {
    if (this.#durable.missing === this.#map.missing) return;
    const bits = this.#map.copyBits();
    this.#unsyncedBehind = 0;
    try {
      await this.file.datasync();
    } catch (error) {
      this.#failedSyncs++;
      const lost = this.#takeBack();
      this.#environment.log(
        "error",
        `blob ${this.id}: ${describeError(error)}; ${lost} units of ${this.unitBytes} bytes will be fetched again`,
      );
      throw error;
    }
    this.#synced.addAll(bits);
    await this.#writeMap(bits);
    this.#durable.addAll(bits);
    this.check?.start();
  }

  /** @returns how many units are not ready any more */
  #takeBack(): number {
    const shared = this.#shared;
    const work = (): number => this.#map.keepOnly(this.#synced);
    const lost = shared === undefined ? work() : shared.takeBack(work);
    if (shared !== undefined) shared.readyBytes = this.#map.readyBytes;
    for (const watcher of this.#watchers) watcher.lost();
    return lost;
  }

  #noteUnsynced(): void {
    if (this.#unsyncedBehind >= PERSIST_AFTER_BYTES && this.#syncWaiting === undefined) void this.#persist();
    if (!this.#persisting) void this.#persistLater();
  }

  /** Runs while the map file lags behind. */
  async #persistLater(): Promise<void> {
    this.#persisting = true;
    while (this.#durable.missing !== this.#map.missing) {
      try {
        await this.#environment.clock.sleep(PERSIST_AFTER_MS, this.#closing.signal);
      } catch {
        break; // closing, which syncs
      }
      await this.#persist();
    }
    this.#persisting = false;
  }

  /**
   * Nothing is ready any more, for the bytes are not those of the source's digest. A crash before the map says so
   * leaves a blob that is complete and has no mark: it is compared again.
   */
  async #discard(): Promise<void> {
    await this.#inMapTurn(async () => {
      await this.#queue.holdAll(async () => {
        this.#evictions++;
        this.#synced.clear();
        this.#takeBack();
        this.#durable.clear();
        await this.#writeMap(this.#durable.copyBits());
      });
    });
  }

  // ---- eviction ----------------------------------------------------------------------------------------------------

  /**
   * Whether clean ranges may be taken away: nobody was promised them, no other process may be reading them, and they can
   * be fetched again.
   */
  get mayBeEvicted(): boolean {
    if (this.meta.unpacked === true) return false;
    return this.#cold !== undefined && this.#pins.size === 0 && this.#shared === undefined;
  }

  /**
   * Takes back about so many bytes that were not read lately; they are fetched again when somebody wants them. The map
   * says so durably before their space is freed, so that a crash in between costs at most the space until the next time.
   * Readers that are in the middle of such a range see `losses` change, and read again.
   * @returns bytes freed @throws IoError; nothing is lost then
   */
  async evict(bytes: number): Promise<number> {
    let freed = 0;
    await this.#inMapTurn(async () => {
      if (!this.mayBeEvicted || this.#closing.signal.aborted) return;
      const runs = this.#cold!.pick(bytes).filter((run) => !this.#anyInFlight(run));
      if (runs.length === 0) return;
      await this.#queue.hold(runs, async () => {
        await this.check?.invalidate();
        const before = [this.#map, this.#synced, this.#durable].map((map) => map.copyBits());
        this.#evictions++;
        for (const map of [this.#map, this.#synced, this.#durable]) forEachUnit(runs, (unit) => map.remove(unit));
        try {
          await this.#takeFromMap();
        } catch (error) {
          // All of it is still there. What came meanwhile was not among it.
          [this.#map, this.#synced].forEach((map, index) => map.addAll(before[index]));
          if (error instanceof TornMapError) this.#durable.clear();
          else this.#durable.addAll(before[2]);
          this.#noteUnsynced();
          throw error;
        }
        for (const { first, end } of runs) {
          const length = this.#map.bytesOf(first, end);
          if (await this.file.punch(first * this.unitBytes, length)) freed += length;
        }
      });
    });
    return freed;
  }

  #anyInFlight({ first, end }: UnitRun): boolean {
    for (let unit = first; unit < end; unit++) if (this.#queue.isInFlight(unit)) return true;
    return false;
  }

  #writeMap(bits: Uint8Array): Promise<void> {
    return replaceFile(this.#environment.fs, this.#dir, "map", encodeRangeMap(this.meta, this.#inode, bits));
  }

  /**
   * Writes the map of which something was taken. A full disk has no room for a new one, and eviction is what would make
   * some: the old one is written over then. If a crash tears it, it is not believed, and the blob, which nobody was
   * promised, is fetched anew.
   */
  async #takeFromMap(): Promise<void> {
    const bits = this.#durable.copyBits();
    try {
      await this.#writeMap(bits);
    } catch (error) {
      if (errnoOf(error) !== "ENOSPC") throw error;
      const map = encodeRangeMap(this.meta, this.#inode, bits);
      await overwriteFile(this.#environment.fs, join(this.#dir, "map"), map).catch((cause: unknown) => {
        throw new TornMapError(errnoOf(cause), `the range map of blob ${this.id} could not be written over`, cause);
      });
    }
  }

  async #persist(): Promise<void> {
    try {
      await this.sync();
      this.#persistFailure = "";
    } catch (error) {
      // Nothing is lost by it, and it is tried again: once is enough for the log.
      const message = describeError(error);
      if (message !== this.#persistFailure) {
        this.#environment.log("warn", `blob ${this.id}: the range map could not be saved: ${message}`);
      }
      this.#persistFailure = message;
    }
  }

  async pin(volumeId: string): Promise<void> {
    if (this.#pins.has(volumeId)) return;
    const { fs } = this.#environment;
    const dir = join(this.#dir, "pins");
    const file = await fs.open(join(dir, volumeId), "create").catch((error: unknown) => {
      if (error instanceof IoError && error.errno === "EEXIST") return undefined; // an attempt that failed half-way
      throw error;
    });
    if (file !== undefined) {
      try {
        await file.datasync();
      } finally {
        await file.close();
      }
    }
    await fs.syncDirectory(dir);
    this.#pins.add(volumeId);
  }

  async unpin(volumeId: string): Promise<void> {
    const dir = join(this.#dir, "pins");
    await this.#environment.fs.unlink(join(dir, volumeId));
    await this.#environment.fs.syncDirectory(dir);
    this.#pins.delete(volumeId);
  }

  isPinnedBy(volumeId: string): boolean {
    return this.#pins.has(volumeId);
  }

  /** Ends fetches, saves the map if it can, lets go of the files. Whatever could not be saved is fetched again. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#closing.abort(new UllageError("closed", "the blob is being closed"));
    await this.#queue.close();
    await this.check?.close();
    await this.#persist();
    this.#shared?.close();
    try {
      await this.file.close();
    } finally {
      await this.#lock.release();
    }
  }
}

/** The map on disk may be a mix of two. */
class TornMapError extends IoError {}

function forEachUnit(runs: readonly UnitRun[], work: (unit: number) => void): void {
  for (const { first, end } of runs) for (let unit = first; unit < end; unit++) work(unit);
}
