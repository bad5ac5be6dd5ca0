/*
 * Recognises readers that jump by the same distance again and again: a guest that looks at every block group of a file
 * system, say. After STEADY equal jumps the next reads are foretold.
 *
 * One such reader at a time; sequential ones are readahead.ts's.
 */

const STEADY = 3;
/** Longer jumps are chance. */
const MAX_STRIDE_BYTES = 256 * 1024 * 1024;
/** How many reads ahead. */
export const STRIDES_AHEAD = 8;

export class Strides {
  #last = Number.NaN;
  #stride = Number.NaN;
  #steady = 0;
  /** Up to where was foretold already, in the direction of the stride. */
  #told = Number.NaN;

  /**
   * Notes a read.
   * @returns bytes from one read to the next (negative: backwards), when the reader is believed and there is something to
   * be fetched; 0: not
   */
  note(offset: number, length: number): number {
    const stride = offset - this.#last;
    this.#last = offset;
    if (stride !== this.#stride || Math.abs(stride) <= length || Math.abs(stride) > MAX_STRIDE_BYTES) {
      this.#stride = stride;
      this.#steady = 0;
      this.#told = Number.NaN;
      return 0;
    }
    this.#steady++;
    if (this.#steady < STEADY) return 0;
    // Half of what was foretold is still ahead.
    const left = (this.#told - offset) / stride;
    if (left > STRIDES_AHEAD / 2) return 0;
    this.#told = offset + stride * STRIDES_AHEAD;
    return stride;
  }
}
