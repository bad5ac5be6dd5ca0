import { Worker } from "node:worker_threads";

/*
 * Threads that compute: each takes a request as a message and answers it with one, in order.
 *
 *     none --somebody asks--> starting --they say that they run--> running --nothing to do for a while--> none
 *
 * What the background asks waits for everything that somebody waits for.
 */

const IDLE_MS = 10_000;

export interface BatchThreadsOptions {
  /** What the threads run. */
  file: URL;
  count: number;
  /** Requests that a thread has at once: with two it need not wait for the event loop between them. */
  perThread: number;
  /** Nothing was asked for a while: the threads end. */
  onIdle?: () => void;
}

interface Batch<Request, Reply> {
  request: Request;
  resolve(reply: Reply): void;
  reject(error: unknown): void;
}

interface Thread<Request, Reply> {
  worker: Worker;
  running: boolean;
  /** In the order in which they are answered. */
  batches: Batch<Request, Reply>[];
}

export class BatchThreads<Request, Reply> {
  readonly #options: BatchThreadsOptions;
  readonly #threads = new Set<Thread<Request, Reply>>();
  readonly #foreground: Batch<Request, Reply>[] = [];
  readonly #background: Batch<Request, Reply>[] = [];
  #idle: NodeJS.Timeout | undefined;

  constructor(options: BatchThreadsOptions) {
    this.#options = options;
  }

  /** Whether a request would be begun at once, or behind others. Starts the threads if there are none. */
  ready(): boolean {
    if (this.#threads.size === 0) for (let n = 0; n < this.#options.count; n++) this.#start();
    return [...this.#threads].some(({ running }) => running);
  }

  /** @throws Error when the thread has ended */
  run(request: Request, background: boolean): Promise<Reply> {
    this.ready();
    return new Promise((resolve, reject) => {
      (background ? this.#background : this.#foreground).push({ request, resolve, reject });
      this.#pump();
    });
  }

  #start(): void {
    const worker = new Worker(this.#options.file);
    const thread: Thread<Request, Reply> = { worker, running: false, batches: [] };
    this.#threads.add(thread);
    let failure: unknown;
    worker.on("online", () => {
      thread.running = true;
      this.#pump();
    });
    worker.on("error", (error) => (failure = error));
    worker.on("exit", (code) => {
      this.#threads.delete(thread);
      const lost = thread.batches.splice(0);
      if (this.#threads.size === 0) lost.push(...this.#foreground.splice(0), ...this.#background.splice(0));
      const error = new Error(`a thread has ended with ${code}`, { cause: failure });
      for (const batch of lost) batch.reject(error);
    });
    worker.on("message", (reply: Reply) => {
      thread.batches.shift()!.resolve(reply);
      this.#pump();
    });
    worker.unref();
  }

  #pump(): void {
    for (let each = 0; each < this.#options.perThread; each++) {
      for (const thread of this.#threads) {
        if (!thread.running || thread.batches.length > each) continue;
        const batch = this.#foreground.shift() ?? this.#background.shift();
        if (batch === undefined) break;
        thread.batches.push(batch);
        thread.worker.postMessage(batch.request, []);
      }
    }
    const waiting = this.#foreground.length + this.#background.length > 0;
    for (const { worker, batches } of this.#threads) {
      // Only who waits for an answer keeps the process alive.
      if (waiting || batches.length > 0) worker.ref();
      else worker.unref();
    }
    this.#endWhenIdle();
  }

  #endWhenIdle(): void {
    if (this.#idle !== undefined) return void this.#idle.refresh();
    this.#idle = setTimeout(() => {
      this.#idle = undefined;
      if ([...this.#threads].some(({ batches }) => batches.length > 0)) return this.#endWhenIdle();
      this.#options.onIdle?.();
      for (const { worker } of this.#threads) void worker.terminate();
      this.#threads.clear();
    }, IDLE_MS).unref();
  }
}
