import { SourceError } from "../../base/errors.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "../backend.ts";
import type { Connections } from "./connections.ts";
import { DigestCheck } from "../wrappers/digest-check.ts";
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
} from "./http-answer.ts";
import type { BodyPlan } from "./http-exchange.ts";
import type { HttpObject, Refusal } from "./http-object.ts";
import { type Target, redirectedTarget, shown } from "./http-target.ts";
import { demandInside } from "../object-range.ts";
import { backendClosed, badAnswer, sourceChanged } from "../source-errors.ts";

const redirectLimit = 10;
/** An object renews what was refused at most so often per request: the region, then the clock, then the credentials. */
const renewalLimit = 3;
/** So much of a refusal is read, to see what the matter is. */
const refusalBytes = 16 * 1024;
/** What a redirect's target answers without its address having expired: its object changed, or it has no time now. */
const lastingStatuses = new Set([408, 412, 416, 425, 429]);
const redirectStatuses = new Set([301, 302, 303, 307, 308]);

/**
 * Ranges of one object over HTTP/1.1, over a pool of connections. The object is pinned by its validators (the table at
 * `identityOf`): every answer must carry those of the identity, 206, and exactly the range asked for, or none of its
 * bytes count. A version that is not pinned by a strong ETag is looked at once more after the last byte of each read.
 *
 * A redirect is followed once and its target remembered; the source is asked again when the target expires or fails.
 * Where the object is, what opens it and what a refusal means is the object's to say (http-object.ts).
 */
export class HttpBackend implements Backend {
  readonly url: string;
  readonly #object: HttpObject;
  readonly #connections: Connections;
  readonly #closing = new AbortController();
  /** Where the redirects of the address `from` led to, while that works. */
  #resolved: { from: string; target: Target } | undefined;

  constructor(object: HttpObject, connections: Connections) {
    this.#object = object;
    this.#connections = connections;
    this.url = object.url;
  }

  async probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    const wanted = Math.max(1, headBytes);
    const place = await this.#object.locate(undefined, signal ?? this.#closing.signal);
    const identify = (headers: ResponseHead["headers"], size: number, where: string): Identity => {
      if (place.identity === undefined) return identityOf(headers, size);
      if (place.identity.size === size) return place.identity;
      throw badAnswer(`${where} has ${size} bytes, and ${place.identity.size} belong to ${place.identity.version}`);
    };
    const head: Buffer[] = [];
    // The chunks are only ours until the sink returns.
    const sink = (chunk: Uint8Array): void => void head.push(Buffer.from(chunk));
    let identity: Identity | undefined;
    let ranges = true;
    const headers = { range: `bytes=0-${wanted - 1}` };
    const request: Request = { identity: place.identity, headers, length: wanted, options: { signal } };
    await this.#send(request, (answer, where) => {
      demandPlain(where, answer.headers);
      const range = parseContentRange(header(answer.headers, "content-range"));
      if (answer.status === 416 && range?.total === 0) {
        identity = identify(answer.headers, 0, where);
        return { kind: "discard" };
      }
      if (answer.status === 200) {
        const size = contentLength(answer.headers);
        if (size === undefined) throw noSize(where);
        identity = identify(answer.headers, size, where);
        // An empty object has no ranges to ask for.
        ranges = size === 0;
        return { kind: "upTo", length: Math.min(wanted, size), take: sink };
      }
      if (answer.status !== 206) throw ignoresRanges(where, answer.status);
      if (range === undefined) throw badAnswer(`${where} answered 206 without a Content-Range`);
      if (range.total === undefined) throw noSize(where);
      identity = identify(answer.headers, range.total, where);
      const length = Math.min(wanted, range.total);
      demandRange(where, answer, identity, 0, length);
      return { kind: "exactly", length, sink };
    });
    const { mediaType } = place;
    return {
      identity: identity!,
      head: Buffer.concat(head).subarray(0, headBytes),
      ranges,
      ...(mediaType === undefined ? {} : { mediaType }),
    };
  }

  async read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    demandInside(identity, offset, length);
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
    const check = DigestCheck.of(identity, sink);
    const request: Request = { identity, headers: conditionsFor(identity), length: identity.size, options };
    await this.#send(request, (answer, where) => {
      demandWhole(answer, where);
      return { kind: "exactly", length: identity.size, sink: check?.sink ?? sink };
    });
    check?.demandMatch(this.url);
    if (!needsCheckAfterwards(identity)) return;
    await this.#send({ ...request, length: 0 }, (answer, where) => {
      demandWhole(answer, where);
      return { kind: "upTo", length: 0, take: () => undefined };
    });
  }

  close(): Promise<void> {
    this.#closing.abort(backendClosed());
    return Promise.resolve();
  }

  /** Sends a request to where the object is now, and lets `decide` judge every answer that is not a detour. */
  #send(request: Request, decide: (answer: ResponseHead, where: string) => BodyPlan): Promise<void> {
    const caller = request.options?.signal;
    const signal = caller ? AbortSignal.any([caller, this.#closing.signal]) : this.#closing.signal;
    const background = request.options?.background === true;
    return this.#connections.admission.run(background, signal, async () => {
      let source = await this.#locate(request, signal);
      let target = this.#resolved?.from === source.url.href ? this.#resolved.target : source;
      let mayBeStale = target !== source;
      let renewals = 0;
      for (let hops = 0; hops <= redirectLimit;) {
        const at = target;
        const where = shown(at.url);
        let next: Target | undefined;
        let refusal: Refusal | undefined;
        let sent: Record<string, string> = {};
        const refuse = (answer: ResponseHead): BodyPlan => {
          const body: Refusal = { ...answer, url: at.url, sent, body: "" };
          refusal = body;
          return {
            kind: "upTo",
            length: refusalBytes,
            take: (chunk) => void (body.body += Buffer.from(chunk).toString()),
          };
        };
        const judge = (answer: ResponseHead): BodyPlan => {
          if (this.#object.refuses?.(answer) === true) return refuse(answer);
          if (redirectStatuses.has(answer.status)) {
            next = redirectedTarget(at, header(answer.headers, "location"));
            return { kind: "discard" };
          }
          if (mayBeStale && answer.status >= 400 && answer.status < 500 && !lastingStatuses.has(answer.status)) {
            mayBeStale = false;
            next = source;
            return { kind: "discard" };
          }
          return answer.status >= 400 && answer.status !== 416 ? refuse(answer) : decide(answer, where);
        };
        try {
          sent = (await this.#object.authorize?.(at.url, signal)) ?? {};
          const headers = { ...request.headers, ...sent };
          await this.#connections.exchange({ ...request, headers, target: at, signal }, judge);
        } catch (error) {
          // A mirror that fails must not be asked again by the retry: the source may name another one.
          if (error instanceof SourceError) this.#forget(at);
          throw error;
        }
        if (refusal !== undefined) {
          if (renewals++ >= renewalLimit || (await this.#object.renew?.(refusal, signal)) !== true) {
            this.#forget(at);
            throw this.#object.errorOf(where, refusal);
          }
          source = await this.#locate(request, signal);
          target = source;
        } else if (next === undefined) {
          this.#resolved = at === source ? undefined : { from: source.url.href, target: at };
          return;
        } else {
          target = next;
          hops++;
        }
      }
      throw new SourceError("source-redirect", `${shown(source.url)} redirects more than ${redirectLimit} times`, {
        transient: false,
        hint: "name the final address as the source",
      });
    });
  }

  async #locate({ identity }: Request, signal: AbortSignal): Promise<Target> {
    return (await this.#object.locate(identity, signal)).target;
  }

  #forget(target: Target): void {
    if (this.#resolved?.target === target) this.#resolved = undefined;
  }
}

interface Request {
  /** What is pinned. */
  identity: Identity | undefined;
  headers: Record<string, string>;
  length: number;
  options: { signal?: AbortSignal | undefined; background?: boolean } | undefined;
}

function rangeRequest(identity: Identity, offset: number, length: number, options: ReadOptions | undefined): Request {
  const headers = { range: `bytes=${offset}-${offset + length - 1}`, ...conditionsFor(identity) };
  return { identity, headers, length, options };
}

function noSize(where: string): SourceError {
  return new SourceError("source-no-size", `${where} does not say how long the object is`, {
    transient: false,
    hint: "serve it as a file of known length (Content-Length), or download it first and use the file",
  });
}
