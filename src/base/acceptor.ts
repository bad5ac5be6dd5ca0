import { closeSync } from "node:fs";
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from "node:worker_threads";
import { eventfd, signalEvent } from "./posix.ts";

/** What the thread is told: the descriptors it listens on from now on. */
export interface AcceptorCommand {
  listeners: number[];
}

/** What the thread tells. */
export type AcceptorMessage =
  { kind: "accepted"; listener: number; fd: number } | { kind: "starved"; errno: string } | { kind: "applied" };

export interface AcceptorData {
  wake: number;
  shared: SharedArrayBuffer;
  port: MessagePort;
}

/** Words of the memory that both threads see. */
export const AcceptorWord = { pending: 0, stop: 1, count: 2 } as const;

/** What a listener does with a connection: the descriptor is its own, non-blocking and close-on-exec. */
export type AcceptHandler = (fd: number) => void;

/**
 * The thread that accepts connections and hands over their descriptors, which Node's own servers don't: with a
 * descriptor a socket can be read into our buffers and tuned. It waits in poll(2) for its listening sockets and for an
 * eventfd, by which it is told that the set of sockets changed or that it should end.
 *
 * The thread starts with the first listener and ends with the last. It never holds more than a bounded number of
 * accepted descriptors that this thread has not taken over; the rest waits in the kernel's backlog.
 */
export class Acceptor {
  readonly #handlers = new Map<number, AcceptHandler>();
  readonly #words = new Int32Array(new SharedArrayBuffer(4 * AcceptorWord.count));
  readonly #onStarved: (errno: string) => void;
  #wake = -1;
  #worker: Worker | undefined;
  #port: MessagePort | undefined;
  #applied: (() => void)[] = [];
  readonly #onExit = (): void => this.#signalStop();

  /** @param onStarved accept(2) failed for lack of descriptors or memory; it is tried again after a pause */
  constructor(onStarved: (errno: string) => void) {
    this.#onStarved = onStarved;
  }

  /** Accepts from a listening socket from now on. The caller keeps the descriptor and closes it after `remove`. */
  add(listener: number, handler: AcceptHandler): void {
    this.#handlers.set(listener, handler);
    if (this.#worker === undefined) this.#start();
    void this.#tell();
  }

  /** Resolves when the thread no longer uses the descriptor. */
  async remove(listener: number): Promise<void> {
    if (!this.#handlers.delete(listener)) return;
    if (this.#handlers.size === 0) await this.#end();
    else await this.#tell();
  }

  #start(): void {
    this.#words.fill(0);
    this.#wake = eventfd();
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.on("message", (message: AcceptorMessage) => this.#receive(message));
    const data: AcceptorData = { wake: this.#wake, shared: this.#words.buffer, port: port2 };
    // The extension is the one this file runs with: .ts in a checkout, .js in the package.
    const file = new URL(
      `./acceptor-thread${import.meta.url.slice(import.meta.url.lastIndexOf("."))}`,
      import.meta.url,
    );
    this.#worker = new Worker(file, { workerData: data, transferList: [port2] });
    // Leaving the process joins its threads: without this one more poll(2) would hold it up for ever.
    process.on("exit", this.#onExit);
  }

  #receive(message: AcceptorMessage): void {
    if (message.kind === "accepted") {
      Atomics.sub(this.#words, AcceptorWord.pending, 1);
      const handler = this.#handlers.get(message.listener);
      if (handler === undefined) closeSync(message.fd);
      else handler(message.fd);
    } else if (message.kind === "starved") {
      this.#onStarved(message.errno);
    } else {
      this.#applied.shift()?.();
    }
  }

  #tell(): Promise<void> {
    return new Promise((resolve) => {
      this.#applied.push(resolve);
      const command: AcceptorCommand = { listeners: [...this.#handlers.keys()] };
      this.#port!.postMessage(command, []);
      signalEvent(this.#wake);
    });
  }

  #signalStop(): void {
    Atomics.store(this.#words, AcceptorWord.stop, 1);
    signalEvent(this.#wake);
  }

  async #end(): Promise<void> {
    const worker = this.#worker!;
    const port = this.#port!;
    const wake = this.#wake;
    this.#worker = undefined;
    const exited = new Promise((resolve) => worker.once("exit", resolve));
    process.off("exit", this.#onExit);
    this.#signalStop();
    await exited;
    for (;;) {
      const left = receiveMessageOnPort(port);
      if (left === undefined) break;
      this.#receive(left.message as AcceptorMessage);
    }
    port.close();
    closeSync(wake);
    for (const resolve of this.#applied.splice(0)) resolve();
  }
}
