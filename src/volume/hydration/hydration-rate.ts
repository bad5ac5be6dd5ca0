import type { Clock } from "../../base/clock.ts";

/** A change of the limit is noticed after this long at most. */
const MAX_NAP_MS = 250;

/** Unused allowance does not pile up beyond what this much time would give. */
const BURST_MS = 100;

/** Holds a caller back to so many bytes per second. For one caller at a time. */
export class RateLimit {
  /** bytes per second; null: none. May be changed at any time. */
  bytesPerSecond: number | null;
  readonly #clock: Clock;
  /** Bytes that may be taken now; below zero: taken in advance. */
  #allowance = 0;
  #filledAt: number;

  constructor(clock: Clock, bytesPerSecond: number | null) {
    this.#clock = clock;
    this.bytesPerSecond = bytesPerSecond;
    this.#filledAt = clock.now();
  }

  /** Resolves when `bytes` may be taken. @throws the signal's reason */
  async take(bytes: number, signal: AbortSignal): Promise<void> {
    for (;;) {
      const rate = this.bytesPerSecond;
      const now = this.#clock.now();
      if (rate === null) {
        this.#allowance = 0;
        this.#filledAt = now;
        return;
      }
      const grown = this.#allowance + ((now - this.#filledAt) * rate) / 1000;
      this.#allowance = Math.min(grown, (rate * BURST_MS) / 1000);
      this.#filledAt = now;
      if (this.#allowance >= 0) {
        this.#allowance -= bytes;
        return;
      }
      await this.#clock.sleep(Math.min(MAX_NAP_MS, Math.max(1, (-this.#allowance * 1000) / rate)), signal);
    }
  }
}

/** How fast a counter has been growing lately. */
export class RateMeter {
  readonly #clock: Clock;
  /** Oldest first. */
  #samples: { at: number; value: number }[] = [];

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  reset(): void {
    this.#samples = [];
  }

  /** Cheap enough to be called for every megabyte. */
  note(value: number): void {
    const at = this.#clock.now();
    const last = this.#samples.at(-1);
    if (last !== undefined && at - last.at < SAMPLE_MS) return;
    this.#samples.push({ at, value });
    while (this.#samples.length > 2 && at - this.#samples[0].at > WINDOW_MS) this.#samples.shift();
  }

  /** Growth per second up to `value`, which is the counter now; 0 while nothing is known. */
  perSecond(value: number): number {
    const first = this.#samples[0];
    if (first === undefined) return 0;
    const elapsed = this.#clock.now() - first.at;
    return elapsed < SAMPLE_MS ? 0 : Math.max(0, Math.round(((value - first.value) * 1000) / elapsed));
  }
}

const SAMPLE_MS = 250;
const WINDOW_MS = 8000;
