/**
 * A monotone counter that callers wait on: "wake me when it has reached n". Group commit is one counter of completed
 * rounds and many waiters. A failure wakes everybody (durability rule 21d) and stays: later waits fail at once.
 */
export class CounterWait {
  #value = 0;
  #failure: Error | undefined;
  /** In ascending order of `target`. */
  #waiters: { target: number; resolve: () => void; reject: (error: Error) => void }[] = [];

  get value(): number {
    return this.#value;
  }

  /** Resolves once the counter is at least `target`. */
  wait(target: number): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure);
    if (target <= this.#value) return Promise.resolve();
    return new Promise((resolve, reject) => {
      let index = this.#waiters.length;
      while (index > 0 && this.#waiters[index - 1]!.target > target) index--;
      this.#waiters.splice(index, 0, { target, resolve, reject });
    });
  }

  /** @param to at least the present value */
  advance(to: number): void {
    if (to < this.#value) throw new RangeError(`counter can't go back from ${this.#value} to ${to}`);
    this.#value = to;
    let woken = 0;
    while (woken < this.#waiters.length && this.#waiters[woken]!.target <= to) this.#waiters[woken++]!.resolve();
    if (woken > 0) this.#waiters.splice(0, woken);
  }

  fail(error: Error): void {
    this.#failure ??= error;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.reject(error);
  }
}
