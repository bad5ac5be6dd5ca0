import { firstIndex } from "../base/first-index.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { Identity, ReadOptions, ZeroTaker } from "./backend.ts";

/** The whole of it is asked about at once: few questions, however large the object is. */
const REGION_BYTES = 1024 * 1024 * 1024;
/** Shorter zeros are read with what is around them. */
const MIN_RUN_BYTES = 64 * 1024;
/** Of all regions together, so many begins and ends are remembered. */
const MAX_NUMBERS = 256 * 1024;
const MAX_REGIONS = 16 * 1024;
/** Who is asked may answer about less than that; so often he is asked on. */
const MAX_QUESTIONS = 8;
/** Regions that one call asks about. */
const MAX_LOOKS = 16;

/**
 * Asks for the extents of a range, in order, as far as they are told. @returns false when there is no answer
 * @throws SourceError when nobody can be asked now
 */
export type ExtentQuestion = (offset: number, length: number, take: ZeroTaker, signal: AbortSignal) => Promise<boolean>;

/** Begin, end, begin, end, … of zeros, ascending. */
type Runs = number[];

/** What the object tells that a backend was asked about last: `Backend.zeroRun` and `tellZeros` for a source that can be asked. */
export class PinnedZeros {
  readonly #question: (identity: Identity) => ExtentQuestion;
  readonly #closing: AbortSignal;
  #last: { identity: Identity; zeros: SourceZeros } | undefined;

  /** @param question asks about a pinned object @param closing ends what nobody else ends */
  constructor(question: (identity: Identity) => ExtentQuestion, closing: AbortSignal) {
    this.#question = question;
    this.#closing = closing;
  }

  of(identity: Identity): SourceZeros {
    const last = this.#last?.identity;
    if (last?.version !== identity.version || last.size !== identity.size) {
      this.#last = { identity, zeros: new SourceZeros(identity.size, this.#question(identity)) };
    }
    return this.#last!.zeros;
  }

  zeroRun(identity: Identity, offset: number, length: number, options: ReadOptions = {}): Promise<number> {
    const { background = false, signal = this.#closing } = options;
    return this.of(identity).zeroRun(offset, length, background, signal);
  }

  tell(identity: Identity, offset: number, length: number, take: ZeroTaker, options: ReadOptions = {}): Promise<void> {
    return this.of(identity).tell(offset, length, take, options.signal ?? this.#closing);
  }
}

/**
 * What a source that can be asked for its holes has told: per region of the object either nothing, a question under way, or
 * its runs of zeros. The regions that were looked at last are kept, within bounds.
 */
export class SourceZeros {
  readonly #size: number;
  readonly #ask: ExtentQuestion;
  readonly #regions = new Map<number, Runs>();
  readonly #looks = new Map<number, SharedWork<Runs>>();
  #numbers = 0;

  constructor(size: number, ask: ExtentQuestion) {
    this.#size = size;
    this.#ask = ask;
  }

  /**
   * Zeros from `offset` on. Only the background waits for answers; for the foreground it is quicker to read.
   * @returns bytes, at most `length`
   * @throws SourceError
   */
  async zeroRun(offset: number, length: number, background: boolean, signal: AbortSignal): Promise<number> {
    let at = offset;
    for (let looks = 0; at < offset + length && looks <= MAX_LOOKS;) {
      const index = Math.floor(at / REGION_BYTES);
      let runs = this.#regions.get(index);
      if (runs === undefined) {
        looks++;
        const look = this.#look(index);
        if (!background) {
          look.join().catch(() => undefined); // whoever needs it asks again
          break;
        }
        runs = await look.join(signal);
      }
      const { zero, end } = runAt(runs, at, this.#endOf(index));
      if (!zero) break;
      at = end;
      if (end < this.#endOf(index)) break;
    }
    return Math.min(at, offset + length) - offset;
  }

  /** Tells which parts of a range are zeros, one region after the other. @throws SourceError */
  async tell(offset: number, length: number, take: ZeroTaker, signal: AbortSignal): Promise<void> {
    for (let at = offset; at < offset + length;) {
      const index = Math.floor(at / REGION_BYTES);
      const stop = Math.min(offset + length, this.#endOf(index));
      const runs = this.#regions.get(index) ?? (await this.#look(index).join(signal));
      while (at < stop) {
        const { zero, end } = runAt(runs, at, stop);
        take(Math.min(end, stop) - at, zero);
        at = Math.min(end, stop);
      }
    }
  }

  /** Whether the bytes at `offset` are known to be zeros, and where that ends; without asking anybody. */
  known(offset: number): { zero: boolean; end: number } {
    const index = Math.floor(offset / REGION_BYTES);
    const runs = this.#regions.get(index);
    return runs === undefined ? { zero: false, end: this.#endOf(index) } : runAt(runs, offset, this.#endOf(index));
  }

  #endOf(index: number): number {
    return Math.min(this.#size, (index + 1) * REGION_BYTES);
  }

  #look(index: number): SharedWork<Runs> {
    const known = this.#looks.get(index);
    if (known?.aborted === false) return known;
    const work: SharedWork<Runs> = new SharedWork(async (signal) => {
      try {
        const runs = await this.#question(index, signal);
        this.#remember(index, runs);
        return runs;
      } finally {
        if (this.#looks.get(index) === work) this.#looks.delete(index);
      }
    });
    this.#looks.set(index, work);
    return work;
  }

  async #question(index: number, signal: AbortSignal): Promise<Runs> {
    await Promise.resolve(); // the look is registered before it can end
    const end = this.#endOf(index);
    const runs: Runs = [];
    let at = index * REGION_BYTES;
    let zeroFrom = -1;
    const closeRun = (): void => {
      if (zeroFrom >= 0 && at - zeroFrom >= MIN_RUN_BYTES && runs.length < MAX_NUMBERS / 8) runs.push(zeroFrom, at);
      zeroFrom = -1;
    };
    const take = (length: number, zero: boolean): void => {
      if (zero && at < end) {
        if (zeroFrom < 0) zeroFrom = at;
      } else closeRun();
      at = Math.min(end, at + length);
    };
    for (let questions = 0; questions < MAX_QUESTIONS; questions++) {
      if (!(await this.#ask(at, end - at, take, signal)) || at >= end) break;
    }
    closeRun();
    return runs;
  }

  #remember(index: number, runs: Runs): void {
    this.#regions.set(index, runs);
    this.#numbers += runs.length;
    while (this.#numbers > MAX_NUMBERS || this.#regions.size > MAX_REGIONS) {
      const [oldest, gone] = this.#regions.entries().next().value!;
      this.#regions.delete(oldest);
      this.#numbers -= gone.length;
    }
  }
}

function runAt(runs: Runs, offset: number, regionEnd: number): { zero: boolean; end: number } {
  // The number of begins and ends up to `offset`: odd within zeros.
  const passed = firstIndex(runs.length, (index) => runs[index] > offset);
  return { zero: passed % 2 === 1, end: passed < runs.length ? runs[passed] : regionEnd };
}
