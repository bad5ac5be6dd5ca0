/*
 * Who needs something that is not there often needs what lies beside it soon: a system that boots reads files, and a file
 * system keeps what belongs together near each other. So the other half of the window around a miss is fetched along with
 * it, while that proves useful: of what was fetched so, some share is read soon after. Where it is not, as with random
 * reads all over a database, only a miss now and then tries it again.
 */

/** What one miss brings; twice as much is its window, aligned. */
export const MISS_BYTES = 256 * 1024;

/** Halves that were fetched and not looked at yet; one that is forgotten was of no use. */
const REMEMBERED = 64;
/** Weight of one more half in the share of useful ones. */
const EWMA = 1 / 16;
const LEAST_USEFUL = 0.2;
/** So many places are missed before the first neighbour is fetched. */
const FIRST_MISSES = 8;
/** Every so many misses it is tried, useful or not. */
const TRIAL = 16;

export class Neighbours {
  /** Bytes of a half; 0: there are none. */
  readonly half: number;
  /** Numbers of halves, oldest first. */
  readonly #untouched = new Set<number>();
  #useful = 0.5;
  #misses = 0;
  /** The half that was missed last; -1: none yet. */
  #last = -1;

  /** @param missBytes what a miss brings; 0: nothing is fetched in this way @param unitBytes of the blob */
  constructor(missBytes: number, unitBytes: number) {
    this.half = missBytes === 0 ? 0 : Math.max(missBytes, unitBytes);
  }

  /** A range was read, whether it was there or not. Allocates nothing. */
  noteRead(offset: number, length: number): void {
    if (this.#untouched.size === 0) return;
    const last = Math.floor((offset + length - 1) / this.half);
    for (let half = Math.floor(offset / this.half); half <= last; half++) {
      if (this.#untouched.delete(half)) this.#useful += EWMA * (1 - this.#useful);
    }
  }

  /**
   * A range was read that is not there.
   * @returns where the half begins that is worth to be fetched as well, which may be behind the blob's end; -1: none
   */
  missed(offset: number, length: number): number {
    if (this.half === 0) return -1;
    const first = Math.floor(offset / this.half);
    // What goes over the edge of a half is a matter for readahead.
    if (first !== Math.floor((offset + length - 1) / this.half)) return -1;
    // A few places, however many read them, say nothing of a reader who goes about.
    if (first === this.#last) return -1;
    this.#last = first;
    if (++this.#misses <= FIRST_MISSES) return -1;
    const tried = this.#misses % TRIAL === 0;
    if (this.#useful < LEAST_USEFUL && !tried) return -1;
    return (first % 2 === 0 ? first + 1 : first - 1) * this.half;
  }

  /** The half that begins there is being fetched for this reason. */
  fetching(offset: number): void {
    const half = offset / this.half;
    if (this.#untouched.size >= REMEMBERED) {
      const oldest = this.#untouched.values().next().value!;
      this.#untouched.delete(oldest);
      this.#useful -= EWMA * this.#useful;
    }
    this.#untouched.add(half);
  }
}
