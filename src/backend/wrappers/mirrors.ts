import type { Clock } from "../../base/clock.ts";
import { describeError, SourceError } from "../../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "../backend.ts";
import { countingSink } from "./retry.ts";
import { SourceBusyError } from "../source-errors.ts";
import { WrappedBackend } from "./wrapped-backend.ts";

/*
 * A source with mirrors. Reads go to the first mirror that is well, and on behind the last byte that arrived to the next
 * when it fails; the source itself comes last. What an object *is* the source says, and mirrors only when it is out of
 * reach. A mirror that has something else under that name, or nothing, is not asked for this object any more.
 *
 *     well --fails--> resting (5 s, doubled up to a minute) --time is up: a probe, beside the reads--> well, or resting
 */

const firstRestMs = 5_000;
const longestRestMs = 60_000;
const checkTimeoutMs = 10_000;

/** How a mirror is; shared by all objects that it serves. */
export class MirrorHealth {
  readonly #clock: Clock;
  #restMs = 0;
  #restsUntil = -Infinity;
  #checking = false;
  /** Why it rests; undefined: it is well. */
  trouble: SourceError | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  failed(error: SourceError): void {
    this.trouble = error;
    this.#restMs = Math.min(Math.max(firstRestMs, this.#restMs * 2), longestRestMs);
    this.#restsUntil = this.#clock.now() + this.#restMs;
  }

  recovered(): void {
    this.trouble = undefined;
    this.#restMs = 0;
  }

  /** Looks whether it is well again, when that is due; reads do not wait for it. */
  check(probe: (signal: AbortSignal) => Promise<unknown>): void {
    if (this.trouble === undefined || this.#checking || this.#clock.now() < this.#restsUntil) return;
    this.#checking = true;
    probe(AbortSignal.timeout(checkTimeoutMs))
      .then(
        () => this.recovered(),
        (error: unknown) =>
          this.failed(
            error instanceof SourceError
              ? error
              : new SourceError("source-timeout", "the mirror did not answer in time", { transient: true }),
          ),
      )
      .finally(() => (this.#checking = false));
  }
}

export interface Mirror {
  backend: Backend;
  health: MirrorHealth;
}

/** What the source said, and below it what its mirrors did; a moment that it asked for is kept. */
function withMirrors(error: SourceError, reasons: readonly string[]): SourceError {
  if (error instanceof SourceBusyError) return error;
  const hint = `${error.hint ?? "see what is wrong there"}; its mirrors: ${reasons.join("; ")}`;
  return new SourceError(error.code, error.message, { transient: true, hint, cause: error.cause });
}

/** Errors that say that a mirror does not have this object; all others say that it is not well. */
const otherObject = new Set([
  "source-changed",
  "source-forbidden",
  "source-not-found",
  "source-no-ranges",
  "source-encoded",
  "source-wrong-bytes",
]);

export class MirroredBackend extends WrappedBackend {
  /** Those that have this object, as far as is known. */
  readonly #mirrors: Set<Mirror>;
  readonly #all: readonly Mirror[];

  constructor(source: Backend, mirrors: readonly Mirror[]) {
    super(source);
    this.#all = mirrors;
    this.#mirrors = new Set(mirrors);
  }

  override async probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    try {
      return await this.inner.probe(headBytes, signal);
    } catch (error) {
      if (!(error instanceof SourceError) || !error.transient) throw error;
      const reasons: string[] = [];
      for (const { backend } of this.#all) {
        signal?.throwIfAborted();
        try {
          const found = await backend.probe(headBytes, signal);
          if (found.identity.strong) return found;
          reasons.push(`${backend.url} offers nothing by which a change could be noticed`);
        } catch (why) {
          reasons.push(describeError(why));
        }
      }
      throw withMirrors(error, reasons);
    }
  }

  override read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    const from = (backend: Backend): Promise<void> =>
      backend.read(identity, offset + counting.bytes, length - counting.bytes, counting.sink, options);
    return this.#failOver(
      identity,
      from,
      (error) => counting.bytes === 0 || error.code !== "source-bad-answer",
      options,
    );
  }

  override stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const counting = countingSink(sink);
    return this.#failOver(
      identity,
      (backend) => backend.stream(identity, counting.sink, options),
      () => counting.bytes === 0,
      options,
    );
  }

  override async close(): Promise<void> {
    await Promise.all([this.inner, ...this.#all.map(({ backend }) => backend)].map((backend) => backend.close()));
  }

  async #failOver(
    identity: Identity,
    from: (backend: Backend) => Promise<void>,
    mayGoOn: (error: SourceError) => boolean,
    options: ReadOptions | undefined,
  ): Promise<void> {
    // Without a pin that is sure, bytes of a mirror might be those of another version.
    for (const mirror of identity.strong ? [...this.#mirrors] : []) {
      const { backend, health } = mirror;
      if (health.trouble !== undefined) {
        health.check((signal) => backend.probe(1, signal));
        continue;
      }
      try {
        return await from(backend);
      } catch (error) {
        if (!(error instanceof SourceError) || error.code === "source-closed" || options?.signal?.aborted) throw error;
        if (otherObject.has(error.code)) this.#mirrors.delete(mirror);
        else health.failed(error);
        if (!mayGoOn(error)) throw error;
        options?.onRetry?.(error);
      }
    }
    return from(this.inner);
  }
}
