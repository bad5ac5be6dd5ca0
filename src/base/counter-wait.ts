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
      while (index > 0 && this.#waiters[index - 1].target > target) index--;
      this.#waiters.splice(index, 0, { target, resolve, reject });
    });
  }

  /**
   * @param to at least the present value
   * @param error given: whoever waited for a value up to `to` is rejected with it, later waits are unaffected
   */
  advance(to: number, error?: Error): void {
    if (to < this.#value) throw new RangeError(`counter can't go back from ${this.#value} to ${to}`);
    this.#value = to;
    let count = 0;
    while (count < this.#waiters.length && this.#waiters[count].target <= to) count++;
    for (const waiter of this.#waiters.splice(0, count)) {
      if (error) waiter.reject(error);
      else waiter.resolve();
    }
  }

  fail(error: Error): void {
    this.#failure ??= error;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.reject(error);
  }
}
