/*
 * How the thread pool is shared. Syncs may take seconds on a slow disk, unpacking compressed data as long as there is
 * some, and a call into the file system of a source for ever: each class has so many threads at most, in the whole process,
 * that a read of our own files always finds one (durability rule 29).
 *
 *     18 threads:   sync 4   compute 2   sources: disks 4, others 6   left for reads 2
 *      4 threads:   sync 1   compute 1   sources: disks 2, others 2   left for reads 2, while no source hangs
 */

const poolThreads = Number(process.env["UV_THREADPOOL_SIZE"] ?? 4);

/** Places for calls into the file systems of sources; of them, so many for the background. */
interface SourcePlaces {
  total: number;
  background: number;
}

const many = poolThreads >= 18;
const few: SourcePlaces = { total: 2, background: 1 };

/** On disks of this host, all together. */
export const diskPlaces: SourcePlaces = many ? { total: 4, background: 2 } : few;

/** On everything that others answer for (NFS, FUSE, …), all together. */
export const otherPlaces: SourcePlaces = many ? { total: 6, background: 4 } : few;

/** On one of these: a dead server leaves places for the others. */
export const otherMountPlaces: SourcePlaces = many ? { total: 3, background: 2 } : few;

const ownThreads = Math.max(4, poolThreads - diskPlaces.total - otherPlaces.total);
const computeThreads = Math.max(1, Math.floor(ownThreads / 4));

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

export const syncSlots = new Slots(Math.max(1, ownThreads - computeThreads - 2));

/** For work that keeps a processor busy: decompression. */
export const computeSlots = new Slots(computeThreads);
