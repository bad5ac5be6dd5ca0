import net from "node:net";
import { UllageError } from "../../base/errors.ts";
import type { ListenAddress } from "../../export/listen-address.ts";
import type { ExportInfo } from "./export-info.ts";
import { handshake } from "./handshake.ts";
import { ReplyReader, type ReplySink } from "./reply-reader.ts";
import { type ClientRequest, disconnectRequest, requestHeader } from "./request.ts";

/** Opening a volume that was not open yet is part of it. */
const HANDSHAKE_TIMEOUT_MS = 30_000;
/** How long the server may take to end the connection after our goodbye. */
const GOODBYE_TIMEOUT_MS = 5_000;

/** What a session tells its owner. */
export interface SessionOwner extends ReplySink {
  /** The socket is closed: nothing is read from, or written to, any request's data any more. */
  ended(session: Session, reason: string): void;
}

/** One connection to an export, in transmission. Requests are sent in the order of `send`, whatever their replies do. */
export class Session {
  readonly info: ExportInfo;
  readonly #socket: net.Socket;
  #corked = false;
  #reason = "the server closed the connection";

  private constructor(socket: net.Socket, info: ExportInfo) {
    this.#socket = socket;
    this.info = info;
  }

  /** @throws RefusedError, UllageError `nbd-unreachable`, `nbd-handshake` */
  static async open(address: ListenAddress, exportName: string, signal: AbortSignal): Promise<Session> {
    const target = address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
    const socket = net.connect({ ...target, noDelay: true, keepAlive: true });
    const onAbort = (): void => void socket.destroy(new Error("given up"));
    signal.addEventListener("abort", onAbort, { once: true });
    const stream = new SocketStream(socket);
    const timer = setTimeout(() => socket.destroy(new Error("the handshake takes too long")), HANDSHAKE_TIMEOUT_MS);
    try {
      const info = await handshake(stream, exportName);
      const session = new Session(socket, info);
      stream.detach();
      return session;
    } catch (error) {
      const closed = new Promise((resolve) => (socket.closed ? resolve(undefined) : socket.once("close", resolve)));
      socket.destroy();
      await closed;
      throw error;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Replies are taken from now on. */
  start(owner: SessionOwner): void {
    const reader = new ReplyReader(owner);
    const socket = this.#socket;
    socket.on("data", (bytes: Buffer) => {
      try {
        reader.push(bytes);
      } catch (error) {
        this.#reason = (error as Error).message;
        socket.destroy();
      }
    });
    socket.on("error", (error) => (this.#reason = error.message));
    socket.on("end", () => socket.destroy());
    const ended = (): void => owner.ended(this, this.#reason);
    if (socket.closed) ended();
    else socket.on("close", ended);
    socket.resume();
  }

  /** What the kernel does not take at once waits in the socket; its bounds are those of the requests in flight. */
  send(request: ClientRequest, payload: Buffer | undefined): void {
    request.received = 0;
    const socket = this.#socket;
    if (!this.#corked) {
      this.#corked = true;
      socket.cork();
      process.nextTick(() => {
        this.#corked = false;
        socket.uncork();
      });
    }
    socket.write(requestHeader(request));
    if (payload !== undefined) socket.write(payload);
  }

  /**
   * NBD_CMD_DISC: the server ends what it has begun, answers it, and closes. Not `destroy`: what the server has received
   * and not begun yet could otherwise be done after what the next connection sends.
   */
  goodbye(): void {
    this.#socket.write(disconnectRequest());
    const timer = setTimeout(() => this.#socket.destroy(), GOODBYE_TIMEOUT_MS);
    this.#socket.once("close", () => clearTimeout(timer));
  }
}

/** The bytes of the handshake, read on demand; what it leaves unread goes back to the socket. */
class SocketStream {
  readonly #socket: net.Socket;
  readonly #wake = (): void => this.#woken?.();
  #woken: (() => void) | undefined;
  #error: Error | undefined;
  readonly #onError = (error: Error): void => void (this.#error = error);

  constructor(socket: net.Socket) {
    this.#socket = socket;
    socket.on("readable", this.#wake).on("end", this.#wake).on("close", this.#wake).on("error", this.#onError);
  }

  async read(length: number): Promise<Buffer> {
    if (length === 0) return Buffer.alloc(0);
    for (;;) {
      const bytes = this.#socket.read(length) as Buffer | null;
      // At the end of the stream `read` returns what is left, however little.
      if (bytes?.length === length) return bytes;
      if (this.#socket.destroyed || this.#socket.readableEnded || bytes !== null) throw this.#gone();
      await new Promise<void>((resolve) => (this.#woken = resolve));
    }
  }

  write(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  detach(): void {
    const socket = this.#socket;
    socket.off("readable", this.#wake).off("end", this.#wake).off("close", this.#wake);
  }

  #gone(): UllageError {
    return new UllageError("nbd-unreachable", "no connection to the NBD server", {
      cause: this.#error ?? new Error("it closed the connection during the handshake"),
    });
  }
}
