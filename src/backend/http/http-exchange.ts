import type { Dispatcher } from "undici";
import { SourceError } from "../../base/errors.ts";
import type { Sink } from "../backend.ts";
import type { ResponseHead } from "./http-answer.ts";
import { type Target, shown } from "./http-target.ts";
import { badAnswer, timedOut, tlsFailed, unreachable } from "../source-errors.ts";

/** The body of an unwanted answer is read up to here, so that its connection can be used again; then it is cut. */
const discardLimitBytes = 64 * 1024;

export interface ExchangeRequest {
  target: Target;
  headers: Record<string, string>;
  /** A form to be posted; absent: GET. */
  body?: string;
  /** Bytes that the answer should carry: sets how long it may take in all. */
  length: number;
  signal: AbortSignal | undefined;
}

export interface ExchangeLimits {
  /** Longest wait for the first byte, and between any two. */
  idleTimeoutMs: number;
  /** A source slower than this is as good as stalled: an answer may take the idle timeout plus its length over this. */
  minBytesPerSecond: number;
}

/**
 * What to do with the body, decided from the head of the answer:
 * - exactly: `length` bytes go to `sink`; more or fewer are an error
 * - upTo: at most `length` bytes go to `take`, then the connection is cut
 * - discard: nobody wants it; ends with `error`, if there is one
 */
export type BodyPlan =
  | { kind: "exactly"; length: number; sink: Sink }
  | { kind: "upTo"; length: number; take: (chunk: Uint8Array) => void }
  | { kind: "discard"; error?: SourceError };

/**
 * One request and its answer. The body flows into the sink as it arrives, in the buffers it arrived in; while the sink's
 * promise is pending the connection is not read. Time that the sink takes is not the source's, and not counted.
 * @param decide sees the head of the answer; what it throws ends the exchange
 */
export async function exchange(
  dispatcher: Dispatcher,
  request: ExchangeRequest,
  limits: ExchangeLimits,
  decide: (head: ResponseHead) => BodyPlan,
): Promise<void> {
  const { target } = request;
  const handler = new Exchange(request, limits, decide);
  const headers = { ...request.headers, "accept-encoding": "identity", "user-agent": "ullage" };
  dispatcher.dispatch(
    {
      origin: target.url.origin,
      path: target.url.pathname + target.url.search,
      method: request.body === undefined ? "GET" : "POST",
      body: request.body ?? null,
      headers: target.authorization === undefined ? headers : { ...headers, authorization: target.authorization },
      // Exchange has its own clocks: these tick in whole seconds and cannot see who is slow.
      headersTimeout: 0,
      bodyTimeout: 0,
    },
    handler,
  );
  try {
    await handler.settled;
  } finally {
    // The sink is never left running behind the exchange's back.
    await handler.draining;
  }
}

class Exchange implements Dispatcher.DispatchHandler {
  readonly settled: Promise<void>;
  /** The sink's promise, while it is pending; never rejects. */
  draining: Promise<void> | undefined;
  /** What came while it was: when the sender hangs up, the rest that was received comes although the connection is paused. */
  readonly #late: Buffer[] = [];
  #endedLate = false;

  readonly #where: string;
  readonly #signal: AbortSignal | undefined;
  readonly #decide: (head: ResponseHead) => BodyPlan;
  readonly #idleTimeoutMs: number;
  readonly #totalTimeoutMs: number;

  #controller: Dispatcher.DispatchController | undefined;
  #plan: BodyPlan | undefined;
  #received = 0;
  #isSettled = false;
  readonly #resolve: () => void;
  readonly #reject: (error: Error) => void;

  #timer: NodeJS.Timeout;
  readonly #startedAt = performance.now();
  #lastByteAt = this.#startedAt;
  /** Milliseconds spent waiting for the sink. */
  #sinkMs = 0;

  constructor(request: ExchangeRequest, limits: ExchangeLimits, decide: (head: ResponseHead) => BodyPlan) {
    ({ promise: this.settled, resolve: this.#resolve, reject: this.#reject } = Promise.withResolvers<void>());
    this.#where = shown(request.target.url);
    this.#signal = request.signal;
    this.#decide = decide;
    this.#idleTimeoutMs = limits.idleTimeoutMs;
    this.#totalTimeoutMs = limits.idleTimeoutMs + (request.length / limits.minBytesPerSecond) * 1000;
    this.#timer = setTimeout(this.#onTimer, this.#idleTimeoutMs);
    this.#signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (this.#signal?.aborted === true) this.#onAbort();
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#isSettled) controller.abort(new Error("no longer wanted"));
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: ResponseHead["headers"]): void {
    if (this.#isSettled || status < 200) return;
    this.#lastByteAt = performance.now();
    try {
      this.#plan = this.#decide({ status, headers });
    } catch (error) {
      this.#fail(error as Error);
      return;
    }
    // An object shorter than what was asked for may be empty: there is nothing to wait for then.
    if (this.#plan.kind === "upTo" && this.#plan.length === 0) this.#finish();
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Buffer): void {
    const plan = this.#plan;
    // The parser, when it is resumed, tells of nothing first: a sink that pauses for that would never get further.
    if (this.#isSettled || plan === undefined || chunk.length === 0) return;
    this.#lastByteAt = performance.now();
    this.#received += chunk.length;
    if (plan.kind === "discard") {
      if (this.#received > discardLimitBytes) this.#finish();
      return;
    }
    const excess = this.#received - plan.length;
    if (plan.kind === "upTo") {
      plan.take(excess > 0 ? chunk.subarray(0, chunk.length - excess) : chunk);
      if (excess >= 0) this.#finish();
      return;
    }
    if (excess > 0) {
      this.#fail(badAnswer(`${this.#where} sent more than the ${plan.length} bytes asked for`));
      return;
    }
    if (this.draining !== undefined) {
      this.#late.push(chunk);
      return;
    }
    try {
      const drained = plan.sink(chunk);
      if (drained !== undefined) {
        controller.pause();
        this.draining = this.#resumeAfter(drained, plan.sink, controller);
      }
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  onResponseEnd(): void {
    const plan = this.#plan;
    if (this.#isSettled) return;
    if (plan?.kind === "exactly" && this.#received < plan.length) {
      this.#fail(badAnswer(`${this.#where} sent ${this.#received} bytes where ${plan.length} were asked for`));
      return;
    }
    if (this.draining === undefined) this.#finish();
    else this.#endedLate = true;
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    this.#fail(this.#translate(error));
  }

  async #resumeAfter(drained: Promise<void>, sink: Sink, controller: Dispatcher.DispatchController): Promise<void> {
    const since = performance.now();
    try {
      await drained;
      for (let chunk; !this.#isSettled && (chunk = this.#late.shift()) !== undefined;) await sink(chunk);
    } catch (error) {
      this.#fail(error as Error);
    }
    this.draining = undefined;
    this.#lastByteAt = performance.now();
    this.#sinkMs += this.#lastByteAt - since;
    if (this.#endedLate) this.#finish();
    else if (!this.#isSettled) controller.resume();
  }

  #finish(): void {
    this.#settle(this.#plan?.kind === "discard" ? this.#plan.error : undefined);
  }

  #fail(error: Error): void {
    this.#settle(error);
  }

  /** Ends the exchange, once; hangs up when the answer is not complete. */
  #settle(error: Error | undefined): void {
    if (this.#isSettled) return;
    this.#isSettled = true;
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener("abort", this.#onAbort);
    if (error === undefined) this.#resolve();
    else this.#reject(error);
    this.#controller?.abort(error ?? new Error("no longer wanted"));
  }

  readonly #onAbort = (): void => {
    this.#fail(this.#signal!.reason as Error);
  };

  readonly #onTimer = (): void => {
    const now = performance.now();
    let leftMs = this.#idleTimeoutMs;
    if (this.draining === undefined) {
      const idleLeftMs = this.#lastByteAt + this.#idleTimeoutMs - now;
      const totalLeftMs = this.#startedAt + this.#sinkMs + this.#totalTimeoutMs - now;
      if (idleLeftMs <= 0) {
        this.#fail(timedOut(`${this.#where} sent nothing for ${this.#idleTimeoutMs} ms`));
        return;
      }
      if (totalLeftMs <= 0) {
        const took = `${Math.round(this.#totalTimeoutMs)} ms`;
        this.#fail(timedOut(`${this.#where} sent only ${this.#received} bytes in ${took}`));
        return;
      }
      leftMs = Math.min(idleLeftMs, totalLeftMs);
    }
    this.#timer = setTimeout(this.#onTimer, Math.ceil(leftMs));
  };

  #translate(thrown: Error): Error {
    if (thrown instanceof SourceError) return thrown;
    // A host with several addresses fails with one error for each; the first says enough.
    const error = thrown instanceof AggregateError ? (thrown.errors[0] as Error) : thrown;
    const code = (error as NodeJS.ErrnoException).code ?? "";
    if (code === "UND_ERR_CONNECT_TIMEOUT" || code === "ETIMEDOUT") {
      return timedOut(`${this.#where}: no connection in time`, { cause: error });
    }
    if (/^(ERR_TLS|ERR_SSL|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO)/.test(code)) {
      const hint =
        "check the address and the server's certificate; `ca` of [[sources.match]] names authorities of your own";
      return tlsFailed(`${this.#where}: TLS failed`, hint, error);
    }
    if (error.name === "HTTPParserError" || code === "UND_ERR_RES_CONTENT_LENGTH_MISMATCH") {
      return badAnswer(`${this.#where} sent a malformed answer`, error);
    }
    const when = this.#plan === undefined ? "before it answered" : `after ${this.#received} bytes`;
    const what = this.#controller === undefined ? "cannot be reached" : `broke the connection ${when}`;
    return unreachable(`${this.#where} ${what}`, error);
  }
}
