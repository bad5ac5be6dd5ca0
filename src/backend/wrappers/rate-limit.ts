import type { Clock } from "../../base/clock.ts";
import type { Backend, Identity, ReadOptions, Sink } from "../backend.ts";
import { WrappedBackend } from "./wrapped-backend.ts";

/** What came in at once may be so much ahead of the rate, in seconds of it. */
const burstSeconds = 0.25;
/** Nobody sleeps longer without a look at the limit. */
const longestNapMs = 1000;

/**
 * One rate for the bytes that all sources of the host together deliver, changed at any time. Both classes pay into one
 * account; the foreground waits only for what the foreground itself has taken, the background for both:
 *
 *     foreground debt   what the foreground took and the rate has not yet paid off
 *     all debt          the same for everything; a background chunk waits until it is paid off
 *
 * So the background never delays the foreground, and gets what that leaves.
 */
export class HostRateLimit {
  readonly #clock: Clock;
  #bytesPerSecond: number | null;
  #foregroundDebt = 0;
  #allDebt = 0;
  #paidAt: number;
  #changed = new AbortController();

  /** @param bytesPerSecond null: no limit */
  constructor(clock: Clock, bytesPerSecond: number | null = null) {
    this.#clock = clock;
    this.#bytesPerSecond = bytesPerSecond;
    this.#paidAt = clock.now();
  }

  get bytesPerSecond(): number | null {
    return this.#bytesPerSecond;
  }

  /** Holds at once, for those who wait as well. */
  set bytesPerSecond(value: number | null) {
    this.#pay();
    this.#bytesPerSecond = value;
    this.#foregroundDebt = 0;
    this.#allDebt = 0;
    this.#changed.abort(new Error("the limit was changed"));
    this.#changed = new AbortController();
  }

  /**
   * Counts bytes that have come.
   * @param isBackground asked again while they wait @returns undefined, or when the next ones may come
   */
  take(bytes: number, isBackground: () => boolean, signal?: AbortSignal): Promise<void> | undefined {
    if (this.#bytesPerSecond === null) return undefined;
    this.#pay();
    this.#allDebt += bytes;
    const background = isBackground();
    if (!background) this.#foregroundDebt += bytes;
    return this.#waitMs(background) === 0 ? undefined : this.#wait(isBackground, signal);
  }

  async #wait(isBackground: () => boolean, signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      const waitMs = this.#waitMs(isBackground());
      if (waitMs === 0) return;
      const woken = this.#changed.signal;
      const stop = signal === undefined ? woken : AbortSignal.any([signal, woken]);
      try {
        await this.#clock.sleep(Math.min(waitMs, longestNapMs), stop);
      } catch (error) {
        if (signal?.aborted === true) throw error;
      }
      this.#pay();
    }
  }

  #waitMs(background: boolean): number {
    const rate = this.#bytesPerSecond;
    if (rate === null) return 0;
    const debt = background ? this.#allDebt : this.#foregroundDebt;
    return Math.max(0, Math.ceil((debt / rate - burstSeconds) * 1000));
  }

  #pay(): void {
    const now = this.#clock.now();
    const paid = ((now - this.#paidAt) * (this.#bytesPerSecond ?? 0)) / 1000;
    this.#paidAt = now;
    this.#foregroundDebt = Math.max(0, this.#foregroundDebt - paid);
    this.#allDebt = Math.max(0, this.#allDebt - paid);
  }
}

/**
 * A backend whose bytes are counted by a rate limit, retried ones included: each chunk waits until it is paid for. A probe
 * does not: it is one small answer that somebody waits for.
 */
export class RateLimitedBackend extends WrappedBackend {
  readonly #limit: HostRateLimit;

  constructor(inner: Backend, limit: HostRateLimit) {
    super(inner);
    this.#limit = limit;
  }

  override read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.inner.read(identity, offset, length, this.#limited(sink, options), options);
  }

  override stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    // Whole objects are fetched while nobody reads them yet: all else goes first.
    return this.inner.stream(identity, this.#limited(sink, { ...options, background: true }), options);
  }

  #limited(sink: Sink, options: ReadOptions | undefined): Sink {
    const { background = false, hurry, signal } = options ?? {};
    const isBackground = (): boolean => background && hurry?.aborted !== true;
    return (chunk) => {
      const waiting = this.#limit.take(chunk.length, isBackground, signal);
      return waiting === undefined ? sink(chunk) : waiting.then(() => sink(chunk));
    };
  }
}
