import type { Clock } from "../../base/clock.ts";
import type { BlobZeros } from "../blob.ts";
import { RangeMap } from "../range-map.ts";
import type { SharedZeros } from "../shared-readiness.ts";
import { ZeroQuestions } from "../zero-questions.ts";
import { maxLearnBytes } from "./wire.ts";

export interface RemoteZerosOptions {
  readonly size: number;
  readonly unitBytes: number;
  readonly clock: Clock;
  /** What the manager writes into. */
  readonly shared: SharedZeros;
  /** Has the manager learn; resolves when there is nothing to wait for. @param length `maxLearnBytes` at most */
  ask(offset: number, length: number): Promise<void>;
}

/**
 * What one manager knows of a blob's zeros: it is looked up in memory that the manager shares, and the manager is asked
 * about what is not told there. While it is away nobody waits for it but who came first, for a moment.
 */
export class RemoteZeros implements BlobZeros {
  readonly #options: RemoteZerosOptions;
  readonly #zeros: RangeMap;
  readonly #told: RangeMap;
  readonly #questions: ZeroQuestions;

  constructor(options: RemoteZerosOptions) {
    const { size, unitBytes, clock, shared } = options;
    this.#options = options;
    this.#zeros = new RangeMap(size, unitBytes, shared.zeros);
    this.#told = new RangeMap(size, unitBytes, shared.told);
    this.#questions = new ZeroQuestions({
      clock,
      told: this.#told,
      progress: () => shared.toldUnits,
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

  /** Step by step, for as long as all of a step is told. */
  async #ask(offset: number, length: number): Promise<void> {
    const end = Math.min(offset + length, this.#options.size);
    for (let at = offset; at < end;) {
      const step = Math.min(maxLearnBytes, end - at);
      await this.#options.ask(at, step);
      if (!this.#told.isReady(at, 1)) return;
      const told = this.#told.readyRun(at, step);
      if (told < step) return;
      at += told;
    }
  }
}
