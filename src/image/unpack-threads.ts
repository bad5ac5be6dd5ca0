import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import type { Expected } from "./unpack.ts";

/*
 * Threads that unpack many small pieces with one message, which costs less than half of what as many trips through the
 * thread pool do, and next to nothing on the event loop. Packed and unpacked bytes lie in memory that all threads share.
 *
 *     none --a batch is wanted--> starting --all have said that they run--> running --nothing to do for a while--> none
 *
 * Batches are taken only by threads that run: who comes earlier uses the thread pool, instead of waiting for a start.
 * The background's batches wait for all of the foreground's.
 */

const threadCount = Math.min(4, availableParallelism());

/** Batches that a thread has at once: it need not wait for the event loop between them. */
const BATCHES_PER_THREAD = 2;

const IDLE_MS = 10_000;

/** Of packed bytes, and of unpacked ones: whoever needs more gets memory of its own. */
const SLAB_BYTES = 1024 * 1024;
const SPARE_SLABS = 8;

/** A piece of the packed bytes. */
export interface Piece extends Expected {
  from: number;
  length: number;
}

export interface UnpackRequest {
  memory: SharedArrayBuffer;
  pieces: Piece[];
  /** Where in the memory the unpacked pieces go, one behind the other. */
  to: number;
}

export interface UnpackReply {
  /** Of the pieces, unpacked. */
  lengths: number[];
  /** Why the next piece could not be. */
  failure?: string;
}

/** Memory for a batch: packed bytes in front, room for what they unpack to behind them. */
export class Slab {
  readonly memory: SharedArrayBuffer;
  readonly packed: Buffer;
  readonly unpackedAt: number;
  readonly reusable: boolean;

  constructor(packedBytes: number, unpackedBytes: number) {
    this.reusable = packedBytes === SLAB_BYTES && unpackedBytes === SLAB_BYTES;
    this.memory = new SharedArrayBuffer(packedBytes + unpackedBytes);
    this.packed = Buffer.from(this.memory, 0, packedBytes);
    this.unpackedAt = packedBytes;
  }
}

interface Batch {
  request: UnpackRequest;
  resolve(reply: UnpackReply): void;
  reject(error: unknown): void;
}

interface Thread {
  worker: Worker;
  running: boolean;
  /** In the order in which they are answered. */
  batches: Batch[];
}

class UnpackThreads {
  readonly #threads = new Set<Thread>();
  readonly #waiting: { foreground: Batch[]; background: Batch[] } = { foreground: [], background: [] };
  readonly #spare: Slab[] = [];
  #idle: NodeJS.Timeout | undefined;

  /** Whether a batch would be begun soon. Starts the threads if there are none. */
  ready(): boolean {
    if (this.#threads.size === 0) for (let n = 0; n < threadCount; n++) this.#start();
    return [...this.#threads].some(({ running }) => running);
  }

  /** To be given back when nobody looks at its bytes any more, and no thread works on it. */
  take(packedBytes: number, unpackedBytes: number): Slab {
    const fits = packedBytes <= SLAB_BYTES && unpackedBytes <= SLAB_BYTES;
    if (fits) return this.#spare.pop() ?? new Slab(SLAB_BYTES, SLAB_BYTES);
    return new Slab(packedBytes, unpackedBytes);
  }

  give(slab: Slab): void {
    if (slab.reusable && this.#spare.length < SPARE_SLABS) this.#spare.push(slab);
  }

  /**
   * Unpacks pieces of a slab's packed bytes; what they come to lies one behind the other from `unpackedAt` on.
   * @throws Error when a thread has ended
   */
  unpack(slab: Slab, pieces: Piece[], background: boolean): Promise<UnpackReply> {
    const request = { memory: slab.memory, pieces, to: slab.unpackedAt };
    return new Promise((resolve, reject) => {
      this.#waiting[background ? "background" : "foreground"].push({ request, resolve, reject });
      this.#pump();
    });
  }

  #start(): void {
    const file = import.meta.url.endsWith(".ts") ? "./unpack-worker.ts" : "./unpack-worker.js";
    const worker = new Worker(new URL(file, import.meta.url));
    const thread: Thread = { worker, running: false, batches: [] };
    this.#threads.add(thread);
    worker.unref(); // only a batch keeps the process alive
    let failure: unknown;
    worker.on("online", () => {
      thread.running = true;
      this.#pump();
    });
    worker.on("error", (error) => (failure = error));
    worker.on("exit", (code) => {
      this.#threads.delete(thread);
      const error = new Error(`a thread that unpacks has ended with ${code}`, { cause: failure });
      const lost = thread.batches.splice(0);
      if (this.#threads.size === 0)
        lost.push(...this.#waiting.foreground.splice(0), ...this.#waiting.background.splice(0));
      for (const batch of lost) batch.reject(error);
    });
    worker.on("message", (reply: UnpackReply) => {
      thread.batches.shift()!.resolve(reply);
      if (thread.batches.length === 0) worker.unref();
      this.#pump();
    });
  }

  #pump(): void {
    const { foreground, background } = this.#waiting;
    for (let each = 0; each < BATCHES_PER_THREAD; each++) {
      for (const thread of this.#threads) {
        if (!thread.running || thread.batches.length > each) continue;
        const batch = foreground.shift() ?? background.shift();
        if (batch === undefined) return this.#endWhenIdle();
        if (thread.batches.length === 0) thread.worker.ref();
        thread.batches.push(batch);
        thread.worker.postMessage(batch.request, []);
      }
    }
  }

  #endWhenIdle(): void {
    if (this.#idle !== undefined) {
      this.#idle.refresh();
      return;
    }
    this.#idle = setTimeout(() => {
      this.#idle = undefined;
      if ([...this.#threads].some(({ batches }) => batches.length > 0)) return this.#endWhenIdle();
      this.#spare.length = 0;
      for (const { worker } of this.#threads) void worker.terminate();
      this.#threads.clear();
    }, IDLE_MS).unref();
  }
}

/** Of the process. */
export const unpackThreads = new UnpackThreads();
