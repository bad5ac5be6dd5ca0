/**
 * Exclusive locks on ranges of blocks, granted in arrival order: a range that overlaps a held one, or one that waits,
 * queues behind it (durability rule 15). No waiter holds anything else of this lock, so there are no circles.
 *
 *     held     |--A--|      |--B--|
 *     waiting      |--C--|            C waits for A
 *     arriving            |-D-|       D overlaps B: queues; a range that touches none of them is granted at once
 *
 * The number of ranges is bounded by the operations in flight, which the exports bound; scans are linear.
 */
export class RangeLock {
  readonly #held: Range[] = [];
  readonly #waiting: Range[] = [];

  /** Nothing is held and nothing waits: the fast path's only question, most of the time. */
  get idle(): boolean {
    return this.#held.length === 0;
  }

  /** Whether an operation on [start, end) would have to queue. */
  overlaps(start: number, end: number): boolean {
    return overlapsAny(this.#held, start, end) || overlapsAny(this.#waiting, start, end);
  }

  /** Resolves when [start, end) is held; `release` the result exactly once. */
  acquire(start: number, end: number): Promise<Range> | Range {
    const range: Range = { start, end, granted: undefined };
    if (!this.overlaps(start, end)) {
      this.#held.push(range);
      return range;
    }
    this.#waiting.push(range);
    return new Promise((resolve) => {
      range.granted = resolve;
    });
  }

  release(range: Range): void {
    const index = this.#held.indexOf(range);
    if (index < 0) throw new Error(`range ${range.start}-${range.end} is not held`);
    this.#held[index] = this.#held[this.#held.length - 1]!;
    this.#held.pop();
    for (let i = 0; i < this.#waiting.length;) {
      const waiter = this.#waiting[i];
      const blocked =
        overlapsAny(this.#held, waiter.start, waiter.end) || overlapsAny(this.#waiting, waiter.start, waiter.end, i);
      if (blocked) {
        i++;
        continue;
      }
      this.#waiting.splice(i, 1);
      this.#held.push(waiter);
      waiter.granted!(waiter);
    }
  }
}

export interface Range {
  readonly start: number;
  readonly end: number;
  granted: ((range: Range) => void) | undefined;
}

function overlapsAny(ranges: Range[], start: number, end: number, count = ranges.length): boolean {
  for (let i = 0; i < count; i++) {
    const range = ranges[i];
    if (range.start < end && start < range.end) return true;
  }
  return false;
}
