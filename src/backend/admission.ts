/**
 * Two classes share a fixed number of places. Background work may hold only some of them, and a free place always goes
 * to the oldest foreground waiter first: a foreground read never waits behind a background one that has not started.
 *
 *     total 24, background 16:   [bbbbbbbbbbbbbbbb|........]   the last eight are only ever the foreground's
 *
 * Waiters are bounded by the callers: each is one read that somebody awaits.
 */
export class Admission {
  readonly #total: number;
  readonly #backgroundLimit: number;
  #active = 0;
  #activeBackground = 0;
  readonly #foreground: Waiter[] = [];
  readonly #background: Waiter[] = [];

  constructor(total: number, background: number) {
    if (background < 1 || total <= background) throw new RangeError(`no place for foreground: ${total}, ${background}`);
    this.#total = total;
    this.#backgroundLimit = background;
  }

  /** Runs `work` once it has a place. Rejects with the signal's reason when it is aborted while waiting. */
  async run<T>(background: boolean, signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
    signal?.throwIfAborted();
    if (this.#mayStart(background)) this.#take(background);
    else await this.#wait(background, signal);
    try {
      return await work();
    } finally {
      this.#active--;
      if (background) this.#activeBackground--;
      this.#startWaiters();
    }
  }

  /** Sends everybody away who waits for a place. */
  rejectWaiting(reason: Error): void {
    for (const waiter of [...this.#foreground.splice(0), ...this.#background.splice(0)]) waiter.refuse(reason);
  }

  #mayStart(background: boolean): boolean {
    if (this.#active >= this.#total) return false;
    return !background || this.#activeBackground < this.#backgroundLimit;
  }

  #take(background: boolean): void {
    this.#active++;
    if (background) this.#activeBackground++;
  }

  #wait(background: boolean, signal: AbortSignal | undefined): Promise<void> {
    const queue = background ? this.#background : this.#foreground;
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        queue.splice(queue.indexOf(waiter), 1);
        reject(signal!.reason as Error);
      };
      const waiter: Waiter = {
        start: () => {
          signal?.removeEventListener("abort", onAbort);
          this.#take(background);
          resolve();
        },
        refuse: (reason) => {
          signal?.removeEventListener("abort", onAbort);
          reject(reason);
        },
      };
      signal?.addEventListener("abort", onAbort, { once: true });
      queue.push(waiter);
    });
  }

  #startWaiters(): void {
    while (this.#foreground.length > 0 && this.#mayStart(false)) this.#foreground.shift()!.start();
    while (this.#background.length > 0 && this.#mayStart(true)) this.#background.shift()!.start();
  }
}

interface Waiter {
  start(): void;
  refuse(reason: Error): void;
}
