import { closeSync } from "node:fs";
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from "node:worker_threads";
import { eventfd, signalEvent } from "../posix.ts";

/** What every such thread starts with; `setup` is its own. */
export interface PollThreadData<Setup> {
  wake: number;
  /** one word; not 0: the thread ends */
  stop: SharedArrayBuffer;
  port: MessagePort;
  setup: Setup;
}

/**
 * A thread that waits in poll(2) for descriptors that the event loop can't wait for, and for an eventfd by which it is
 * told that there are commands for it, or that it should end. poll-loop.ts is the thread's side.
 *
 *     constructor -> running --end--> ended        nothing is told to it, and nothing heard of it, any more
 */
export class PollThread<Setup, Command, Message> {
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #wake = eventfd();
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #onMessage: (message: Message) => void;
  readonly #onExit = (): void => this.#signalStop();

  /** @param name of the thread's file beside this one, without its extension */
  constructor(name: string, setup: Setup, onMessage: (message: Message) => void) {
    this.#onMessage = onMessage;
    const { port1, port2 } = new MessageChannel();
    this.#port = port1;
    port1.on("message", onMessage);
    const data: PollThreadData<Setup> = { wake: this.#wake, stop: this.#stop.buffer, port: port2, setup };
    // The extension is the one this file runs with: .ts in a checkout, .js in the package.
    const extension = import.meta.url.slice(import.meta.url.lastIndexOf("."));
    const file = new URL(`./${name}${extension}`, import.meta.url);
    this.#worker = new Worker(file, { workerData: data, transferList: [port2] });
    // Leaving the process joins its threads: without this one more poll(2) would hold it up for ever.
    process.on("exit", this.#onExit);
  }

  tell(command: Command): void {
    this.#port.postMessage(command, []);
    signalEvent(this.#wake);
  }

  #signalStop(): void {
    Atomics.store(this.#stop, 0, 1);
    signalEvent(this.#wake);
  }

  /** Resolves when the thread has ended and everything that it told was heard. */
  async end(): Promise<void> {
    const exited = new Promise((resolve) => this.#worker.once("exit", resolve));
    process.off("exit", this.#onExit);
    this.#signalStop();
    await exited;
    for (;;) {
      const left = receiveMessageOnPort(this.#port);
      if (left === undefined) break;
      this.#onMessage(left.message as Message);
    }
    this.#port.close();
    closeSync(this.#wake);
  }
}
