import type { Clock } from "../base/clock.ts";

/** Long work leaves the event loop to others after so much of it. */
const sliceMs = 0.5;

/** How work of low priority shares the event loop: short slices, a turn for everybody else between them. */
export class Pace {
  readonly #clock: Clock;
  readonly #signal: AbortSignal | undefined;
  #began: number;

  /** @param signal ends the work: `rest` then rejects with its reason */
  constructor(clock: Clock, signal?: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
    this.#began = clock.now();
  }

  /** Whether it is time to rest. */
  get due(): boolean {
    return this.#clock.now() - this.#began >= sliceMs;
  }

  async rest(): Promise<void> {
    this.#signal?.throwIfAborted();
    await this.#clock.sleep(0, this.#signal);
    this.#began = this.#clock.now();
  }
}
