import { UllageError } from "../base/errors.ts";
import { buildApi } from "../api/app.ts";
import { ApiListener } from "../api/api-listener.ts";
import type { ApiAuth } from "../api/connection-access.ts";
import { Tokens } from "../api/tokens.ts";
import type { Log } from "../daemon/log.ts";
import type { ListenTarget, NbdOptions } from "../daemon/exports/nbd-listeners.ts";
import type { Ullage } from "../daemon/ullage.ts";
import {
  formatListenAddress,
  isLocalAddress,
  type ListenAddress,
  type SocketAccess,
} from "../export/listen-address.ts";

/** How long connections may take to finish what they started before a stop closes them. */
const stopGraceMs = 5000;

/** How long the link to the dashboard opens it. */
const dashboardLifeSeconds = 12 * 3600;

export interface ServerOptions extends NbdOptions {
  /** Take any free port when the one wanted for NBD is taken. */
  freePortIfTaken?: boolean;
  /** Over TCP. Default: token. */
  apiAuth?: ApiAuth;
  /** Further names that the API goes by over TCP, in lower case. */
  apiHosts?: readonly string[];
  /** Offer the cache to other processes of this host. */
  blobs?: SocketAccess;
}

export interface ServerAddresses {
  api: ListenTarget[];
  nbd: ListenTarget[];
}

/**
 * The listeners of a process that serves a data directory: `serve` and `run`. They open when everything behind them is
 * ready, the API first: once an NBD listener accepts, every command works. They close in the opposite order.
 */
export class Server {
  readonly #ullage: Ullage;
  readonly #api: ApiListener[];
  readonly #auth: ApiAuth;
  #tokens: Tokens | undefined;
  #hasDashboard = false;

  private constructor(ullage: Ullage, api: ApiListener[], auth: ApiAuth) {
    this.#ullage = ullage;
    this.#api = api;
    this.#auth = auth;
  }

  /** On an error whatever had been opened is closed again, `ullage` included. */
  static async start(ullage: Ullage, addresses: ServerAddresses, options: ServerOptions, log: Log): Promise<Server> {
    const { apiAuth: auth = "token", apiHosts = [] } = options;
    const listeners: ApiListener[] = [];
    const server = new Server(ullage, listeners, auth);
    try {
      server.#tokens = await Tokens.open(ullage.health().dataDirectory);
      const app = await buildApi(ullage, log, { tokens: server.#tokens, hostNames: apiHosts });
      server.#hasDashboard = app.hasRoute({ method: "GET", url: "/" });
      for (const address of addresses.api) {
        const listener = await ApiListener.listen(address, (incoming, outgoing) => app.routing(incoming, outgoing), {
          auth,
        });
        listeners.push(listener);
        noteListener(ullage, listener.address, log);
      }
      if (options.blobs !== undefined) await ullage.serveBlobs(options.blobs);
      await serveNbd(ullage, addresses.nbd, options);
      ullage.resume();
      return server;
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  /**
   * Where a browser on this machine finds the dashboard, with a fresh token that ends with this process or after half a
   * day. @returns undefined when there is none over TCP
   */
  dashboardLink(): string | undefined {
    const address = this.#api.map((listener) => listener.address).find(({ kind }) => kind === "tcp");
    if (address?.kind !== "tcp" || !this.#hasDashboard) return undefined;
    const origin = `http://${formatListenAddress({ ...address, host: localHost(address.host) })}/`;
    if (this.#auth === "off") return origin;
    return `${origin}#token=${this.#tokens!.issue("(dashboard)", "admin", dashboardLifeSeconds)}`;
  }

  /** Drains connections, flushes and checkpoints every volume, and lets go of the data directory. */
  async stop(): Promise<void> {
    await this.#ullage.stopServing(stopGraceMs);
    await Promise.all(this.#api.map((listener) => listener.close()));
    await this.#ullage.close();
  }
}

function noteListener(ullage: Ullage, bound: ListenAddress, log: Log): void {
  const address = formatListenAddress(bound);
  ullage.noteListener({ protocol: "api", address, uri: null });
  if (isLocalAddress(bound)) return;
  const message = `the API on ${address} speaks plain HTTP to other machines: tokens can be read on the way; put a TLS proxy in front, and listen on 127.0.0.1`;
  ullage.noteWarning({ code: "api-open", message });
  log("warn", message, { code: "api-open", address });
}

/** A server on all addresses is on the loopback one too. */
function localHost(bound: string): string {
  if (bound === "0.0.0.0") return "127.0.0.1";
  return bound === "::" ? "::1" : bound;
}

async function serveNbd(ullage: Ullage, addresses: ListenTarget[], options: ServerOptions): Promise<void> {
  try {
    await ullage.serveNbd(addresses, options);
  } catch (error) {
    const taken = error instanceof UllageError && error.code === "listen-in-use";
    if (!taken || options.freePortIfTaken !== true) throw error;
    await ullage.serveNbd(
      addresses.map((address) => (address.kind === "tcp" ? { ...address, port: 0 } : address)),
      options,
    );
  }
}
