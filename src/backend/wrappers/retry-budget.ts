import type { Clock } from "../../base/clock.ts";

/**
 * What all reads over the same connections share when things go wrong: a bucket of retries that holds `burst` and gains
 * `perSecond`, whose lower half is for the foreground only, and the moment until which a source that is too busy asked to
 * be left alone, which the background keeps to.
 */
export class RetryBudget {
  readonly #clock: Clock;
  readonly #burst: number;
  readonly #perSecond: number;
  #tokens: number;
  #refilledAt: number;
  #busyUntil = -Infinity;

  constructor(clock: Clock, limits: { burst: number; perSecond: number } = { burst: 32, perSecond: 16 }) {
    this.#clock = clock;
    this.#burst = limits.burst;
    this.#perSecond = limits.perSecond;
    this.#tokens = limits.burst;
    this.#refilledAt = clock.now();
  }

  /** @returns whether a retry may be sent now */
  take(background: boolean): boolean {
    const now = this.#clock.now();
    this.#tokens = Math.min(this.#burst, this.#tokens + ((now - this.#refilledAt) * this.#perSecond) / 1000);
    this.#refilledAt = now;
    if (this.#tokens < 1 + (background ? this.#burst / 2 : 0)) return false;
    this.#tokens--;
    return true;
  }

  /** The source asked to be left alone for so long. */
  leaveAlone(ms: number): void {
    this.#busyUntil = Math.max(this.#busyUntil, this.#clock.now() + ms);
  }

  /** How long the background is to leave the source alone, ms. */
  get aloneMs(): number {
    return Math.max(0, this.#busyUntil - this.#clock.now());
  }
}
