import net from "node:net";
import tls from "node:tls";
import { UllageError } from "../base/errors.ts";
import { handshake, type HandshakeStream, type HandshakeWish, type Negotiated } from "./client-handshake.ts";
import { type ClientRequest, disconnectRequest, requestHeader } from "./client-request.ts";
import { ReplyReader, type ReplySink } from "./reply-reader.ts";

/** As much as a unix socket holds, so that a large reply takes few turns. */
const RECEIVE_BYTES = 1024 * 1024;
/** Far more than a server has to say unasked. */
const HANDSHAKE_BYTES = 256 * 1024;

/** What a connection tells its owner. */
export interface ConnectionOwner extends ReplySink {
  /** The socket is closed: nothing is read from, or written to, any request's data any more. */
  ended(connection: ClientConnection, reason: string): void;
}

/** Where a server is, as `net.connect` takes it. */
export type ServerTarget = { path: string } | { host: string; port: number; lookup?: net.LookupFunction };

export interface OpenOptions {
  target: ServerTarget;
  wish: Omit<HandshakeWish, "tls">;
  /** Absent: no TLS. */
  tls?: tls.ConnectionOptions;
  /** Until the first request can be sent. */
  timeoutMs: number;
  signal: AbortSignal;
}

/** One connection to an export, in transmission. Requests are sent in the order of `send`, whatever their replies do. */
export class ClientConnection {
  readonly negotiated: Negotiated;
  readonly #socket: net.Socket;
  readonly #incoming: Incoming;
  #corked = false;
  #reason = "the server closed the connection";
  /** When the last bytes came (`performance.now()`). */
  heardAt = performance.now();

  private constructor(socket: net.Socket, incoming: Incoming, negotiated: Negotiated) {
    this.#socket = socket;
    this.#incoming = incoming;
    this.negotiated = negotiated;
  }

  /** @throws RefusedError, UllageError `nbd-unreachable`, `nbd-timeout`, `nbd-tls`, `nbd-handshake` */
  static async open(options: OpenOptions): Promise<ClientConnection> {
    const { target, wish, timeoutMs, signal } = options;
    const incoming = new Incoming();
    let socket = connect(options, incoming);
    const cut = (code: string, message: string): void => {
      incoming.ended(new UllageError(code, message));
      socket.destroy();
    };
    const onAbort = (): void => cut("nbd-unreachable", "given up");
    signal.addEventListener("abort", onAbort, { once: true });
    const timer = setTimeout(() => cut("nbd-timeout", `no handshake in ${timeoutMs} ms`), timeoutMs);
    const stream: HandshakeStream = {
      read: (length) => incoming.read(length),
      write: (bytes) => void socket.write(bytes),
      secure: async () => {
        // What came in the clear must not be taken for what came through TLS.
        if (incoming.length > 0) throw new UllageError("nbd-handshake", "the NBD server sent bytes before TLS was on");
        socket = await startTls(socket, options.tls!, incoming, "host" in target ? target.host : undefined);
      },
    };
    try {
      signal.throwIfAborted();
      const negotiated = await handshake(stream, { ...wish, tls: options.tls !== undefined });
      return new ClientConnection(socket, incoming, negotiated);
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
  start(owner: ConnectionOwner): void {
    const reader = new ReplyReader(owner, this.negotiated);
    const socket = this.#socket;
    socket.on("error", (error) => (this.#reason = error.message));
    const ended = (): void => owner.ended(this, this.#reason);
    if (socket.closed) ended();
    else socket.on("close", ended);
    this.#incoming.deliverTo((bytes) => {
      this.heardAt = performance.now();
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
    request.error = 0;
    request.message = "";
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

  /** Hangs up; the owner is told. */
  destroy(reason: string): void {
    this.#reason = reason;
    this.#socket.destroy();
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

function connect({ target, tls: secure }: OpenOptions, incoming: Incoming): net.Socket {
  const options = { ...target, noDelay: true, keepAlive: true };
  let socket: net.Socket;
  if (secure === undefined) {
    const onread: net.OnReadOpts = {
      buffer: Buffer.allocUnsafeSlow(RECEIVE_BYTES),
      callback: (length, buffer) => {
        incoming.arrived((buffer as Buffer).subarray(0, length));
        return true;
      },
    };
    socket = net.connect({ ...options, onread });
  } else {
    socket = net.connect(options);
    socket.on("data", (bytes: Buffer) => incoming.arrived(bytes));
  }
  watch(socket, incoming);
  return socket;
}

function watch(socket: net.Socket, incoming: Incoming): void {
  socket.on("error", (error) => incoming.ended(error));
  socket.on("end", () => socket.destroy());
  socket.on("close", () => incoming.ended(new Error("it closed the connection during the handshake")));
}

/** TLS over a connected socket that nothing has been read from since the server agreed. */
async function startTls(
  socket: net.Socket,
  options: tls.ConnectionOptions,
  incoming: Incoming,
  host: string | undefined,
): Promise<net.Socket> {
  socket.removeAllListeners("data");
  socket.removeAllListeners("end");
  const name = host === undefined || net.isIP(host) !== 0 ? {} : { servername: host };
  const secured = tls.connect({ ...name, ...(host === undefined ? {} : { host }), ...options, socket });
  watch(secured, incoming);
  secured.on("data", (bytes: Buffer) => incoming.arrived(bytes));
  await new Promise<void>((resolve, reject) => {
    const failed = (cause?: Error): void => {
      reject(new UllageError("nbd-tls", "the TLS handshake with the NBD server failed", { cause }));
    };
    secured.once("secureConnect", resolve);
    secured.once("error", failed);
    secured.once("close", () => failed());
  });
  return secured;
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

  /** Bytes that nobody has read yet. */
  get length(): number {
    return this.#unread.length;
  }

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
      const cause = this.#error;
      const code = cause instanceof UllageError ? cause.code : "nbd-unreachable";
      throw new UllageError(code, "no connection to the NBD server", { cause });
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
