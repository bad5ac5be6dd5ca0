import type { Clock } from "../base/clock.ts";
import { SourceError } from "../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "./backend.ts";
import { SourceBusyError, backendClosed } from "./source-errors.ts";

export interface RetryPolicy {
  /** Attempts in all, the first one included. */
  attempts: number;
  /** The pause before retry n is uniform in [0, min(capMs, baseMs x 2^n)): full jitter. */
  baseMs: number;
  capMs: number;
  /** No attempt starts later than this after the first one. An attempt itself is bounded by the backend's time-outs. */
  timeLimitMs: number;
}

export interface RetryOptions {
  /** Finding out what a source is: somebody sits in front of it. */
  probe?: RetryPolicy;
  /** Reads that a client waits for: long enough to outlive a server's restart, because a guest takes EIO to heart. */
  foreground?: RetryPolicy;
  background?: RetryPolicy;
  /**
   * Retries that all reads of the source together may send: a bucket that holds `burst` and gains `perSecond`. The
   * lower half of it is for the foreground only.
   */
  budget?: { burst: number; perSecond: number };
}

const defaults: Required<RetryOptions> = {
  probe: { attempts: 3, baseMs: 100, capMs: 1000, timeLimitMs: 3_000 },
  foreground: { attempts: 40, baseMs: 50, capMs: 2_000, timeLimitMs: 30_000 },
  background: { attempts: 8, baseMs: 500, capMs: 15_000, timeLimitMs: 60_000 },
  budget: { burst: 32, perSecond: 16 },
};

/**
 * Tries transient failures again, with exponential back-off, full jitter and a shared budget, and at least as late as
 * the source's Retry-After asks.
 *
 * A retried read goes on behind the last byte that the sink has seen: both parts are of the same pinned version, so the
 * sink sees every byte once and in order. A failure that casts doubt on bytes already delivered (`source-bad-answer`)
 * is not retried once there are any, and neither is a stream, which has no ranges to go on with.
 */
export class RetryBackend implements Backend {
  readonly url: string;
  readonly #inner: Backend;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #policies: Required<RetryOptions>;
  readonly #closing = new AbortController();
  #tokens: number;
  #refilledAt: number;

  constructor(inner: Backend, options: RetryOptions & { clock: Clock; random: () => number }) {
    const { clock, random, ...policies } = options;
    this.url = inner.url;
    this.#inner = inner;
    this.#clock = clock;
    this.#random = random;
    this.#policies = { ...defaults, ...policies };
    this.#tokens = this.#policies.budget.burst;
    this.#refilledAt = clock.now();
  }

  probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const attempt = (): Promise<Probe> => this.#inner.probe(headBytes, signal);
    const policy = this.#policies.probe;
    return this.#retry({ policy, signal, background: false, mayRetry: () => true, onRetry: undefined }, attempt);
  }

  read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const background = options?.background === true;
    const policy = background ? this.#policies.background : this.#policies.foreground;
    const mayRetry = (error: SourceError): boolean => counting.bytes === 0 || error.code !== "source-bad-answer";
    return this.#retry({ policy, background, signal: options?.signal, mayRetry, onRetry: options?.onRetry }, () =>
      this.#inner.read(identity, offset + counting.bytes, length - counting.bytes, counting.sink, options),
    );
  }

  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const policy = this.#policies.background;
    const mayRetry = (): boolean => counting.bytes === 0;
    const { signal, onRetry } = options ?? {};
    return this.#retry({ policy, background: true, signal, mayRetry, onRetry }, () =>
      this.#inner.stream(identity, counting.sink, options),
    );
  }

  async close(): Promise<void> {
    this.#closing.abort(backendClosed());
    await this.#inner.close();
  }

  async #retry<T>(operation: Operation, attempt: () => Promise<T>): Promise<T> {
    const { policy } = operation;
    const deadline = this.#clock.now() + policy.timeLimitMs;
    for (let attempts = 1; ; attempts++) {
      try {
        return await attempt();
      } catch (error) {
        if (!(error instanceof SourceError) || !error.transient || !operation.mayRetry(error)) throw error;
        if (attempts >= policy.attempts) throw error;
        operation.onRetry?.(error);
        await this.#pause(operation, attempts, deadline, error);
      }
    }
  }

  /** Waits for the next attempt's turn. @throws error when that would be after the deadline */
  async #pause(operation: Operation, attempts: number, deadline: number, error: SourceError): Promise<void> {
    const { policy, signal, background } = operation;
    const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    const atLeastMs = (error instanceof SourceBusyError ? error.retryAfterMs : undefined) ?? 0;
    let waitMs = atLeastMs + this.#random() * Math.min(policy.capMs, policy.baseMs * 2 ** attempts);
    for (;;) {
      if (this.#clock.now() + waitMs > deadline) throw error;
      await this.#clock.sleep(waitMs, stop);
      if (this.#takeToken(background)) return;
      // Many reads failed at once. Theirs is a queue without order, whose length the deadline bounds.
      waitMs = policy.baseMs + this.#random() * policy.capMs;
    }
  }

  #takeToken(background: boolean): boolean {
    const { burst, perSecond } = this.#policies.budget;
    const now = this.#clock.now();
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#refilledAt) * perSecond) / 1000);
    this.#refilledAt = now;
    if (this.#tokens < 1 + (background ? burst / 2 : 0)) return false;
    this.#tokens--;
    return true;
  }
}

interface Operation {
  policy: RetryPolicy;
  background: boolean;
  signal: AbortSignal | undefined;
  mayRetry(error: SourceError): boolean;
  onRetry: ((error: SourceError) => void) | undefined;
}

function countingSink(sink: Sink): { bytes: number; sink: Sink } {
  const counting = {
    bytes: 0,
    sink: (chunk: Uint8Array): void | Promise<void> => {
      counting.bytes += chunk.length;
      return sink(chunk);
    },
  };
  return counting;
}
