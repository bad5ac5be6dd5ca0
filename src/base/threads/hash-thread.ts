import { Worker } from "node:worker_threads";
import { threadFile } from "./thread-file.ts";

/** To the thread: bytes to add, or null for the digest; from it: done with them, or the digest. */
export type HashReply = { kind: "more" } | { kind: "digest"; hex: string };

/** Hashes what it is given, in order. */
export interface Hashing {
  /** Resolves when the bytes are hashed, and may be changed. One call at a time. */
  update(bytes: Uint8Array): Promise<void>;
  /** Of everything, in hexadecimal. */
  digest(): Promise<string>;
  /** To be called at the end, whatever happened. */
  close(): Promise<void>;
}

/** Hashes in a thread of its own: gigabytes on the event loop would stop everybody else. */
export class HashThread implements Hashing {
  readonly #worker: Worker;
  #waiting: { resolve(reply: HashReply): void; reject(error: Error): void } | undefined;
  #ended: Error | undefined;

  /** @param algorithm as node:crypto names it */
  constructor(algorithm: string) {
    this.#worker = new Worker(threadFile("hash-worker", import.meta.url), { workerData: algorithm });
    this.#worker.on("message", (reply: HashReply) => {
      this.#waiting?.resolve(reply);
      this.#waiting = undefined;
    });
    this.#worker.on("error", (error: Error) => this.#fail(error));
    this.#worker.on("exit", () => this.#fail(new Error("the thread that hashes has ended")));
  }

  #fail(error: Error): void {
    this.#ended ??= error;
    this.#waiting?.reject(error);
    this.#waiting = undefined;
  }

  async #ask(message: Uint8Array | null): Promise<HashReply> {
    if (this.#ended !== undefined) throw this.#ended;
    const { promise, resolve, reject } = Promise.withResolvers<HashReply>();
    this.#waiting = { resolve, reject };
    this.#worker.postMessage(message, []);
    return promise;
  }

  async update(bytes: Uint8Array): Promise<void> {
    await this.#ask(bytes); // structured cloning copies them
  }

  async digest(): Promise<string> {
    const reply = await this.#ask(null);
    return reply.kind === "digest" ? reply.hex : "";
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }
}
