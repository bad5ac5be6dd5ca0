import { Acceptor } from "../../base/threads/acceptor.ts";
import { BlobManager, type BlobManagerOptions } from "../../blob/remote/manager.ts";
import { openListeningSocket, type ListeningSocket } from "../../export/listening-socket.ts";
import type { SocketAccess } from "../../export/listen-address.ts";

export interface BlobListenerOptions extends BlobManagerOptions {
  /** of the unix socket */
  path: string;
  access?: SocketAccess;
}

/** The blob manager on its socket. */
export class BlobListener {
  readonly path: string;
  readonly #manager: BlobManager;
  readonly #socket: ListeningSocket;
  readonly #acceptor: Acceptor;

  private constructor(path: string, manager: BlobManager, socket: ListeningSocket, acceptor: Acceptor) {
    this.path = path;
    this.#manager = manager;
    this.#socket = socket;
    this.#acceptor = acceptor;
  }

  /** @throws UllageError `listen-in-use` when another manager serves there; nothing was changed then */
  static async open(options: BlobListenerOptions): Promise<BlobListener> {
    const { path, access } = options;
    const group = access?.group === undefined ? {} : { allowedGroup: access.group };
    const socket = await openListeningSocket({ kind: "unix", path, ...(access === undefined ? {} : { access }) });
    try {
      const manager = new BlobManager({ ...options, ...group });
      const acceptor = new Acceptor((errno) =>
        options.log("warn", `blob manager: connections wait, accept failed: ${errno}`),
      );
      acceptor.add(socket.fd, (fd) => manager.adopt(fd));
      return new BlobListener(path, manager, socket, acceptor);
    } catch (error) {
      socket.close();
      throw error;
    }
  }

  get connections(): number {
    return this.#manager.connections;
  }

  /** Stops listening and ends every connection; blobs that clients had are released. */
  async close(): Promise<void> {
    await this.#acceptor.remove(this.#socket.fd);
    this.#socket.close();
    await this.#manager.close();
  }
}
