import { Agent } from "undici";
import { SourceError } from "../base/errors.ts";
import { Admission } from "./admission.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "./backend.ts";
import {
  type ResponseHead,
  conditionsFor,
  contentLength,
  demandLength,
  demandPlain,
  demandRange,
  demandSameVersion,
  header,
  identityOf,
  ignoresRanges,
  needsCheckAfterwards,
  parseContentRange,
  statusError,
} from "./http-answer.ts";
import { type BodyPlan, type ExchangeLimits, exchange } from "./http-exchange.ts";
import { type Target, parseTarget, redirectedTarget, shown } from "./http-target.ts";
import type { SourcePolicy } from "./source-guard.ts";
import { backendClosed, badAnswer, sourceChanged } from "./source-errors.ts";

export interface HttpOptions {
  /** TCP and TLS handshake together. */
  connectTimeoutMs?: number;
  /** Longest wait for the first byte of an answer, and between any two bytes. */
  idleTimeoutMs?: number;
  /** An answer may take the idle timeout plus its length at this rate, however steadily it trickles. */
  minBytesPerSecond?: number;
  /** Connections to the source, of which background reads use at most `backgroundConnections`. */
  connections?: number;
  backgroundConnections?: number;
  /** Where requests may go, redirected ones included; absent: anywhere. */
  policy?: SourcePolicy;
}

const defaults: Required<Omit<HttpOptions, "policy">> = {
  connectTimeoutMs: 10_000,
  idleTimeoutMs: 15_000,
  // 16 connections that share a 2 Mbit/s line still get there.
  minBytesPerSecond: 16 * 1024,
  connections: 24,
  backgroundConnections: 16,
};

/** An idle connection is kept this long, unless the server's Keep-Alive header asks for less. */
const keepAliveMs = 30_000;
const redirectLimit = 10;
/** What a redirect's target answers once its address has expired: then the source is asked for a new one. */
const staleStatuses = new Set([401, 403, 404, 410]);
const redirectStatuses = new Set([301, 302, 303, 307, 308]);

/**
 * Ranges of one object over HTTP/1.1, over a pool of connections. The object is pinned by its validators (the table at
 * `identityOf`): every answer must carry those of the identity, 206, and exactly the range asked for, or none of its
 * bytes count. A version that is not pinned by a strong ETag is looked at once more after the last byte of each read.
 *
 * A redirect is followed once and its target remembered; the source is asked again when the target expires or fails.
 */
export class HttpBackend implements Backend {
  readonly url: string;
  readonly #source: Target;
  readonly #limits: ExchangeLimits;
  readonly #policy: SourcePolicy | undefined;
  readonly #agent: Agent;
  readonly #admission: Admission;
  readonly #closing = new AbortController();
  /** Where the source's redirects led to, while that works. */
  #resolved: Target | undefined;

  constructor(source: string, options: HttpOptions = {}) {
    const all = { ...defaults, ...options };
    this.#source = parseTarget(source);
    this.url = this.#source.url.href;
    this.#limits = all;
    this.#policy = all.policy;
    this.#admission = new Admission(all.connections, all.backgroundConnections);
    this.#agent = new Agent({
      connections: all.connections,
      // The policy judges the addresses that are connected to: whoever resolves a name has to be itself.
      connect: { timeout: all.connectTimeoutMs, ...(all.policy === undefined ? {} : { lookup: all.policy.lookup }) },
      keepAliveTimeout: keepAliveMs,
      keepAliveMaxTimeout: keepAliveMs,
    });
  }

  async probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const wanted = Math.max(1, headBytes);
    const head: Buffer[] = [];
    // The chunks are only ours until the sink returns.
    const sink = (chunk: Uint8Array): void => void head.push(Buffer.from(chunk));
    let identity: Identity | undefined;
    let ranges = true;
    const request: Request = { headers: { range: `bytes=0-${wanted - 1}` }, length: wanted, options: { signal } };
    await this.#send(request, (answer, where) => {
      demandPlain(where, answer.headers);
      const range = parseContentRange(header(answer.headers, "content-range"));
      if (answer.status === 416 && range?.total === 0) {
        identity = identityOf(answer.headers, 0);
        return { kind: "discard" };
      }
      if (answer.status === 200) {
        const size = contentLength(answer.headers);
        if (size === undefined) throw noSize(where);
        identity = identityOf(answer.headers, size);
        // An empty object has no ranges to ask for.
        ranges = size === 0;
        return { kind: "upTo", length: Math.min(wanted, size), take: sink };
      }
      if (answer.status !== 206) throw ignoresRanges(where, answer.status);
      if (range === undefined) throw badAnswer(`${where} answered 206 without a Content-Range`);
      if (range.total === undefined) throw noSize(where);
      identity = identityOf(answer.headers, range.total);
      const length = Math.min(wanted, range.total);
      demandRange(where, answer, identity, 0, length);
      return { kind: "exactly", length, sink };
    });
    return { identity: identity!, head: Buffer.concat(head).subarray(0, headBytes), ranges };
  }

  async read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    if (offset < 0 || length < 0 || offset + length > identity.size) {
      throw new RangeError(`${offset}+${length} is outside of the object's ${identity.size} bytes`);
    }
    if (length === 0) return;
    await this.#send(rangeRequest(identity, offset, length, options), (answer, where) => {
      demandRange(where, answer, identity, offset, length);
      return { kind: "exactly", length, sink };
    });
    if (!needsCheckAfterwards(identity)) return;
    await this.#send(rangeRequest(identity, offset, 1, options), (answer, where) => {
      demandRange(where, answer, identity, offset, 1);
      return { kind: "discard" };
    });
  }

  async stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    const demandWhole = (answer: ResponseHead, where: string): void => {
      if (answer.status !== 200) throw badAnswer(`${where} answered ${answer.status} instead of 200`);
      demandPlain(where, answer.headers);
      demandSameVersion(where, answer.headers, identity);
      const size = contentLength(answer.headers);
      if (size !== undefined && size !== identity.size) {
        throw sourceChanged(`${where} has changed: it had ${identity.size} bytes and now has ${size}`);
      }
      demandLength(where, answer.headers, identity.size);
    };
    const request: Request = { headers: conditionsFor(identity), length: identity.size, options };
    await this.#send(request, (answer, where) => {
      demandWhole(answer, where);
      return { kind: "exactly", length: identity.size, sink };
    });
    if (!needsCheckAfterwards(identity)) return;
    await this.#send({ ...request, length: 0 }, (answer, where) => {
      demandWhole(answer, where);
      return { kind: "upTo", length: 0, take: () => undefined };
    });
  }

  async close(): Promise<void> {
    this.#closing.abort(backendClosed());
    await this.#agent.destroy();
  }

  /** Sends a request to where the object is now, and lets `decide` judge every answer that is not a detour. */
  #send(request: Request, decide: (answer: ResponseHead, where: string) => BodyPlan): Promise<void> {
    const caller = request.options?.signal;
    const signal = caller ? AbortSignal.any([caller, this.#closing.signal]) : this.#closing.signal;
    return this.#admission.run(request.options?.background === true, signal, async () => {
      let target = this.#resolved ?? this.#source;
      let mayBeStale = target !== this.#source;
      for (let hops = 0; hops <= redirectLimit; hops++) {
        const at = target;
        let next: Target | undefined;
        const judge = (answer: ResponseHead): BodyPlan => {
          if (redirectStatuses.has(answer.status)) {
            next = redirectedTarget(at, header(answer.headers, "location"));
            return { kind: "discard" };
          }
          if (mayBeStale && staleStatuses.has(answer.status)) {
            mayBeStale = false;
            next = this.#source;
            return { kind: "discard" };
          }
          const where = shown(at.url);
          if (answer.status >= 400 && answer.status !== 416) {
            return { kind: "discard", error: statusError(where, answer) };
          }
          return decide(answer, where);
        };
        try {
          this.#policy?.check(at.url);
          await exchange(this.#agent, { ...request, target: at, signal }, this.#limits, judge);
        } catch (error) {
          // A mirror that fails must not be asked again by the retry: the source may name another one.
          if (error instanceof SourceError && this.#resolved === at) this.#resolved = undefined;
          throw error;
        }
        if (next === undefined) {
          this.#resolved = at === this.#source ? undefined : at;
          return;
        }
        target = next;
      }
      throw new SourceError(
        "source-redirect",
        `${shown(this.#source.url)} redirects more than ${redirectLimit} times`,
        {
          transient: false,
          hint: "name the final address as the source",
        },
      );
    });
  }
}

interface Request {
  headers: Record<string, string>;
  length: number;
  options: { signal?: AbortSignal | undefined; background?: boolean } | undefined;
}

function rangeRequest(identity: Identity, offset: number, length: number, options: ReadOptions | undefined): Request {
  const headers = { range: `bytes=${offset}-${offset + length - 1}`, ...conditionsFor(identity) };
  return { headers, length, options };
}

function noSize(where: string): SourceError {
  return new SourceError("source-no-size", `${where} does not say how long the object is`, {
    transient: false,
    hint: "serve it as a file of known length (Content-Length), or download it first and use the file",
  });
}
