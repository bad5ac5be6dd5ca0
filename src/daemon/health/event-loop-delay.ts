import { type ELDHistogram, monitorEventLoopDelay } from "node:perf_hooks";

/** A timer that is due every so often is watched: it can't be early, so its period is no delay. */
const resolutionMs = 20;
const windowMs = 60_000;

export interface Delay {
  p50Ms: number;
  p99Ms: number;
  maxMs: number;
}

/** How late timers ran: whatever held up the event loop held up every client. */
export class EventLoopDelay {
  readonly #total = monitorEventLoopDelay({ resolution: resolutionMs });
  readonly #window = monitorEventLoopDelay({ resolution: resolutionMs });
  #lastWindow: Delay | undefined;
  readonly #timer: NodeJS.Timeout;

  constructor() {
    this.#total.enable();
    this.#window.enable();
    this.#timer = setInterval(() => {
      this.#lastWindow = delayOf(this.#window);
      this.#window.reset();
    }, windowMs);
    this.#timer.unref();
  }

  /** Since the start. */
  total(): Delay {
    return delayOf(this.#total);
  }

  /** Of the last complete minute; undefined in the first one, which begins with the start of the process. */
  lastMinute(): Delay | undefined {
    return this.#lastWindow;
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#total.disable();
    this.#window.disable();
  }
}

function delayOf(histogram: ELDHistogram): Delay {
  const late = (nanoseconds: number): number => Math.max(0, nanoseconds / 1e6 - resolutionMs);
  return { p50Ms: late(histogram.percentile(50)), p99Ms: late(histogram.percentile(99)), maxMs: late(histogram.max) };
}
