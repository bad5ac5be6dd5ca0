import { UllageError } from "../base/errors.ts";
import { buildApi } from "../api/app.ts";
import { ApiListener } from "../api/api-listener.ts";
import type { Log } from "../daemon/log.ts";
import type { ListenTarget, NbdOptions } from "../daemon/nbd-listeners.ts";
import type { Ullage } from "../daemon/ullage.ts";

/** How long connections may take to finish what they started before a stop closes them. */
const stopGraceMs = 5000;

export interface ServerOptions extends NbdOptions {
  /** Take any free port when the one wanted for NBD is taken. */
  freePortIfTaken?: boolean;
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

  private constructor(ullage: Ullage, api: ApiListener[]) {
    this.#ullage = ullage;
    this.#api = api;
  }

  /** On an error whatever had been opened is closed again, `ullage` included. */
  static async start(ullage: Ullage, addresses: ServerAddresses, options: ServerOptions, log: Log): Promise<Server> {
    const listeners: ApiListener[] = [];
    const server = new Server(ullage, listeners);
    try {
      const app = await buildApi(ullage, log);
      for (const address of addresses.api) {
        const listener = await ApiListener.listen(address, (request, response) => app.routing(request, response));
        listeners.push(listener);
        ullage.noteListener({ protocol: "api", address: listener.address, uri: null });
      }
      await serveNbd(ullage, addresses.nbd, options);
      ullage.resume();
      return server;
    } catch (error) {
      await server.stop();
      throw error;
    }
  }

  /** Drains connections, flushes and checkpoints every volume, and lets go of the data directory. */
  async stop(): Promise<void> {
    await this.#ullage.stopServing(stopGraceMs);
    await Promise.all(this.#api.map((listener) => listener.close()));
    await this.#ullage.close();
  }
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
