import net from "node:net";
import { UllageError } from "../../base/errors.ts";
import type { ListenAddress } from "../../export/listen-address.ts";
import type { ExportInfo } from "./export-info.ts";
import { handshake } from "./handshake.ts";
import { ReplyReader, type ReplySink } from "./reply-reader.ts";
import { type ClientRequest, disconnectRequest, requestHeader } from "./request.ts";

/** As much as a unix socket holds, so that a large reply takes few turns. */
const RECEIVE_BYTES = 1024 * 1024;
/** Far more than a server has to say unasked. */
const HANDSHAKE_BYTES = 256 * 1024;
/** Opening a volume that was not open yet is part of it. */
const HANDSHAKE_TIMEOUT_MS = 30_000;

/** What a session tells its owner. */
export interface SessionOwner extends ReplySink {
  /** The socket is closed: nothing is read from, or written to, any request's data any more. */
  ended(session: Session, reason: string): void;
}

/** One connection to an export, in transmission. Requests are sent in the order of `send`, whatever their replies do. */
export class Session {
  readonly info: ExportInfo;
  readonly #socket: net.Socket;
  readonly #incoming: Incoming;
  #corked = false;
  #reason = "the server closed the connection";

  private constructor(socket: net.Socket, incoming: Incoming, info: ExportInfo) {
    this.#socket = socket;
    this.#incoming = incoming;
    this.info = info;
  }

  /** @throws RefusedError, UllageError `nbd-unreachable`, `nbd-handshake` */
  static async open(address: ListenAddress, exportName: string, signal: AbortSignal): Promise<Session> {
    const target = address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
    const incoming = new Incoming();
    const socket = net.connect({
      ...target,
      noDelay: true,
      keepAlive: true,
      onread: {
        buffer: Buffer.allocUnsafeSlow(RECEIVE_BYTES),
        callback: (length, buffer) => {
          incoming.arrived((buffer as Buffer).subarray(0, length));
          return true;
        },
      },
    });
    socket.on("error", (error) => incoming.ended(error));
    socket.on("end", () => socket.destroy());
    socket.on("close", () => incoming.ended(new Error("it closed the connection during the handshake")));
    const onAbort = (): void => void socket.destroy(new Error("given up"));
    signal.addEventListener("abort", onAbort, { once: true });
    const timer = setTimeout(() => socket.destroy(new Error("the handshake takes too long")), HANDSHAKE_TIMEOUT_MS);
    const channel = {
      read: (length: number) => incoming.read(length),
      write: (bytes: Buffer) => void socket.write(bytes),
    };
    try {
      return new Session(socket, incoming, await handshake(channel, exportName));
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
    socket.on("error", (error) => (this.#reason = error.message));
    const ended = (): void => owner.ended(this, this.#reason);
    if (socket.closed) ended();
    else socket.on("close", ended);
    this.#incoming.deliverTo((bytes) => {
      try {
        if (!socket.destroyed) reader.push(bytes);
      } catch (error) {
        this.#reason = (error as Error).message;
        socket.destroy();
      }
    });
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
   * NBD_CMD_DISC: the server ends what it has begun, answers it, and closes; it is cut off after `timeoutMs`. Not `destroy`:
   * what the server has received and not begun yet could otherwise be done after what the next connection sends.
   */
  goodbye(timeoutMs: number): void {
    this.#socket.write(disconnectRequest());
    const timer = setTimeout(() => this.#socket.destroy(), timeoutMs);
    this.#socket.once("close", () => clearTimeout(timer));
  }
}

/**
 * What arrives: kept until it is read during the handshake, then delivered as it comes. The bytes are only lent, in the
 * buffer that the socket reads into next.
 */
class Incoming {
  #unread: Buffer = Buffer.alloc(0);
  #wanted = 0;
  #woken: (() => void) | undefined;
  #error: Error | undefined;
  #deliver: ((bytes: Buffer) => void) | undefined;

  arrived(bytes: Buffer): void {
    if (this.#deliver !== undefined) {
      this.#deliver(bytes);
      return;
    }
    if (this.#unread.length + bytes.length > HANDSHAKE_BYTES) {
      this.ended(new Error(`more than ${HANDSHAKE_BYTES} bytes in the handshake`));
      return;
    }
    this.#unread = Buffer.concat([this.#unread, bytes]);
    if (this.#unread.length >= this.#wanted) this.#woken?.();
  }

  /** Nothing more will arrive. */
  ended(error: Error): void {
    this.#error ??= error;
    this.#woken?.();
  }

  async read(length: number): Promise<Buffer> {
    if (this.#unread.length < length && this.#error === undefined) {
      this.#wanted = length;
      await new Promise<void>((resolve) => (this.#woken = resolve));
    }
    if (this.#unread.length < length) {
      throw new UllageError("nbd-unreachable", "no connection to the NBD server", { cause: this.#error });
    }
    const bytes = this.#unread.subarray(0, length);
    this.#unread = this.#unread.subarray(length);
    return bytes;
  }

  deliverTo(deliver: (bytes: Buffer) => void): void {
    this.#deliver = deliver;
    const bytes = this.#unread;
    this.#unread = Buffer.alloc(0);
    if (bytes.length > 0) deliver(bytes);
  }
}
