/*
 * How the thread pool is shared. Syncs may take seconds on a slow disk, and unpacking compressed data as long as there is
 * some: each class has so many threads at most, in the whole process, that a read always finds one (durability rule 29).
 *
 *     8 threads:   sync 4   compute 2   left for reads 2
 *     4 threads:   sync 1   compute 1   left for reads 2
 */

const poolThreads = Number(process.env["UV_THREADPOOL_SIZE"] ?? 4);
const computeThreads = Math.max(1, Math.floor(poolThreads / 4));

/** So many at once; the rest waits, first come first served. */
export class Slots {
  readonly count: number;
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.count = count;
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

export const syncSlots = new Slots(Math.max(1, poolThreads - computeThreads - 2));

/** For work that keeps a processor busy: decompression. */
export const computeSlots = new Slots(computeThreads);
