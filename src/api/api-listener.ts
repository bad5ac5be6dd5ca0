import { createServer, type RequestListener, type Server } from "node:http";
import { once } from "node:events";
import { lstatSync, unlinkSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import { formatListenAddress, type ListenAddress } from "../export/listen-address.ts";
import { adoptListeningSocket, openListeningSocket } from "../export/listening-socket.ts";
import type { ListenTarget } from "../daemon/nbd-listeners.ts";

/** More at once are dropped. */
const maxConnections = 256;

/** How long requests under way may hold up the end. */
const graceMs = 1000;

/** One HTTP server on a unix socket (mode 0600 from birth), or on one that the service manager passed. */
export class ApiListener {
  readonly address: string;
  readonly #server: Server;
  /** Removes the socket's file, if it is still ours. */
  readonly #unlink: () => void;

  private constructor(address: string, server: Server, unlink: () => void) {
    this.address = address;
    this.#server = server;
    this.#unlink = unlink;
  }

  /** @throws UllageError `api-tcp`, `listen-in-use`, `listen` */
  static async listen(target: ListenTarget, handler: RequestListener): Promise<ApiListener> {
    if (target.kind !== "fd") refuseTcp(target);
    const socket = target.kind === "fd" ? adoptListeningSocket(target.fd) : await openListeningSocket(target);
    refuseTcp(socket.address);
    const { path } = socket.address as { path: string };
    const inode = target.kind === "fd" ? undefined : lstatSync(path).ino;
    const server = createServer(handler);
    server.maxConnections = maxConnections;
    server.listen({ fd: socket.fd }); // the descriptor is the server's from here on
    await once(server, "listening");
    return new ApiListener(formatListenAddress(socket.address), server, () => {
      if (inode !== undefined && lstatSync(path, { throwIfNoEntry: false })?.ino === inode) unlinkSync(path);
    });
  }

  /** Takes no new requests, gives those under way a moment, and removes the socket. */
  async close(): Promise<void> {
    this.#unlink();
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    const timer = setTimeout(() => this.#server.closeAllConnections(), graceMs);
    await closed;
    clearTimeout(timer);
  }
}

/** @throws UllageError `api-tcp` */
export function refuseTcp(address: ListenAddress): void {
  if (address.kind === "unix") return;
  const where = formatListenAddress(address);
  throw new UllageError("api-tcp", `the API is not opened on ${where}: there are no tokens yet that would guard it`, {
    hint: "use --api unix:PATH; who may open that socket may do everything",
  });
}
