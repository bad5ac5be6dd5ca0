import { readFile } from "node:fs/promises";
import { createSecureContext, getCACertificates, type SecureContext } from "node:tls";
import type { Agent, ProxyAgent, buildConnector } from "undici";
import type { Clock } from "../../base/clock.ts";
import { SourceError } from "../../base/errors.ts";
import { Admission } from "../admission.ts";
import { type ResponseHead, header } from "./http-answer.ts";
import { type BodyPlan, type ExchangeLimits, type ExchangeRequest, exchange } from "./http-exchange.ts";
import { redirectedTarget, shown, type Target } from "./http-target.ts";
import type { ProxyChoice } from "./proxy.ts";
import type { SourcePolicy } from "../source-guard.ts";
import { badAnswer, unreachable } from "../source-errors.ts";

export interface ConnectionOptions {
  /** TCP and TLS handshake together. */
  connectTimeoutMs?: number;
  /** Longest wait for the first byte of an answer, and between any two bytes. */
  idleTimeoutMs?: number;
  /** An answer may take the idle timeout plus its length at this rate, however steadily it trickles. */
  minBytesPerSecond?: number;
  /** Reads at once, of which those of the background are at most `backgroundConnections`. */
  connections?: number;
  backgroundConnections?: number;
  /** Where requests may go, redirected ones included; absent: anywhere. */
  policy?: SourcePolicy;
  /** Which proxy an address is asked through; absent: none. */
  proxy?: ProxyChoice;
  /** A PEM file with authorities that are believed beside the system's. */
  ca?: string;
}

const defaults: Required<Omit<ConnectionOptions, "policy" | "proxy" | "ca">> = {
  connectTimeoutMs: 10_000,
  idleTimeoutMs: 15_000,
  // 16 connections that share a 2 Mbit/s line still get there.
  minBytesPerSecond: 16 * 1024,
  connections: 24,
  backgroundConnections: 16,
};

/** A range is a request of its own connection: HTTP/2 would have large ones take turns on one. */
const http1 = { allowH2: false };
/** An idle connection is kept this long, unless the server's Keep-Alive header asks for less. */
const keepAliveMs = 30_000;
/** A proxy that failed where the direct way worked is not asked for this long. */
const proxyRestMs = 30_000;
const documentRedirectLimit = 5;
/** How long a document may be expected to be: for its time limit. */
const documentBytes = 256 * 1024;
/** Manifests and tokens; the distribution specification asks for 4 MiB. */
const maxDocumentBytes = 4 * 1024 * 1024;

/** An answer that is read as a whole. */
export interface Document extends ResponseHead {
  /** At most 4 MiB. */
  body: Buffer;
}

/**
 * Connections that all objects with the same endpoint and credentials share: pools, places for reads, proxies. Which
 * hosts requests go to is judged here, for each of them.
 */
export class Connections {
  readonly admission: Admission;
  readonly #limits: ExchangeLimits;
  readonly #policy: SourcePolicy | undefined;
  readonly #choice: ProxyChoice | undefined;
  readonly #clock: Clock;
  readonly #options: Agent.Options;
  readonly #connect: buildConnector.BuildOptions;
  readonly #ca: string | undefined;
  /** What connections to https addresses take, with `ca`; read once, and again after `refresh`. */
  #tls: Promise<{ secureContext?: SecureContext }> | undefined;
  #direct: Promise<Agent> | undefined;
  readonly #proxies = new Map<string, { agent: ProxyAgent; restsUntil: number }>();
  /** From before a `refresh`, while requests are under way over them. */
  readonly #old = new Set<Promise<Agent | ProxyAgent>>();

  constructor(clock: Clock, options: ConnectionOptions = {}) {
    const all = { ...defaults, ...options };
    this.#clock = clock;
    this.#limits = all;
    this.#policy = all.policy;
    this.#choice = all.proxy;
    this.#ca = all.ca;
    this.admission = new Admission(all.connections, all.backgroundConnections);
    this.#options = {
      connections: all.connections,
      ...http1,
      connect: { timeout: all.connectTimeoutMs },
      keepAliveTimeout: keepAliveMs,
      keepAliveMaxTimeout: keepAliveMs,
    };
    // The policy judges the addresses that are connected to: whoever resolves a name has to be itself.
    const lookup = all.policy === undefined ? {} : { lookup: all.policy.lookup };
    this.#connect = { ...http1, timeout: all.connectTimeoutMs, ...lookup };
  }

  /**
   * One request and its answer (see http-exchange.ts), through the proxy that is chosen for the address. When the proxy
   * does not even bring the head of an answer and the choice allows it, the request goes the direct way.
   * @throws SourceError `source-forbidden` and all others
   */
  async exchange(request: ExchangeRequest, decide: (head: ResponseHead) => BodyPlan): Promise<void> {
    const { url } = request.target;
    this.#policy?.check(url);
    const proxy = await this.#proxyFor(url);
    if (proxy === undefined) return exchange(await this.#agent(), request, this.#limits, decide);
    // What the proxy resolves can't be judged here, but what the name means here can.
    await this.#policy?.checkResolved(url).catch((error: unknown) => {
      throw error instanceof SourceError ? error : unreachable(`${shown(url)} cannot be resolved`, error);
    });
    let answered = false;
    try {
      await exchange(proxy.agent, request, this.#limits, (head) => {
        answered = true;
        if (head.status === 407) throw proxyRefuses(proxy.name);
        return decide(head);
      });
    } catch (error) {
      const mayGoDirect = proxy.fallback && !request.signal?.aborted && error instanceof SourceError;
      if (answered || !mayGoDirect) throw error;
      try {
        await exchange(await this.#agent(), request, this.#limits, (head) => {
          answered = true;
          return decide(head);
        });
      } catch (directly) {
        throw answered ? directly : error;
      } finally {
        if (answered) proxy.rest();
      }
    }
  }

  /** A small answer as a whole, whatever its status; redirects are followed. @throws SourceError */
  async fetchDocument(
    target: Target,
    headers: Record<string, string>,
    options: { signal: AbortSignal; body?: string },
  ): Promise<Document> {
    let at = target;
    for (let hops = 0; hops <= documentRedirectLimit; hops++) {
      let answer: ResponseHead | undefined;
      const chunks: Buffer[] = [];
      const limit = maxDocumentBytes + 1;
      // Nothing but the address's own headers goes to another origin.
      const own = at.url.origin === target.url.origin ? headers : withoutAuthorization(headers);
      await this.exchange({ target: at, headers: own, length: documentBytes, ...options }, (head) => {
        answer = head;
        return { kind: "upTo", length: limit, take: (chunk) => void chunks.push(Buffer.from(chunk)) };
      });
      const { status, headers: answered } = answer!;
      if (status >= 300 && status < 400 && options.body === undefined) {
        at = redirectedTarget(at, header(answered, "location"));
        continue;
      }
      const body = Buffer.concat(chunks);
      if (body.length === limit) throw badAnswer(`${shown(at.url)} sent more than ${maxDocumentBytes} bytes`);
      return { status, headers: answered, body };
    }
    throw new SourceError(
      "source-redirect",
      `${shown(target.url)} redirects more than ${documentRedirectLimit} times`,
      {
        transient: false,
      },
    );
  }

  /** The file with authorities is read again: requests from now on go over new connections. */
  refresh(): void {
    if (this.#ca === undefined) return;
    this.#tls = undefined;
    for (const taken of this.#takeAgents()) {
      this.#old.add(taken);
      const gone = (): boolean => this.#old.delete(taken);
      taken.then((agent) => agent.close()).then(gone, gone);
    }
  }

  /** Requests under way are cut. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#takeAgents(), ...this.#old].map(async (agent) => (await agent).destroy()));
  }

  #takeAgents(): Promise<Agent | ProxyAgent>[] {
    const taken = [this.#direct ?? [], [...this.#proxies.values()].map(({ agent }) => Promise.resolve(agent))].flat();
    this.#direct = undefined;
    this.#proxies.clear();
    return taken;
  }

  /** Not before the first request: a start need not wait for what is loaded here. @throws SourceError `source-tls` */
  #agent(): Promise<Agent> {
    return (this.#direct ??= this.#newAgent());
  }

  async #newAgent(): Promise<Agent> {
    try {
      const [{ Agent }, tls] = await Promise.all([import("undici"), this.#authorities()]);
      return new Agent({ ...this.#options, connect: { ...this.#connect, ...tls } });
    } catch (error) {
      this.#direct = undefined;
      throw error;
    }
  }

  #authorities(): Promise<{ secureContext?: SecureContext }> {
    return (this.#tls ??= this.#readAuthorities());
  }

  async #readAuthorities(): Promise<{ secureContext?: SecureContext }> {
    if (this.#ca === undefined) return {};
    try {
      const own = await readFile(this.#ca, "utf8");
      return { secureContext: createSecureContext({ ca: [...getCACertificates("default"), own] }) };
    } catch (cause) {
      this.#tls = undefined; // it may be there next time
      throw new SourceError("source-tls", `${this.#ca} holds no certificates of authorities that can be read`, {
        transient: false,
        hint: "`ca` of [[sources.match]] names a file with certificates in PEM",
        cause,
      });
    }
  }

  async #proxyFor(url: URL): Promise<{ name: string; agent: ProxyAgent; fallback: boolean; rest(): void } | undefined> {
    const chosen = this.#choice?.(url);
    if (chosen === undefined) return undefined;
    const [{ ProxyAgent }, requestTls] = await Promise.all([import("undici"), this.#authorities()]);
    let entry = this.#proxies.get(chosen.url);
    if (entry === undefined) {
      // TLS is spoken with the source, through a tunnel; plain requests go to the proxy as they are.
      const tls = { proxyTls: http1, requestTls: { ...http1, ...requestTls } };
      const agent = new ProxyAgent({ ...this.#options, uri: chosen.url, proxyTunnel: false, ...tls });
      this.#proxies.set(chosen.url, (entry = { agent, restsUntil: -Infinity }));
    }
    const { agent, restsUntil } = entry;
    if (chosen.fallback && this.#clock.now() < restsUntil) return undefined;
    const rest = (): void => void (entry.restsUntil = this.#clock.now() + proxyRestMs);
    return { name: new URL(chosen.url).host, agent, fallback: chosen.fallback, rest };
  }
}

function withoutAuthorization(headers: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => name !== "authorization"));
}

function proxyRefuses(name: string): SourceError {
  return new SourceError("source-denied", `the proxy ${name} answered 407`, {
    transient: false,
    hint: "give the proxy's user and password in its address (http://user:password@host:port)",
  });
}
