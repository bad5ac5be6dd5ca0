import { describeError, IoError, UllageError } from "../../base/errors.ts";
import type { ListenAddress } from "../../export/listen-address.ts";
import { Command, NbdError } from "../../export/nbd/protocol.ts";
import { commandNames } from "../../export/nbd/request-gate.ts";
import type { ExportInfo } from "./export-info.ts";
import { RefusedError } from "./handshake.ts";
import { probeExport } from "./probe.ts";
import type { ClientRequest } from "./request.ts";
import { Session, type SessionOwner } from "./session.ts";

/** Between two attempts to connect: at first, and at most. A restart of the server takes a few hundred ms. */
const FIRST_DELAY_MS = 20;
const LONGEST_DELAY_MS = 1_000;
/** A server that refuses us for so long means it; in between it may just be closing or reopening the volume. */
const REFUSAL_GRACE_MS = 3_000;
/** How long a server that shuts down may take to end what it has begun: it tries a source for 30 s. */
const SHUTDOWN_MS = 40_000;
/** The same where nothing is under way any more. */
const GOODBYE_MS = 5_000;
/** How long the last flush before a goodbye may take. */
const LAST_FLUSH_MS = 30_000;

/**
 * - connected: requests are served
 * - reconnecting: requests wait, up to the time limit
 * - failing: the time is up, or the server refuses us: requests fail with EIO; attempts to connect go on
 * - lost: acknowledged writes may be missing on the server: requests fail with EIO for ever
 * - closed: after `close`
 */
export type ClientState = "connected" | "reconnecting" | "failing" | "lost" | "closed";

export interface NbdClientOptions {
  address: ListenAddress;
  exportName: string;
  /** How long requests wait for a server that is away. */
  timeoutMs: number;
  /** The state has changed; `reason` is for people. */
  onState(state: ClientState, reason: string): void;
}

/**
 * A client of one export that outlives its server's restarts.
 *
 * It has one connection at a time. When that breaks, what was not answered stays and is sent again over the next one, in
 * the order in which it was submitted: the server does not begin a new connection before everything that the broken one
 * had started has ended (durability rule 25), and what was answered has survived in the server, as long as its *lineage*
 * is the same. A FLUSH that is sent again therefore covers what it covered before. When the lineage is another one,
 * acknowledged writes may be gone, and no request can be answered truthfully any more: all of them fail (rule 16).
 *
 * A server that is connected and silent is waited for without limit: giving a request up while its payload may still be
 * on the way would free a buffer that is being sent. The number of requests is bounded by whoever submits them.
 */
export class NbdClient implements SessionOwner {
  readonly #options: NbdClientOptions;
  info: ExportInfo;
  /** Not answered yet, in the order of their submission. */
  readonly #waiting = new Map<number, ClientRequest>();
  readonly #stop = new AbortController();
  #session: Session | undefined;
  #state: ClientState = "connected";
  #reason = "";
  #nextCookie = 1;
  /** The server said that it is shutting down: nothing more is sent over this connection. */
  #leaving = false;
  #closed: (() => void) | undefined;
  /** Requests that were answered with an error without the server's say. */
  failures = 0;

  private constructor(options: NbdClientOptions, session: Session) {
    this.#options = options;
    this.#session = session;
    this.info = session.info;
  }

  /** @throws RefusedError, UllageError `nbd-unreachable`, `nbd-handshake`: the first connection is not tried twice */
  static async connect(options: NbdClientOptions): Promise<NbdClient> {
    const session = await Session.open(options.address, options.exportName, new AbortController().signal);
    const client = new NbdClient(options, session);
    session.start(client);
    return client;
  }

  get state(): ClientState {
    return this.#state;
  }

  /** Why it is not `connected`; "" when it is. */
  get reason(): string {
    return this.#reason;
  }

  /**
   * Resolves when the server has done it. `data` belongs to the request until then.
   * @throws IoError with the server's errno, or EIO when the server is away for too long
   */
  submit(command: number, flags: number, offset: number, length: number, data?: Buffer): Promise<void> {
    const unavailable = this.#unavailable();
    if (unavailable !== undefined) return Promise.reject(unavailable);
    return new Promise((resolve, reject) => {
      const cookie = this.#cookie();
      const request: ClientRequest = {
        cookie,
        command,
        flags,
        offset,
        length,
        data,
        received: 0,
        settle: (error, message) => {
          if (error === 0) resolve();
          else reject(new IoError(errnoNames[error] ?? "EIO", message));
        },
      };
      this.#waiting.set(cookie, request);
      this.#send(request);
    });
  }

  /**
   * Asks the server for the size anew; until then the export keeps the one that it had.
   * @throws UllageError `nbd-unreachable`, `nbd-refused` when it can't be asked, or is not the same export any more
   */
  async refresh(): Promise<void> {
    if (this.#state !== "connected") throw new UllageError("nbd-unreachable", `no connection: ${this.#reason}`);
    const info = await probeExport(this.#options.address, this.#options.exportName, this.#stop.signal);
    const why = this.#mismatch(info);
    if (why !== undefined) throw new UllageError("nbd-refused", why);
    this.info = { ...this.info, size: info.size };
  }

  /** Flushes if the server is there, says goodbye, and resolves when the connection is closed. @throws when not flushed */
  async close(): Promise<void> {
    let failure: unknown;
    if (this.#state === "connected" && !this.info.readOnly) {
      const late = new Promise<never>((_, reject) => {
        setTimeout(() => reject(new IoError("ETIMEDOUT", "the last flush takes too long")), LAST_FLUSH_MS).unref();
      });
      failure = await Promise.race([this.submit(Command.flush, 0, 0, 0), late]).catch((error: unknown) => error);
    }
    const session = this.#session;
    this.#become("closed", "closed");
    this.#stop.abort();
    if (session !== undefined) {
      const ended = new Promise<void>((resolve) => (this.#closed = resolve));
      session.goodbye(GOODBYE_MS); // what the server has is still answered
      await ended;
    }
    this.#failAll();
    if (failure !== undefined) throw failure;
  }

  // ---- the session's owner -----------------------------------------------------------------------------------------

  find(cookie: number): ClientRequest | undefined {
    return this.#waiting.get(cookie);
  }

  settled(request: ClientRequest, error: number, message: string): void {
    if (error === NbdError.ESHUTDOWN && this.#state === "connected") {
      // Not done, and not an error for whoever asked: the next server does it.
      if (!this.#leaving) this.#session!.goodbye(SHUTDOWN_MS);
      this.#leaving = true;
      return;
    }
    this.#waiting.delete(request.cookie);
    request.settle(error, error === 0 ? "" : `${describe(request)} failed: ${message || `NBD error ${error}`}`);
  }

  ended(session: Session, reason: string): void {
    if (session !== this.#session) return;
    this.#session = undefined;
    this.#leaving = false;
    this.#closed?.();
    if (this.#state !== "connected") return;
    this.#become("reconnecting", reason);
    void this.#reconnect();
  }

  // ---- reconnecting ------------------------------------------------------------------------------------------------

  async #reconnect(): Promise<void> {
    const { address, exportName, timeoutMs } = this.#options;
    const { signal } = this.#stop;
    const limit = setTimeout(() => this.#fail(`the server is away for more than ${timeoutMs / 1000} s`), timeoutMs);
    let refusedAt: number | undefined;
    let delay = FIRST_DELAY_MS;
    while (!signal.aborted) {
      try {
        this.#resume(await Session.open(address, exportName, signal));
        break;
      } catch (error) {
        refusedAt = error instanceof RefusedError ? (refusedAt ?? performance.now()) : undefined;
        if (refusedAt !== undefined && performance.now() - refusedAt >= REFUSAL_GRACE_MS) {
          this.#fail(`the server refuses us: ${describeError(error)}`);
        }
      }
      await pause(delay, signal);
      delay = Math.min(2 * delay, LONGEST_DELAY_MS);
    }
    clearTimeout(limit);
  }

  #resume(session: Session): void {
    const why = this.#mismatch(session.info);
    if (this.#state === "closed" || why !== undefined) {
      session.start({ find: () => undefined, settled: () => undefined, ended: () => undefined });
      session.goodbye(GOODBYE_MS);
      if (why !== undefined && this.#state !== "closed") this.#lose(why);
      return;
    }
    this.#session = session;
    this.#become("connected", "");
    session.start(this);
    for (const request of this.#waiting.values()) this.#send(request);
  }

  /** Why the export is not the one that we were talking to. */
  #mismatch(info: ExportInfo): string | undefined {
    if (info.lineage !== this.info.lineage) {
      return `acknowledged writes may be missing on the server: its lineage was ${this.info.lineage} and is ${info.lineage}`;
    }
    if (info.size < this.info.size) return `the export has shrunk from ${this.info.size} to ${info.size} bytes`;
    if (info.readOnly && !this.info.readOnly) return "the export has become read-only";
    return undefined;
  }

  #send(request: ClientRequest): void {
    if (this.#session === undefined || this.#leaving) return; // it goes with the next connection
    this.#session.send(request, request.command === Command.write ? request.data : undefined);
  }

  /** Requests are not kept waiting any longer; attempts to connect go on. */
  #fail(reason: string): void {
    if (this.#state !== "reconnecting") return;
    this.#become("failing", reason);
    this.#failAll();
  }

  #lose(reason: string): void {
    this.#become("lost", reason);
    this.#stop.abort();
    this.#failAll();
  }

  /** Only without a connection: nothing may be on its way from or to the data of a request that is given back. */
  #failAll(): void {
    const requests = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const request of requests) {
      this.failures++;
      request.settle(NbdError.EIO, `${describe(request)} failed: ${this.#reason}`);
    }
  }

  #unavailable(): UllageError | undefined {
    if (this.#state === "connected" || this.#state === "reconnecting") return undefined;
    this.failures++;
    return new IoError("EIO", this.#reason);
  }

  #become(state: ClientState, reason: string): void {
    this.#state = state;
    this.#reason = reason;
    this.#options.onState(state, reason);
  }

  /** Any that is not in use: after 2^32 requests they begin anew. */
  #cookie(): number {
    do this.#nextCookie = (this.#nextCookie + 1) >>> 0;
    while (this.#waiting.has(this.#nextCookie));
    return this.#nextCookie;
  }
}

const errnoNames: Record<number, string> = Object.fromEntries(
  Object.entries(NbdError).map(([name, value]) => [value, name]),
);

function describe({ command, offset, length }: ClientRequest): string {
  return `${commandNames[command]} of ${length} bytes at ${offset}`;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
    if (signal.aborted) done();
  });
}
