import type { Clock } from "../base/clock.ts";
import type { RangeMap } from "./range-map.ts";

/*
 * Who waits for answers about a blob's zeros, and how long. One question is asked at a time. Who waits for its answer waits
 * for WAIT_MS at most. If nothing at all has been told by then, nobody waits for this question any more, nor asks another
 * one before it has ended; after one that failed, nobody asks for PAUSE_MS. So who is down, slow or throttled holds
 * somebody up for a moment now and then, and not each time.
 */

/** What somebody waits for an answer at most. */
const WAIT_MS = 1000;
/** After a failure, the next question is asked so much later at the earliest. */
const PAUSE_MS = 10_000;

export interface ZeroOracle {
  readonly clock: Clock;
  /** The units that were told of, be they zeros or not. */
  readonly told: RangeMap;
  /** Is another number after something was told. */
  progress(): number;
  /** There is no use in asking now. */
  isNeedless?(): boolean;
  /** Asks about a range. What is not told of then won't be by asking again at once. Rejects: it may be by asking later. */
  ask(offset: number, length: number): Promise<void>;
}

export class ZeroQuestions {
  readonly #oracle: ZeroOracle;
  #asking: Promise<void> | undefined;
  /** Somebody has waited for `#asking` in vain. */
  #stalled = false;
  #notBefore = 0;

  constructor(oracle: ZeroOracle) {
    this.#oracle = oracle;
  }

  /** See `BlobZeros.learn`. */
  learn(offset: number, length: number): Promise<number> | undefined {
    const { clock } = this.#oracle;
    if (this.#stalled || this.#isTold(offset, length) || this.#oracle.isNeedless?.() === true) return undefined;
    return clock.now() < this.#notBefore ? undefined : this.#learn(offset, length);
  }

  #isTold(offset: number, length: number): boolean {
    const { told } = this.#oracle;
    if (told.missing === 0) return true;
    const end = told.unitEnd(offset, length);
    return told.nextMissing(told.unitAt(offset), end) === end;
  }

  async #learn(offset: number, length: number): Promise<number> {
    const { clock, told } = this.#oracle;
    const answered = new AbortController();
    const before = this.#oracle.progress();
    const tooLate = clock
      .sleep(WAIT_MS, answered.signal)
      .catch(() => undefined)
      .then(() => true);
    for (let mine = false; !mine && !this.#isTold(offset, length) && clock.now() >= this.#notBefore;) {
      mine = this.#asking === undefined;
      this.#asking ??= this.#ask(offset, length);
      if ((await Promise.race([this.#asking, tooLate])) !== true) continue;
      this.#stalled = this.#asking !== undefined && this.#oracle.progress() === before;
      break;
    }
    answered.abort();
    return told.isReady(offset, 1) ? told.readyRun(offset, length) : 0;
  }

  /** Never rejects. */
  async #ask(offset: number, length: number): Promise<void> {
    try {
      await this.#oracle.ask(offset, length);
    } catch {
      // The read that needs it meets the failure, and counts it.
      this.#notBefore = this.#oracle.clock.now() + PAUSE_MS;
    } finally {
      this.#asking = undefined;
      this.#stalled = false;
    }
  }
}
