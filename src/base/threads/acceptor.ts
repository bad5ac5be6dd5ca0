import { closeSync } from "node:fs";
import { PollThread } from "./poll-thread.ts";

/** What the thread is told: the descriptors it listens on from now on. */
export interface AcceptorCommand {
  listeners: number[];
}

/** What the thread tells. */
export type AcceptorMessage =
  { kind: "accepted"; listener: number; fd: number } | { kind: "starved"; errno: string } | { kind: "applied" };

export interface AcceptorSetup {
  /** one word that both threads see: accepted descriptors that the main thread has not taken over */
  pending: SharedArrayBuffer;
}

/** What a listener does with a connection: the descriptor is its own, non-blocking and close-on-exec. */
export type AcceptHandler = (fd: number) => void;

/**
 * The thread that accepts connections and hands over their descriptors, which Node's own servers don't: with a
 * descriptor a socket can be read into our buffers and tuned.
 *
 * The thread starts with the first listener and ends with the last. It never holds more than a bounded number of
 * accepted descriptors that this thread has not taken over; the rest waits in the kernel's backlog.
 */
export class Acceptor {
  readonly #handlers = new Map<number, AcceptHandler>();
  readonly #pending = new Int32Array(new SharedArrayBuffer(4));
  readonly #onStarved: (errno: string) => void;
  #thread: PollThread<AcceptorSetup, AcceptorCommand, AcceptorMessage> | undefined;
  #applied: (() => void)[] = [];

  /** @param onStarved accept(2) failed for lack of descriptors or memory; it is tried again after a pause */
  constructor(onStarved: (errno: string) => void) {
    this.#onStarved = onStarved;
  }

  /** Accepts from a listening socket from now on. The caller keeps the descriptor and closes it after `remove`. */
  add(listener: number, handler: AcceptHandler): void {
    this.#handlers.set(listener, handler);
    this.#thread ??= this.#start();
    void this.#tell(this.#thread);
  }

  /** Resolves when the thread no longer uses the descriptor. */
  async remove(listener: number): Promise<void> {
    const thread = this.#thread;
    if (!this.#handlers.delete(listener) || thread === undefined) return;
    if (this.#handlers.size > 0) {
      await this.#tell(thread);
      return;
    }
    this.#thread = undefined;
    await thread.end();
    for (const resolve of this.#applied.splice(0)) resolve();
  }

  #start(): PollThread<AcceptorSetup, AcceptorCommand, AcceptorMessage> {
    this.#pending.fill(0);
    return new PollThread("acceptor-thread", { pending: this.#pending.buffer }, (message) => this.#receive(message));
  }

  #receive(message: AcceptorMessage): void {
    if (message.kind === "accepted") {
      Atomics.sub(this.#pending, 0, 1);
      const handler = this.#handlers.get(message.listener);
      if (handler === undefined) closeSync(message.fd);
      else handler(message.fd);
    } else if (message.kind === "starved") {
      this.#onStarved(message.errno);
    } else {
      this.#applied.shift()?.();
    }
  }

  #tell(thread: PollThread<AcceptorSetup, AcceptorCommand, AcceptorMessage>): Promise<void> {
    return new Promise((resolve) => {
      this.#applied.push(resolve);
      thread.tell({ listeners: [...this.#handlers.keys()] });
    });
  }
}
