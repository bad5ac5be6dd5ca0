/*
 * Syncs may take seconds on a slow disk and there are only so many threads in the pool: at most (threads - 2) of them run
 * at once in the whole process, so that a read always finds a thread (durability rule 29).
 */

const poolThreads = Number(process.env["UV_THREADPOOL_SIZE"] ?? 4);

class Slots {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  /** Runs `work` as soon as a slot is free, first come first served. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}

export const syncSlots = new Slots(Math.max(1, poolThreads - 2));
