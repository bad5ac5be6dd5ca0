import { isNbd } from "../backend/nbd/nbd-address.ts";
import { schemeOf } from "../backend/source-address.ts";
import type { Clock } from "../base/clock.ts";
import { SourceError } from "../base/errors.ts";
import type { ImageReader } from "../image/image-format.ts";
import type { BlobMeta } from "./blob-meta.ts";
import type { BlobZeros } from "./blob.ts";
import { RangeMap } from "./range-map.ts";

/*
 * Which units of a blob are zeros because the image's tables say so, whether they are in the cache or not. A blob is
 * immutable: what was told once holds for as long as it exists. Two sets of units, each containing the next:
 *
 *     told      the tables were asked about it; what is not in `zeros` may be anything
 *     zeros     reads as zeros
 *
 * One question goes to the source at a time. Who waits for its answer waits for WAIT_MS at most. If the source has said
 * nothing at all by then, nobody waits for this question any more, nor asks another one before it has ended; after one that
 * failed, nobody asks for PAUSE_MS. So a source that is down, slow or throttled holds somebody up for a moment now and
 * then, and not each time.
 */

/** What somebody waits for an answer at most. */
const WAIT_MS = 1000;
/** After a failure, the next question is asked so much later at the earliest. */
const PAUSE_MS = 10_000;
/** Questions are about multiples of it: who asks about a little will ask about what is behind it next. */
const QUESTION_BYTES = 64 * 1024 * 1024;

export interface KnownZerosOptions {
  readonly meta: BlobMeta;
  readonly clock: Clock;
  /** Aborted when the blob is being closed. */
  readonly closing: AbortSignal;
  /** All of the blob is in the cache: the source is not needed any more, and may be gone. */
  isComplete(): boolean;
  /** The source's reader; rejects when it can't be opened. */
  reader(): Promise<ImageReader>;
}

export class KnownZeros implements BlobZeros {
  readonly #options: KnownZerosOptions;
  readonly #zeros: RangeMap;
  readonly #told: RangeMap;
  #asking: Promise<void> | undefined;
  /** Counts what came of questions. */
  #answers = 0;
  /** Somebody has waited for `#asking` in vain. */
  #stalled = false;
  #notBefore = 0;

  private constructor(options: KnownZerosOptions) {
    const { size, unitBytes } = options.meta;
    this.#options = options;
    this.#zeros = new RangeMap(size, unitBytes);
    this.#told = new RangeMap(size, unitBytes);
  }

  /** @returns undefined for a blob whose source tells nothing of zeros */
  static of(options: KnownZerosOptions): KnownZeros | undefined {
    const { imageFormat, unpacked, url } = options.meta;
    const silent = imageFormat === "raw" && !isNbd(schemeOf(url) ?? "");
    return silent || unpacked === true ? undefined : new KnownZeros(options);
  }

  has(offset: number): boolean {
    return this.#zeros.isReady(offset, 1);
  }

  run(offset: number, length: number): number {
    return this.#zeros.readyRun(offset, length);
  }

  /** Units [first, end) are zeros, as somebody was told who asked for his own sake. */
  note(first: number, end: number): void {
    this.#zeros.addRun(first, end);
    this.#told.addRun(first, end);
  }

  learn(offset: number, length: number): Promise<number> | undefined {
    if (this.#stalled || this.#isTold(offset, length) || this.#options.isComplete()) return undefined;
    if (this.#options.clock.now() < this.#notBefore) return undefined;
    return this.#learn(offset, length);
  }

  #isTold(offset: number, length: number): boolean {
    if (this.#told.missing === 0) return true;
    const end = this.#told.unitEnd(offset, length);
    return this.#told.nextMissing(this.#told.unitAt(offset), end) === end;
  }

  async #learn(offset: number, length: number): Promise<number> {
    const { clock } = this.#options;
    const answered = new AbortController();
    const answers = this.#answers;
    const tooLate = clock
      .sleep(WAIT_MS, answered.signal)
      .catch(() => undefined)
      .then(() => true);
    while (!this.#isTold(offset, length) && clock.now() >= this.#notBefore) {
      this.#asking ??= this.#ask(offset, length);
      if ((await Promise.race([this.#asking, tooLate])) !== true) continue;
      this.#stalled = this.#asking !== undefined && this.#answers === answers;
      break;
    }
    answered.abort();
    return this.#told.isReady(offset, 1) ? this.#told.readyRun(offset, length) : 0;
  }

  /** Asks about what is not told yet of a range, and what is around it. Never rejects. */
  async #ask(offset: number, length: number): Promise<void> {
    const { clock, closing } = this.#options;
    const { size, unitBytes, units } = this.#told;
    const first = Math.floor(offset / QUESTION_BYTES) * QUESTION_BYTES;
    const stop = Math.min(size, Math.ceil((offset + length) / QUESTION_BYTES) * QUESTION_BYTES);
    const end = this.#told.unitEnd(first, stop - first);
    let unit = this.#told.nextMissing(this.#told.unitAt(first), end);
    let at = unit * unitBytes;
    let zeroFrom = -1;
    const take = (count: number, zero: boolean): void => {
      if (!zero) zeroFrom = -1;
      else if (zeroFrom < 0) zeroFrom = at;
      at = Math.min(at + count, size);
      const whole = at === size ? units : Math.floor(at / unitBytes);
      if (whole <= unit) return;
      // Of the units that end in this run all but the first one lie in it.
      if (zero) this.#zeros.addRun(Math.max(unit, Math.ceil(zeroFrom / unitBytes)), whole);
      this.#told.addRun(unit, whole);
      unit = whole;
      this.#answers++;
    };
    let opened = false;
    try {
      const reader = await this.#options.reader();
      opened = true;
      if (reader.tellZeros !== undefined) await reader.tellZeros(at, stop - at, take, { signal: closing });
      this.#told.addRun(unit, end);
    } catch (error) {
      // The read that needs it meets the failure, and counts it. Damage stays: there is no use in asking again.
      if (opened && error instanceof SourceError && !error.transient) this.#told.addRun(unit, end);
      else this.#notBefore = clock.now() + PAUSE_MS;
    } finally {
      this.#asking = undefined;
      this.#stalled = false;
    }
  }
}
