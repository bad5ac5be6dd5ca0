import type { Clock } from "../../base/clock.ts";
import { SourceError } from "../../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "../backend.ts";
import { RetryBudget } from "./retry-budget.ts";
import { SourceBusyError, backendClosed } from "../source-errors.ts";
import { WrappedBackend } from "./wrapped-backend.ts";

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
  /** Shared by all that use the same connections; default: one of its own. */
  budget?: RetryBudget;
}

/** The longest time for which a source may tell the background to leave it alone. */
const longestAloneMs = 60_000;

const defaults: Required<Omit<RetryOptions, "budget">> = {
  probe: { attempts: 3, baseMs: 100, capMs: 1000, timeLimitMs: 3_000 },
  foreground: { attempts: 40, baseMs: 50, capMs: 2_000, timeLimitMs: 30_000 },
  background: { attempts: 8, baseMs: 500, capMs: 15_000, timeLimitMs: 60_000 },
};

/**
 * Tries transient failures again, with exponential back-off, full jitter and a shared budget, and at least as late as
 * the source's Retry-After asks. Until then the background leaves the source alone altogether.
 *
 * A retried read goes on behind the last byte that the sink has seen: both parts are of the same pinned version, so the
 * sink sees every byte once and in order. A failure that casts doubt on bytes already delivered (`source-bad-answer`)
 * is not retried once there are any, and neither is a stream, which has no ranges to go on with.
 */
export class RetryBackend extends WrappedBackend {
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #policies: Required<Omit<RetryOptions, "budget">>;
  readonly #budget: RetryBudget;
  readonly #closing = new AbortController();

  constructor(inner: Backend, options: RetryOptions & { clock: Clock; random: () => number }) {
    const { clock, random, budget = new RetryBudget(clock), ...policies } = options;
    super(inner);
    this.#clock = clock;
    this.#random = random;
    this.#policies = { ...defaults, ...policies };
    this.#budget = budget;
  }

  override probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const attempt = (): Promise<Probe> => this.inner.probe(headBytes, signal);
    const mayRetry = (): boolean => true;
    const options = signal === undefined ? {} : { signal };
    return this.#retry(new Operation(this.#clock, this.#policies.probe, { mayRetry, options }), attempt);
  }

  override read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const policy = options?.background === true ? this.#policies.background : this.#policies.foreground;
    const mayRetry = (error: SourceError): boolean => counting.bytes === 0 || error.code !== "source-bad-answer";
    return this.#retry(new Operation(this.#clock, policy, { mayRetry, options }), () =>
      this.inner.read(identity, offset + counting.bytes, length - counting.bytes, counting.sink, options),
    );
  }

  override stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const mayRetry = (): boolean => counting.bytes === 0;
    const about = { mayRetry, options: { ...options, background: true } };
    return this.#retry(new Operation(this.#clock, this.#policies.background, about), () =>
      this.inner.stream(identity, counting.sink, options),
    );
  }

  override async close(): Promise<void> {
    this.#closing.abort(backendClosed());
    await this.inner.close();
  }

  async #retry<T>(operation: Operation, attempt: () => Promise<T>): Promise<T> {
    for (;;) {
      if (operation.background) await this.#leaveAlone(operation);
      operation.attempts++;
      try {
        return await attempt();
      } catch (error) {
        this.#noteBusy(error);
        if (!(error instanceof SourceError) || !error.transient || !operation.mayRetry(error)) throw error;
        this.#hasten(operation);
        if (operation.attempts >= operation.policy.attempts) throw error;
        operation.options?.onRetry?.(error);
        await this.#pause(operation, error);
      }
    }
  }

  async #leaveAlone(operation: Operation): Promise<void> {
    const { aloneMs } = this.#budget;
    if (aloneMs > 0) await this.#sleep(aloneMs, operation);
  }

  #noteBusy(error: unknown): void {
    if (!(error instanceof SourceBusyError) || error.retryAfterMs === undefined) return;
    this.#budget.leaveAlone(Math.min(error.retryAfterMs, longestAloneMs));
  }

  /** @returns whether the operation is one of the foreground from now on */
  #hasten(operation: Operation): boolean {
    const isNew = operation.background && operation.options?.hurry?.aborted === true;
    if (isNew) operation.hasten(this.#policies.foreground);
    return isNew;
  }

  /** @returns whether it was cut short because somebody has come to wait */
  async #sleep(ms: number, operation: Operation): Promise<boolean> {
    if (this.#hasten(operation)) return true;
    const { signal, hurry } = operation.options ?? {};
    const stop = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    const wake = operation.background && hurry !== undefined ? AbortSignal.any([stop, hurry]) : stop;
    try {
      await this.#clock.sleep(ms, wake);
    } catch (error) {
      if (stop.aborted || !this.#hasten(operation)) throw error;
      return true;
    }
    return false;
  }

  /** Waits for the next attempt's turn. @throws error when that would be after the deadline */
  async #pause(operation: Operation, error: SourceError): Promise<void> {
    const { policy, attempts } = operation;
    const atLeastMs = (error instanceof SourceBusyError ? error.retryAfterMs : undefined) ?? 0;
    let waitMs = atLeastMs + this.#random() * Math.min(policy.capMs, policy.baseMs * 2 ** attempts);
    for (;;) {
      if (this.#clock.now() + waitMs > operation.deadline) throw error;
      if (await this.#sleep(waitMs, operation)) return;
      if (this.#budget.take(operation.background)) return;
      // Many reads failed at once. Theirs is a queue without order, whose length the deadline bounds.
      waitMs = policy.baseMs + this.#random() * policy.capMs;
    }
  }
}

/** One read with all its attempts. */
class Operation {
  readonly options: ReadOptions | undefined;
  readonly mayRetry: (error: SourceError) => boolean;
  readonly #clock: Clock;
  policy: RetryPolicy;
  background: boolean;
  attempts = 0;
  /** No attempt starts later. */
  deadline: number;

  constructor(
    clock: Clock,
    policy: RetryPolicy,
    { options, mayRetry }: { options: ReadOptions | undefined; mayRetry: (error: SourceError) => boolean },
  ) {
    this.#clock = clock;
    this.policy = policy;
    this.options = options;
    this.background = options?.background === true;
    this.mayRetry = mayRetry;
    this.deadline = clock.now() + policy.timeLimitMs;
  }

  /** Somebody waits for it now, and gets all the attempts of his policy. */
  hasten(policy: RetryPolicy): void {
    this.background = false;
    this.policy = policy;
    this.attempts = 0;
    this.deadline = this.#clock.now() + policy.timeLimitMs;
  }
}

/** A sink that knows how many bytes went through it. */
export function countingSink(sink: Sink): { bytes: number; sink: Sink } {
  const counting = {
    bytes: 0,
    sink: (chunk: Uint8Array): void | Promise<void> => {
      counting.bytes += chunk.length;
      return sink(chunk);
    },
  };
  return counting;
}
