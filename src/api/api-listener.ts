import { createServer, type RequestListener, type Server } from "node:http";
import { once } from "node:events";
import { lstatSync, unlinkSync } from "node:fs";
import type { Socket } from "node:net";
import { UllageError } from "../base/errors.ts";
import { formatListenAddress, isLocalAddress, type ListenAddress } from "../export/listen-address.ts";
import { adoptListeningSocket, openListeningSocket } from "../export/listening-socket.ts";
import type { ListenTarget } from "../daemon/exports/nbd-listeners.ts";
import { answerRequests } from "./http-refusals.ts";
import { noteAccess, type Access, type ApiAuth } from "./connection-access.ts";

/** Per listener. More at once are dropped: those on TCP can't keep the unix socket from answering. */
const maxConnections = 256;

/** How long requests under way may hold up the end. */
const graceMs = 1000;

export interface ApiListenerOptions {
  /** Over TCP; unix sockets demand nothing. Default: token. */
  auth?: ApiAuth;
  /** For all of a request's headers, from the connection's or the last request's end on. */
  headersMs?: number;
  /** Between two requests. */
  idleMs?: number;
}

/** One HTTP server: on a unix socket (mode 0600 from birth), on TCP, or on a socket that the service manager passed. */
export class ApiListener {
  /** With the port that was chosen for 0. */
  readonly address: ListenAddress;
  readonly #server: Server;
  /** Removes the socket's file, if it is still ours. */
  readonly #unlink: () => void;

  private constructor(address: ListenAddress, server: Server, unlink: () => void) {
    this.address = address;
    this.#server = server;
    this.#unlink = unlink;
  }

  /** @throws UllageError `api-auth`, `listen-in-use`, `listen` */
  static async listen(
    target: ListenTarget,
    handler: RequestListener,
    { auth = "token", headersMs = 10_000, idleMs = 15_000 }: ApiListenerOptions = {},
  ): Promise<ApiListener> {
    const socket = target.kind === "fd" ? adoptListeningSocket(target.fd) : await openListeningSocket(target);
    const address = formatListenAddress(socket.address);
    if (auth === "off" && !isLocalAddress(socket.address)) {
      socket.close();
      throw new UllageError("api-auth", `the API is not opened on ${address} without tokens: others could reach it`, {
        hint: "leave --api-auth off out, or use --api 127.0.0.1:7070",
      });
    }
    const path = socket.address.kind === "unix" ? socket.address.path : undefined;
    const inode = target.kind === "fd" || path === undefined ? undefined : lstatSync(path).ino;
    const server = createServer({
      headersTimeout: headersMs,
      requestTimeout: 0,
      connectionsCheckingInterval: headersMs / 4,
      requireHostHeader: false, // is demanded where a refusal says why
    });
    answerRequests(server, handler);
    server.maxConnections = maxConnections;
    server.keepAliveTimeout = idleMs;
    const access: Access = path === undefined ? { kind: "tcp", auth } : { kind: "unix" };
    server.on("connection", (connection: Socket) => noteAccess(connection, access));
    server.listen({ fd: socket.fd }); // the descriptor is the server's from here on
    await once(server, "listening");
    return new ApiListener(socket.address, server, () => {
      if (inode !== undefined && lstatSync(path!, { throwIfNoEntry: false })?.ino === inode) unlinkSync(path!);
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
