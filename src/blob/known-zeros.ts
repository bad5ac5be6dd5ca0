import { tellsHoles } from "../backend/source-address.ts";
import type { Clock } from "../base/clock.ts";
import { SourceError } from "../base/errors.ts";
import { tellHoles } from "../base/file-holes.ts";
import type { File } from "../base/file-system.ts";
import type { ImageReader } from "../image/image-format.ts";
import type { BlobMeta } from "./blob-meta.ts";
import type { BlobZeros } from "./blob.ts";
import { RangeMap } from "./range-map.ts";
import type { SharedZeros } from "./shared-readiness.ts";
import { ZeroQuestions } from "./zero-questions.ts";

/*
 * Which units of a blob are zeros because the image's tables, or the holes of what it lies on, say so, whether they are in
 * the cache or not. A blob is immutable: what was told once holds for as long as it exists. Two sets of units, each
 * containing the next:
 *
 *     told      the tables were asked about it; what is not in `zeros` may be anything
 *     zeros     reads as zeros
 *
 * Both only grow, in memory that other processes may look at. When all of the blob is settled in its cache file, the holes
 * of that are asked about in the place of the tables: the source may be gone by then, and zeros were left out when they came.
 * Of an image that was unpacked, or is a raw disk on a source that can't be asked, nothing is told before.
 */

/** Questions are about multiples of it: who asks about a little will ask about what is behind it next. */
const QUESTION_BYTES = 64 * 1024 * 1024;

export interface KnownZerosOptions {
  readonly meta: BlobMeta;
  readonly clock: Clock;
  /** Aborted when the blob is being closed. */
  readonly closing: AbortSignal;
  readonly file: Pick<File, "seekData" | "seekHole">;
  /** All of the blob is in the cache: the source is not needed any more, and may be gone. */
  isComplete(this: void): boolean;
  /** Beyond that, every unit is durably in `file`, is what the source has, and is not being evicted. */
  isSettled(this: void): boolean;
  /** The source's reader; rejects when it can't be opened. */
  reader(this: void): Promise<ImageReader>;
}

export class KnownZeros implements BlobZeros {
  readonly #options: KnownZerosOptions;
  /** Only the cache file can be asked. */
  readonly #silent: boolean;
  readonly #zeros: RangeMap;
  readonly #told: RangeMap;
  readonly #questions: ZeroQuestions;
  /** Where they lie once other processes look at them. */
  #shared: SharedZeros | undefined;

  constructor(options: KnownZerosOptions) {
    const { size, unitBytes, imageFormat, unpacked, url } = options.meta;
    this.#options = options;
    this.#silent = unpacked === true || (imageFormat === "raw" && !tellsHoles(url));
    this.#zeros = new RangeMap(size, unitBytes);
    this.#told = new RangeMap(size, unitBytes);
    this.#questions = new ZeroQuestions({
      clock: options.clock,
      told: this.#told,
      progress: () => this.#told.missing,
      isNeedless: () => (this.#silent || options.isComplete()) && !options.isSettled(),
      ask: (offset, length) => this.#ask(offset, length),
    });
  }

  has(offset: number): boolean {
    return this.#zeros.isReady(offset, 1);
  }

  run(offset: number, length: number): number {
    return this.#zeros.readyRun(offset, length);
  }

  learn(offset: number, length: number): Promise<number> | undefined {
    return this.#questions.learn(offset, length);
  }

  /** Units [first, end) are zeros, as somebody was told who asked for his own sake. */
  note(first: number, end: number): void {
    this.#zeros.addRun(first, end);
    this.#addTold(first, end);
  }

  #addTold(first: number, end: number): void {
    this.#told.addRun(first, end);
    if (this.#shared !== undefined) this.#shared.toldUnits = this.#told.units - this.#told.missing;
  }

  /** Goes on in memory that others see. @param shared all zero */
  moveTo(shared: SharedZeros): void {
    this.#zeros.moveTo(shared.zeros);
    this.#told.moveTo(shared.told);
    this.#shared = shared;
    shared.toldUnits = this.#told.units - this.#told.missing;
  }

  /** Asks about what is not told yet of a range, and what is around it. */
  async #ask(offset: number, length: number): Promise<void> {
    const { closing, file, isSettled, reader: open } = this.#options;
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
      this.#addTold(unit, whole);
      unit = whole;
    };
    await tellHoles(file, at, stop - at, take, () => isSettled() && !closing.aborted);
    if (at >= stop || this.#silent) return;
    const reader = await open();
    try {
      if (reader.tellZeros !== undefined) await reader.tellZeros(at, stop - at, take, { signal: closing });
    } catch (error) {
      // Damage stays: there is no use in asking again.
      if (!(error instanceof SourceError) || error.transient) throw error;
    }
    this.#addTold(unit, end);
  }
}
