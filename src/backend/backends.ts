import type { Clock } from "../base/clock.ts";
import { systemClock } from "../base/clock.ts";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "./backend.ts";
import { Connections, type ConnectionOptions } from "./http/connections.ts";
import { CredentialSource } from "./credentials.ts";
import { HttpBackend } from "./http/http.ts";
import type { HttpObject } from "./http/http-object.ts";
import { LocalFileBackend, type LocalFileOptions } from "./file/localfs.ts";
import { AlternativesBackend } from "./wrappers/alternatives.ts";
import { type Mirror, MirroredBackend, MirrorHealth } from "./wrappers/mirrors.ts";
import { isNbd, parseNbdSource } from "./nbd/nbd-address.ts";
import { NbdBackend, type NbdOptions } from "./nbd/nbd.ts";
import { environmentProxy, fixedProxy } from "./http/proxy.ts";
import { HostRateLimit, RateLimitedBackend } from "./wrappers/rate-limit.ts";
import { RetryBackend, type RetryOptions } from "./wrappers/retry.ts";
import { RetryBudget } from "./wrappers/retry-budget.ts";
import { canonicalSource, schemeOf } from "./source-address.ts";
import type { SourcePolicy } from "./source-guard.ts";
import { kindOf } from "./source-kinds.ts";
import { type SourceSettings, mirrored, settingsFor } from "./source-settings.ts";

export interface BackendsOptions {
  clock?: Clock;
  /** Uniform in [0, 1): spreads retries. */
  random?: () => number;
  connections?: ConnectionOptions;
  nbd?: NbdOptions;
  file?: LocalFileOptions;
  retry?: RetryOptions;
  /** What guarded sources may be. */
  policy?: SourcePolicy;
  /** What is configured, by prefix. */
  settings?: readonly SourceSettings[];
  /** Of all sources together; null: no limit. */
  bytesPerSecond?: number | null;
  env?: Readonly<Record<string, string | undefined>>;
}

/** Connections that nobody uses are kept this long: the next volume of the same registry needs its token again. */
const keepMs = 60_000;

/**
 * Opens sources. Everything over a network that goes to the same endpoint with the same credentials and under the same
 * policy shares one set of connections, tokens and retries (an *access*), however many objects are read and however often
 * what the credentials refer to changes. One that nobody uses any more goes after a minute.
 *
 *     RetryBackend( MirroredBackend( the source, its mirrors ) ), each of them RateLimitedBackend( HttpBackend or NbdBackend )
 *     RetryBackend( LocalFileBackend )
 */
export class Backends {
  readonly rateLimit: HostRateLimit;
  readonly #options: BackendsOptions;
  readonly #clock: Clock;
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #settings: readonly SourceSettings[];
  readonly #accesses = new Map<string, Access>();
  readonly #mirrors = new Map<string, MirrorHealth>();
  readonly #closing = new AbortController();

  constructor(options: BackendsOptions = {}) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#env = options.env ?? process.env;
    this.#settings = options.settings ?? [];
    this.rateLimit = new HostRateLimit(this.#clock, options.bytesPerSecond ?? null);
  }

  /** Names of the accesses that there are, without secrets; for tests and statistics. */
  get accesses(): string[] {
    return [...this.#accesses.values()].map(({ name }) => name);
  }

  /**
   * The backend for a source as a user writes it. Touches nothing yet.
   * @param guarded the policy binds it, and only configured credentials are used: those that this process just happens to
   *   have are not for whoever may name a source over the network
   * @throws SourceError with code `source-unsupported` or `source-invalid`
   */
  open(source: string, guarded = false): Backend {
    const url = canonicalSource(source);
    const settings = settingsFor(url, this.#settings);
    // A file may be on a server, too, and its disk may have a bad moment.
    if (url.startsWith("/"))
      return this.#retrying(this.#openFile(url, settings, guarded), new RetryBudget(this.#clock), settings);
    const { backend, budget } = this.#openOne(source, guarded);
    const mirrors = (settings?.mirrors ?? []).map((prefix) =>
      this.#openMirror(prefix, mirrored(url, settings!, prefix), guarded),
    );
    const all = mirrors.length === 0 ? backend : new MirroredBackend(backend, mirrors);
    return this.#retrying(all, budget, settings);
  }

  /** What is configured for a source as a user writes it. @throws SourceError as `open` */
  settingsFor(source: string): SourceSettings | undefined {
    return settingsFor(canonicalSource(source), this.#settings);
  }

  #retrying(backend: Backend, budget: RetryBudget, settings?: SourceSettings): RetryBackend {
    const { random = Math.random, retry = {} } = this.#options;
    return new RetryBackend(backend, { clock: this.#clock, random, budget, ...patience(settings), ...retry });
  }

  /** What credentials refer to, and files with authorities, are read again before the next requests. */
  refresh(): void {
    for (const { credentials, connections } of this.#accesses.values()) {
      credentials?.forget();
      connections.refresh();
    }
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await Promise.all([...this.#accesses.values()].map(({ connections }) => connections.close()));
    this.#accesses.clear();
  }

  #openFile(path: string, settings: SourceSettings | undefined, guarded: boolean): Backend {
    const elsewhere = (settings?.alternatives ?? []).map((prefix) => mirrored(path, settings!, prefix));
    const { policy, file } = this.#options;
    const places = [path, ...elsewhere].map((each) => new LocalFileBackend(each, guarded ? policy : undefined, file));
    return places.length === 1 ? places[0] : new AlternativesBackend(places);
  }

  #openMirror(prefix: string, url: string, guarded: boolean): Mirror {
    let health = this.#mirrors.get(prefix);
    if (health === undefined) this.#mirrors.set(prefix, (health = new MirrorHealth(this.#clock)));
    return { backend: this.#openOne(url, guarded).backend, health };
  }

  #openOne(source: string, guarded: boolean): { backend: Backend; budget: RetryBudget } {
    const url = canonicalSource(source);
    if (isNbd(schemeOf(url)!)) {
      const { policy, nbd = {}, random } = this.#options;
      const bound = { ...nbd, ...(random && { random }), ...(guarded && policy !== undefined ? { policy } : {}) };
      // An export has connections of its own: what is negotiated with its server is about nothing else.
      const backend = new NbdBackend(parseNbdSource(source), this.#clock, bound);
      return { backend: new RateLimitedBackend(backend, this.rateLimit), budget: new RetryBudget(this.#clock) };
    }
    const settings = settingsFor(url, this.#settings) ?? { prefix: "" };
    const access = this.#access(source, url, settings, guarded);
    const http = new HttpBackend(access.object(source), access.connections);
    access.users++;
    return {
      backend: new RateLimitedBackend(new OwnedBackend(http, () => this.#release(access)), this.rateLimit),
      budget: access.budget,
    };
  }

  #access(source: string, url: string, settings: SourceSettings, guarded: boolean): Access {
    const kind = kindOf(source, url, settings, guarded, this.#env);
    const { proxy = "", proxyFallback = true, ca } = settings;
    const key = JSON.stringify([
      kind.scheme,
      kind.endpoint,
      kind.variant,
      kind.reference,
      guarded,
      proxy,
      proxyFallback,
      ca,
    ]);
    const known = this.#accesses.get(key);
    if (known !== undefined) return known;
    const { policy } = this.#options;
    const chosen =
      proxy === "none" ? {} : { proxy: proxy === "" ? environmentProxy(this.#env) : fixedProxy(proxy, proxyFallback) };
    const connections = new Connections(this.#clock, {
      ...this.#options.connections,
      ...(guarded && policy !== undefined ? { policy } : {}),
      ...chosen,
      ...(ca === undefined ? {} : { ca }),
    });
    const credentials = kind.loader === undefined ? undefined : new CredentialSource(kind.reference, kind.loader);
    const access: Access = {
      key,
      name: `${kind.scheme} ${kind.endpoint} (${kind.reference})`,
      connections,
      credentials,
      budget: new RetryBudget(this.#clock),
      object: kind.site(connections, credentials),
      users: 0,
      uses: 0,
    };
    this.#accesses.set(key, access);
    return access;
  }

  #release(access: Access): void {
    access.users--;
    const uses = ++access.uses;
    if (access.users > 0) return;
    this.#clock
      .sleep(keepMs, this.#closing.signal)
      .then(async () => {
        if (access.users > 0 || access.uses !== uses) return;
        this.#accesses.delete(access.key);
        await access.connections.close();
      })
      .catch(() => undefined); // closed, and this with it
  }
}

/** What sources with the same endpoint and credentials share. */
interface Access {
  key: string;
  name: string;
  connections: Connections;
  credentials: CredentialSource | undefined;
  budget: RetryBudget;
  object(source: string): HttpObject;
  /** Open backends. */
  users: number;
  /** Counts closings, so that only the last one's minute counts. */
  uses: number;
}

/** Tells when it is closed. */
class OwnedBackend implements Backend {
  readonly url: string;
  readonly #inner: Backend;
  #onClose: (() => void) | undefined;

  constructor(inner: Backend, onClose: () => void) {
    this.url = inner.url;
    this.#inner = inner;
    this.#onClose = onClose;
  }

  probe(headBytes: number, signal?: AbortSignal): Promise<Probe> {
    return this.#inner.probe(headBytes, signal);
  }

  read(identity: Identity, offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.#inner.read(identity, offset, length, sink, options);
  }

  stream(identity: Identity, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.#inner.stream(identity, sink, options);
  }

  async close(): Promise<void> {
    await this.#inner.close();
    this.#onClose?.();
    this.#onClose = undefined;
  }
}

function patience(settings: SourceSettings | undefined): RetryOptions {
  if (settings?.patience === undefined) return {};
  return { foreground: { attempts: Infinity, baseMs: 50, capMs: 2_000, timeLimitMs: settings.patience * 1000 } };
}
