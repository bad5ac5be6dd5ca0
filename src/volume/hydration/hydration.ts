import type { Clock } from "../../base/clock.ts";
import { UllageError, describeError, errnoOf } from "../../base/errors.ts";
import { orAborted } from "../../base/or-aborted.ts";
import type { Blob } from "../../blob/blob.ts";
import type { TracedRead } from "../../blob/boot-trace.ts";
import { demandRoom, type RoomLeft } from "../../blob/cache-space.ts";
import { type Damage, type DamagedRange, DamagedPieces, fetchAround } from "../../blob/damage.ts";
import { RateLimit, RateMeter } from "./hydration-rate.ts";
import {
  isMissing,
  measureNeed,
  missingPieces,
  tracedPieces,
  type HydrationTarget,
  type Piece,
} from "./hydration-scan.ts";
import type { HydrationSlots } from "./hydration-slots.ts";

/*
 * Fills in the background what a volume's map still needs of its blobs. It writes to the shared cache alone, never to
 * the head, so it can't overwrite what a guest wrote; and it keeps no state but the blobs' range maps, so it goes on
 * after a restart where it was.
 *
 *     none --start--> running --all there, durable, pinned--> detached
 *                     |  ^
 *                     |  '-- waiting   the source or the disk failed, or all is there but what is damaged at the source:
 *                     |              again after a while, longer each time
 *                     '----- paused    by the user, until resumed; or `no-space`, until there is some again
 *
 * Pieces that can't be had though the source answers (blob/damage.ts) are left out until everything else is there. Then, after
 * each wait, the one that was tried longest ago is tried again, and when it has turned good, the next.
 *
 * `detached` means that the source may vanish, and is reported only once it would be so after a power cut as well.
 */
export type HydrationState = "none" | "running" | "paused" | "waiting" | "detached";

export interface HydrationStatus {
  state: HydrationState;
  /** why it is paused or waiting; null otherwise */
  reason: string | null;
  readyBytes: number;
  totalBytes: number;
  /** of these, what can't be had though the source answers */
  damagedBytes: number;
  /** where that is, the first places */
  damaged: readonly DamagedRange[];
  rateBytesPerSecond: number;
  /** null: unknown */
  etaSeconds: number | null;
  /** null: as fast as it goes */
  limitBytesPerSecond: number | null;
  /** among volumes that are filled at the same time; more is sooner */
  priority: number;
}

export interface HydrationOptions {
  clock: Clock;
  /** One for the host. */
  slots: HydrationSlots;
  /** Of the file system that the cache is on, in bytes. */
  space(): Promise<RoomLeft>;
  log(level: "info" | "warn", message: string): void;
  /** bytes per second; null: no limit */
  limitBytesPerSecond?: number | null;
  priority?: number;
  /** Share of the file system that is left alone. */
  reserve?: number;
  /** What was read first, and is fetched first; see boot-trace.ts. */
  trace?: (blobId: string) => readonly TracedRead[];
}

export const NO_SPACE = "no-space";
export const PAUSED_BY_USER = "paused by the user";

const DEFAULT_RESERVE = 0.05;

/** Large enough that a round trip costs little beside it, small enough that a reader who needs it now waits little. */
const REQUEST_BYTES = 1024 * 1024;

/** Requests under way per volume: what it takes to fill a fast line whose round trip is some milliseconds. */
const REQUESTS = 16;

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 60_000;

/** Space is looked at whenever so many bytes, or as many as there was room for, were asked for, and so often while there is none. */
const SPACE_CHECK_BYTES = 64 * 1024 * 1024;
const SPACE_RETRY_MS = 5000;

/** Listeners hear of progress this often at most. */
const PROGRESS_MS = 500;

/** Whatever the loop waited for: it should look again at what it is to do. */
const INTERRUPTED = new UllageError("interrupted", "hydration was interrupted");
const LONG_MS = 3_600_000;

export class Hydration {
  readonly #target: HydrationTarget;
  readonly #options: HydrationOptions;
  readonly #limit: RateLimit;
  readonly #meter: RateMeter;
  readonly #listeners = new Set<(status: HydrationStatus) => void>();
  readonly #closing = new AbortController();
  /** Aborted and made anew by `pause`, `resume` and `close`: ends the loop's waits, not the requests under way. */
  #interrupt = new AbortController();
  #priority: number;
  #state: HydrationState = "none";
  #reason: string | null = null;
  #pausedByUser = false;
  #loop: Promise<void> | undefined;
  /** What the last scan found, and how much of the blobs was ready then. */
  #totalBytes = 0;
  #readyAtScan = 0;
  #blobsReadyAtScan = 0;
  /** How long the last failure made it wait; 0 since the last success. */
  #retryMs = 0;
  readonly #damage = new DamagedPieces();
  /** The last failure, until a request has succeeded. */
  #trouble = "";
  /** So many bytes may be asked for before space is looked at again. */
  #checkedBytes = 0;
  #underWayBytes = 0;
  #progressAt = -Infinity;

  private constructor(target: HydrationTarget, options: HydrationOptions) {
    this.#target = target;
    this.#options = options;
    this.#limit = new RateLimit(options.clock, options.limitBytesPerSecond ?? null);
    this.#meter = new RateMeter(options.clock);
    this.#priority = options.priority ?? 0;
  }

  /**
   * Finds out where the volume stands; it is `detached` when it was before: everything is durable, and pinned.
   * Asks nothing of the source.
   */
  static async open(target: HydrationTarget, options: HydrationOptions): Promise<Hydration> {
    const hydration = new Hydration(target, options);
    const durable = await hydration.#scan();
    const pinned = target.blobs().every((blob) => blob.isPinnedBy(target.id));
    const checked = target.blobs().every(({ check }) => check === undefined || check.state === "verified");
    if (target.blobs().length > 0 && durable && checked && pinned) hydration.#state = "detached";
    return hydration;
  }

  get state(): HydrationState {
    return this.#state;
  }

  status(): HydrationStatus {
    const readyBytes = this.#readyBytes();
    const rate = this.#state === "running" ? this.#meter.perSecond(readyBytes) : 0;
    return {
      state: this.#state,
      reason: this.#reason,
      readyBytes,
      totalBytes: this.#totalBytes,
      damagedBytes: this.#damage.bytes,
      damaged: this.#damage.told(),
      rateBytesPerSecond: rate,
      etaSeconds: rate > 0 ? Math.ceil((this.#totalBytes - readyBytes) / rate) : null,
      limitBytesPerSecond: this.#limit.bytesPerSecond,
      priority: this.#priority,
    };
  }

  /** `listener` hears of every change of state, and of progress now and then. @returns what ends it */
  onChange(listener: (status: HydrationStatus) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /**
   * Starts to fill, unless it does already. To be called again when the map has come to need more than before (a
   * revert): a detached volume then stays so only if that is there too.
   */
  start(): void {
    if (this.#loop !== undefined || this.#closing.signal.aborted || this.#target.blobs().length === 0) return;
    this.#loop = this.#run().finally(() => (this.#loop = undefined));
  }

  /** Requests under way still end; no new ones are made. */
  pause(): void {
    if (this.#pausedByUser || this.#state === "detached" || this.#target.blobs().length === 0) return;
    this.#pausedByUser = true;
    this.#interruptWaits();
    this.#enter("paused", PAUSED_BY_USER);
  }

  /** Ends a pause, or tries again at once, all that is damaged too, when it waits. Starts it when it has not been started. */
  resume(): void {
    this.#pausedByUser = false;
    this.#trouble = "";
    this.#damage.clear();
    for (const { check } of this.#target.blobs()) check?.forgive();
    if (this.#state === "paused" || this.#state === "waiting") this.#interruptWaits();
    if (this.#state === "paused" && this.#loop !== undefined) this.#enter("running", null);
    this.start();
  }

  /** What is left out stays. Takes effect at once. */
  configure(change: { limitBytesPerSecond?: number | null; priority?: number }): void {
    if (change.limitBytesPerSecond !== undefined) this.#limit.bytesPerSecond = change.limitBytesPerSecond;
    if (change.priority !== undefined) this.#priority = change.priority;
    this.#announce();
  }

  /** Resolves when the volume is detached. @throws the reason of `signal`, or UllageError `closed` */
  async wait(signal?: AbortSignal): Promise<void> {
    const ended = AbortSignal.any([this.#closing.signal, ...(signal === undefined ? [] : [signal])]);
    ended.throwIfAborted();
    if (this.#state === "detached") return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const forget = this.onChange((status) => {
      if (status.state === "detached") resolve();
    });
    try {
      await orAborted(promise, ended);
    } finally {
      forget();
    }
  }

  /** Leaves the requests under way; when it resolves, nothing of the target or its blobs is used any more. */
  async close(): Promise<void> {
    this.#closing.abort(new UllageError("closed", `hydration of volume ${this.#target.id} was closed`));
    this.#interruptWaits();
    await this.#loop;
  }

  #interruptWaits(): void {
    this.#interrupt.abort(INTERRUPTED);
    this.#interrupt = new AbortController();
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    const closing = this.#closing.signal;
    while (!closing.aborted) {
      try {
        if (this.#pausedByUser) await this.#untilResumed();
        else if (await this.#work()) return;
      } catch (error) {
        if (error !== INTERRUPTED && !closing.aborted) await this.#holdOff(error);
      }
    }
  }

  /** @returns whether the volume is detached now */
  async #work(): Promise<boolean> {
    const durable = await this.#scan();
    if (this.#state === "detached" && durable) return true;
    if (this.#trouble === "") this.#enter("running", null);
    await this.#retryDamaged();
    await this.#fill();
    this.#forgetMended();
    this.#damage.demandNone();
    return this.#detach();
  }

  /** Tries what is damaged once more, up to the first that still is. */
  async #retryDamaged(): Promise<void> {
    this.#forgetMended();
    for (const damage of this.#damage.list()) {
      const release = await this.#admit(damage.length);
      let found: Damage[];
      try {
        found = await fetchAround(damage.blob, damage.offset, damage.length, {
          background: true,
          signal: this.#closing.signal,
        });
      } finally {
        release();
      }
      this.#damage.forget(damage);
      this.#damage.note(found);
      if (found.length > 0) return;
      this.#gotOn();
    }
  }

  /** Somebody who waited for it may have got it, or has written over it. */
  #forgetMended(): void {
    for (const damage of this.#damage.list()) {
      if (!isMissing(this.#target, damage.blob, damage)) this.#damage.forget(damage);
    }
  }

  /** Asks for everything that is missing. @throws the first failure, after all requests have ended */
  async #fill(): Promise<void> {
    const underWay = new Set<Promise<void>>();
    const failures: { error: unknown }[] = [];
    try {
      for await (const { blob, piece, soon } of this.#pieces()) {
        // After a failure one request goes ahead, to see whether the source is back.
        while (underWay.size >= (this.#retryMs > 0 ? 1 : REQUESTS)) await Promise.race(underWay);
        if (failures.length > 0) break;
        const release = await this.#admit(piece.length);
        const request = this.#fetch(blob, piece, soon)
          .catch((error: unknown) => void failures.push({ error }))
          .finally(() => {
            release();
            underWay.delete(request);
          });
        underWay.add(request);
      }
    } finally {
      await Promise.all(underWay);
    }
    if (failures.length > 0) throw failures[0].error;
  }

  /** What is missing and not damaged: first what a disk like this was first read for, then from the beginning to the end. */
  async *#pieces(): AsyncGenerator<{ blob: Blob; piece: Piece; soon: boolean }> {
    const target = this.#target;
    for (const blob of target.blobs()) {
      const reads = this.#options.trace?.(blob.id) ?? [];
      for await (const whole of tracedPieces(target, blob, reads, REQUEST_BYTES)) {
        for (const piece of this.#damage.around(blob, whole)) yield { blob, piece, soon: true };
      }
    }
    for (const blob of target.blobs()) {
      for await (const whole of missingPieces(target, blob, REQUEST_BYTES)) {
        for (const piece of this.#damage.around(blob, whole)) yield { blob, piece, soon: false };
      }
    }
  }

  /** Waits until a request of so many bytes may be made. @returns what gives its slot back */
  async #admit(bytes: number): Promise<() => void> {
    const { signal } = this.#interrupt;
    if (this.#pausedByUser || this.#closing.signal.aborted) throw INTERRUPTED;
    if (this.#checkedBytes < bytes) await this.#checkSpace();
    await this.#limit.take(bytes, signal);
    const release = await this.#options.slots.take(this.#priority, signal);
    this.#checkedBytes -= bytes;
    this.#underWayBytes += bytes;
    return () => {
      this.#underWayBytes -= bytes;
      release();
    };
  }

  async #fetch(blob: Blob, piece: Piece, soon: boolean): Promise<void> {
    const options = { background: !soon, soon, optional: true, signal: this.#closing.signal };
    const found = await fetchAround(blob, piece.offset, piece.length, options);
    this.#damage.note(found);
    this.#gotOn();
  }

  #gotOn(): void {
    this.#retryMs = 0;
    this.#trouble = "";
    if (!this.#pausedByUser) this.#enter("running", null);
    this.#meter.note(this.#readyBytes());
    const now = this.#options.clock.now();
    if (now - this.#progressAt >= PROGRESS_MS) this.#announce();
  }

  /**
   * Durability rules 11 and 36. The order matters: what the map needs only becomes less (see `start`), so a flush that begins
   * after the check makes a map durable that needs nothing but what was checked, and was durable then already.
   */
  async #detach(): Promise<boolean> {
    const blobs = this.#target.blobs();
    for (const blob of blobs) await blob.sync();
    if (!(await this.#scan())) return false; // a sync that failed meanwhile took some back: the next round fetches it
    for (const { check } of blobs) if ((await check?.run(this.#closing.signal)) === false) return false;
    await this.#target.flush();
    for (const blob of blobs) await blob.pin(this.#target.id);
    this.#enter("detached", null);
    return true;
  }

  /** Looks at everything that the map needs. @returns whether all of it is durable */
  async #scan(): Promise<boolean> {
    const blobsReady = this.#blobsReady();
    const need = await measureNeed(this.#target);
    this.#totalBytes = need.bytes;
    this.#readyAtScan = need.readyBytes;
    this.#blobsReadyAtScan = blobsReady;
    return need.durable;
  }

  /** Counts what was fetched since the scan as needed; nearly all of it is. */
  #readyBytes(): number {
    return Math.min(this.#totalBytes, this.#readyAtScan + this.#blobsReady() - this.#blobsReadyAtScan);
  }

  #blobsReady(): number {
    let bytes = 0;
    for (const blob of this.#target.blobs()) bytes += blob.readyBytes;
    return bytes;
  }

  // ---- not getting on ----------------------------------------------------------------------------------------------

  async #holdOff(error: unknown): Promise<void> {
    const message = describeError(error);
    if (message !== this.#trouble) {
      this.#options.log("warn", `hydration of volume ${this.#target.id} can't go on: ${message}`);
    }
    this.#trouble = message;
    if (this.#pausedByUser) return;
    if (errnoOf(error) === "ENOSPC") {
      this.#enter("paused", NO_SPACE);
      await this.#nap(SPACE_RETRY_MS);
      this.#checkedBytes = 0;
    } else {
      const givenUp = this.#target.blobs().some(({ check }) => check?.state === "givenUp"); // until it is resumed
      this.#retryMs = givenUp ? LONG_MS : Math.min(Math.max(FIRST_RETRY_MS, this.#retryMs * 2), LAST_RETRY_MS);
      this.#enter("waiting", message);
      await this.#nap(this.#retryMs);
    }
  }

  async #untilResumed(): Promise<void> {
    this.#enter("paused", PAUSED_BY_USER);
    await this.#nap(LONG_MS);
  }

  async #checkSpace(): Promise<void> {
    const left = await this.#options.space();
    const room = left.room - this.#underWayBytes;
    demandRoom({ ...left, room }, this.#options.reserve ?? DEFAULT_RESERVE);
    this.#checkedBytes = Math.min(SPACE_CHECK_BYTES, room);
  }

  /** Waits so long, or until something changes. */
  async #nap(ms: number): Promise<void> {
    if (this.#closing.signal.aborted) return;
    await this.#options.clock.sleep(ms, this.#interrupt.signal).catch(() => undefined);
  }

  #enter(state: HydrationState, reason: string | null): void {
    if (state === this.#state && reason === this.#reason) return;
    if (state === "running" && this.#state !== "running") this.#meter.reset();
    this.#state = state;
    this.#reason = reason;
    this.#announce();
  }

  #announce(): void {
    this.#progressAt = this.#options.clock.now();
    const status = this.status();
    for (const listener of this.#listeners) listener(status);
  }
}
