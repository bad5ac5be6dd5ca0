import type { Clock } from "../base/clock.ts";
import { IoError, describeError } from "../base/errors.ts";

/*
 * How much space the cache may take, and what goes when that is too much. Nothing is ever evicted because hydration wants
 * room; hydration pauses instead.
 *
 *     use <= capacity x HIGH      nothing happens
 *     use >  capacity x HIGH      blobs that no volume needs go whole, least recently used first, and then, of volumes that
 *                                 do not want to be complete, ranges that nobody read lately, until use <= capacity x LOW
 *     free < reserve              the same, until the file system has its reserve again
 *     free < floor                what clients read of images goes by the cache: nothing more is kept
 *
 * What a detached volume needs is data, not cache, and is never looked at.
 */

const HIGH = 0.95;
const LOW = 0.85;

/** Use is looked at whenever so many bytes came in (not less: as much may be needed at once by who reads), */
const CHECK_BYTES = 32 * 1024 * 1024;
/** and ranges go in portions, between which readers get on. */
const PORTION_BYTES = 32 * 1024 * 1024;
/** Of the reserve so much, bytes, at most is the floor: what clients wait for is worth more than a reserve. */
const FLOOR_BYTES = 1024 * 1024 * 1024;
/** What is free is known for so long, ms: volumes write, too. */
const LOOK_MS = 1000;
/** A full disk that eviction could not help is not asked again before this, ms. */
const USELESS_MS = 1000;

/** How much the cache may hold. */
export interface CacheLimits {
  /** bytes on disk that all blobs together may take; null: as much as the file system has, less the reserve */
  capacityBytes: number | null;
  /** share of the file system that is left free, 0 … 1 */
  reserve: number;
}

export const defaultLimits: CacheLimits = { capacityBytes: null, reserve: 0.05 };

/** What is left of the space that the cache may take, bytes. */
export interface RoomLeft {
  /** of the file system */
  free: number;
  total: number;
  /** of the cache's capacity */
  room: number;
}

/**
 * @param reserve share of the file system that is left alone @param bytes that are to fit, with what is under way
 * @throws IoError ENOSPC
 */
export function demandRoom({ free, total, room }: RoomLeft, reserve: number, bytes = 1): void {
  const full = (what: string, hint: string): IoError => new IoError("ENOSPC", what, undefined, hint);
  if (room < bytes) {
    throw full("the cache has as many bytes as its capacity allows", "`ullage cache limit --capacity` allows more");
  }
  const kept = Math.ceil(total * reserve);
  if (free >= kept) return;
  throw full(
    `the cache's file system has ${free} bytes left, and ${kept} are to be left alone`,
    "`ullage help operations` says what takes space; `cache.reserve` is what is left alone",
  );
}

/** What the policy works on. */
export interface CacheSpaceHost {
  clock: Clock;
  /** bytes on disk */
  use(): number;
  fileSystem(): Promise<{ free: number; total: number }>;
  /** Blobs that nothing needs, least recently used first. */
  unneeded(): string[];
  /** @returns bytes freed; 0 when somebody has begun to need it */
  removeBlob(id: string): Promise<number>;
  /** Blobs in use of which ranges may go. */
  thinnable(): { evict(bytes: number): Promise<number> }[];
  log(level: "info" | "warn", message: string): void;
}

export class CacheSpace {
  limits: CacheLimits;
  /** since the start */
  evictedBytes = 0;
  readonly #host: CacheSpaceHost;
  #unchecked = 0;
  #running: { atLeast: number; freed: Promise<number> } | undefined;
  #uselessUntil = -Infinity;
  /** Bytes that may still be claimed before the file system is asked again. */
  #aboveFloor = 0;
  #lookAgainAt = -Infinity;
  /** Bytes that are on their way. */
  #claimed = 0;
  #atFloor = false;

  constructor(host: CacheSpaceHost, limits: CacheLimits = defaultLimits) {
    this.#host = host;
    this.limits = limits;
  }

  /** How many bytes hydration may still add; Infinity without a capacity. */
  get room(): number {
    const { capacityBytes } = this.limits;
    return capacityBytes === null ? Infinity : Math.max(0, capacityBytes - this.#host.use());
  }

  /** So many bytes came in. */
  filled(bytes: number): void {
    this.#unchecked += bytes;
    if (this.#unchecked < CHECK_BYTES) return;
    this.#unchecked = 0;
    void this.relieve();
  }

  /** A write found the disk full. @returns whether something was freed */
  async makeRoom(): Promise<boolean> {
    if (this.#host.clock.now() < this.#uselessUntil) return false;
    const freed = await this.#alone(PORTION_BYTES);
    if (freed === 0) this.#uselessUntil = this.#host.clock.now() + USELESS_MS;
    return freed > 0;
  }

  /**
   * Asked before more of what nobody waits for is fetched: that must fill neither the disk, on which volumes write, nor
   * more than the cache may have. What is not needed goes first.
   * @param bytes that are to fit, with what its caller has under way @throws IoError ENOSPC
   */
  async demandRoom(bytes: number): Promise<void> {
    await this.relieve();
    if (this.room < bytes) await this.free(bytes - this.room);
    demandRoom({ ...(await this.#host.fileSystem()), room: this.room }, this.limits.reserve, bytes);
  }

  /**
   * Asked before bytes are kept that somebody can have without: they are his until `disclaim`.
   * @param evict what is not needed goes first
   * @throws IoError ENOSPC; nothing is claimed then
   */
  async claim(bytes: number, evict: boolean): Promise<void> {
    const { clock } = this.#host;
    const fits = (): boolean => this.#aboveFloor >= bytes;
    if (!fits() || clock.now() >= this.#lookAgainAt) {
      const mayFit = clock.now() >= this.#uselessUntil;
      if (mayFit) await this.#lookForRoom(bytes);
      if (mayFit && evict && !fits() && (await this.makeRoom())) await this.#lookForRoom(bytes);
      this.#noteFloor(!mayFit || !fits());
      if (this.#atFloor) {
        throw new IoError("ENOSPC", "the last bytes of the cache's file system are left to what volumes write");
      }
    }
    this.#aboveFloor -= bytes;
    this.#claimed += bytes;
  }

  /** What was claimed is on the disk now, or was not needed. */
  disclaim(bytes: number): void {
    this.#claimed -= bytes;
  }

  #noteFloor(atFloor: boolean): void {
    if (atFloor === this.#atFloor) return;
    this.#atFloor = atFloor;
    if (atFloor)
      this.#host.log("warn", "the disk is nearly full: what is read of images is not kept until there is room");
    else this.#host.log("info", "the disk has room again: what is read of images is kept");
  }

  /** Room for so many bytes, or for the next ones as well. */
  async #lookForRoom(bytes: number): Promise<void> {
    const { free, total } = await this.#host.fileSystem();
    const floor = Math.min(FLOOR_BYTES, Math.ceil(total * this.limits.reserve));
    this.#aboveFloor = Math.min(Math.max(CHECK_BYTES, bytes), free - floor - this.#claimed);
    this.#lookAgainAt = this.#host.clock.now() + LOOK_MS;
  }

  /** Evicts what is too much, if anything is. Never rejects. @returns bytes freed */
  relieve(): Promise<number> {
    return this.#alone(0);
  }

  /** Evicts as much as asked for, too much or not, as far as it may go. Never rejects. @returns bytes freed */
  async free(bytes: number): Promise<number> {
    await this.#running?.freed; // whatever that was for
    return this.#alone(bytes);
  }

  /**
   * One at a time; who wants no more than the one that runs shares it.
   * @param atLeast bytes to be freed, too much or not
   */
  async #alone(atLeast: number): Promise<number> {
    while (this.#running !== undefined && this.#running.atLeast < atLeast) await this.#running.freed;
    if (this.#running !== undefined) return this.#running.freed;
    const freed = this.#evict(atLeast)
      .catch((error: unknown) => {
        this.#host.log("warn", `the cache could not be made smaller: ${describeError(error)}`);
        return 0;
      })
      .finally(() => (this.#running = undefined));
    this.#running = { atLeast, freed };
    return freed;
  }

  async #evict(atLeast: number): Promise<number> {
    const wanted = Math.max(atLeast, await this.#excess());
    let freed = 0;
    if (wanted <= 0) return 0;
    for (const id of this.#host.unneeded()) {
      if (freed >= wanted) break;
      const bytes = await this.#host.removeBlob(id);
      freed += bytes;
    }
    for (const blob of this.#host.thinnable()) {
      while (freed < wanted) {
        const bytes = await blob.evict(Math.min(PORTION_BYTES, wanted - freed));
        if (bytes === 0) break;
        freed += bytes;
      }
    }
    this.evictedBytes += freed;
    if (freed > 0) this.#host.log("info", `${freed} bytes of the cache were evicted`);
    return freed;
  }

  /** Bytes to be freed now. */
  async #excess(): Promise<number> {
    const { capacityBytes, reserve } = this.limits;
    const use = this.#host.use();
    const tooMuch = capacityBytes !== null && use > capacityBytes * HIGH ? use - capacityBytes * LOW : 0;
    const { free, total } = await this.#host.fileSystem();
    return Math.max(tooMuch, Math.ceil(total * reserve) - free);
  }
}
