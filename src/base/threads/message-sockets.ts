import { PollThread } from "./poll-thread.ts";
import { closeDescriptor, duplicate } from "../posix.ts";

/** How messages are cut out of the stream: a header of fixed size that says how long the body is. */
export interface MessageFraming {
  headerBytes: number;
  /** where in the header the body's length stands, a u32, little-endian */
  bodyLengthAt: number;
  maxBodyBytes: number;
  /** descriptors that may ride on a message's header */
  maxDescriptors: number;
}

/** What one connection may take. */
export interface MessageLimits {
  /** Messages that were handed over and not answered; what comes then stays in the kernel, and holds the sender up. */
  unanswered: number;
  /** Messages waiting to be sent; a peer that reads nothing loses its connection at one more. */
  queued: number;
}

export interface MessageSetup {
  framing: MessageFraming;
  limits: MessageLimits;
}

export type MessageCommand =
  | { kind: "adopt"; socket: number; fd: number }
  | { kind: "send"; socket: number; bytes: Uint8Array; descriptors: number[] }
  | { kind: "answered"; socket: number }
  | { kind: "close"; socket: number };

export type MessageEvent =
  | { kind: "message"; socket: number; bytes: Uint8Array; descriptors: number[] }
  | { kind: "closed"; socket: number; reason: string };

/** Who is told what comes in. */
export interface MessageListener {
  /** @param bytes header and body @param descriptors close-on-exec, the listener's to close */
  message(bytes: Buffer, descriptors: number[]): void;
  /** The connection is gone; the last that is heard of it. */
  closed(reason: string): void;
}

/** A connection. */
export interface MessageSocket {
  /** @param descriptors copies of them ride on the header; they stay the caller's */
  send(bytes: Uint8Array, descriptors?: readonly number[]): void;
  /** A message that was handed over was dealt with: another one may come in. */
  answered(): void;
  close(): void;
}

/**
 * Stream sockets that carry framed messages, and descriptors with them (SCM_RIGHTS), which Node's sockets can't: a thread
 * of its own receives and sends (message-thread.ts), so that no peer ever holds the event loop up. It starts with the
 * first socket and ends with `close`.
 */
export class MessageSockets {
  readonly #setup: MessageSetup;
  readonly #listeners = new Map<number, MessageListener>();
  #thread: PollThread<MessageSetup, MessageCommand, MessageEvent> | undefined;
  #last = 0;

  constructor(framing: MessageFraming, limits: MessageLimits) {
    this.#setup = { framing, limits };
  }

  /** Takes a connected stream socket over: non-blocking, close-on-exec; the thread closes it. */
  adopt(fd: number, listener: MessageListener): MessageSocket {
    this.#thread ??= new PollThread("message-thread", this.#setup, (event) => this.#receive(event));
    const thread = this.#thread;
    const socket = ++this.#last;
    const longest = this.#setup.framing.headerBytes + this.#setup.framing.maxBodyBytes;
    this.#listeners.set(socket, listener);
    thread.tell({ kind: "adopt", socket, fd });
    return {
      send: (bytes, descriptors = []) => {
        if (bytes.length > longest) throw new RangeError(`a message of ${bytes.length} bytes`);
        if (!this.#listeners.has(socket)) return;
        thread.tell({ kind: "send", socket, bytes, descriptors: descriptors.map(duplicate) });
      },
      answered: () => this.#listeners.has(socket) && thread.tell({ kind: "answered", socket }),
      close: () => this.#listeners.has(socket) && thread.tell({ kind: "close", socket }),
    };
  }

  #receive(event: MessageEvent): void {
    const listener = this.#listeners.get(event.socket);
    if (event.kind === "closed") {
      this.#listeners.delete(event.socket);
      listener?.closed(event.reason);
    } else if (listener === undefined) {
      event.descriptors.forEach(closeDescriptor);
    } else {
      listener.message(Buffer.from(event.bytes.buffer, event.bytes.byteOffset, event.bytes.length), event.descriptors);
    }
  }

  /** Closes every connection; listeners are told. */
  async close(): Promise<void> {
    await this.#thread?.end();
    this.#thread = undefined;
  }
}
