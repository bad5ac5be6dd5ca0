/** Requests to sources that all hydrations of the host have under way together. */
const TOTAL_SLOTS = 32;

interface Waiter {
  priority: number;
  grant(): void;
}

/**
 * Shares the slots among the volumes that are being filled: a free slot goes to the highest priority that waits, among
 * equals to the one that has waited longest. A volume that can't go on (source down, no space) does not wait for slots,
 * so it holds nobody up.
 */
export class HydrationSlots {
  #free: number;
  readonly #waiting: Waiter[] = [];

  constructor(total = TOTAL_SLOTS) {
    this.#free = total;
  }

  /** @returns what gives the slot back, to be called once @throws the signal's reason */
  async take(priority: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    if (this.#free > 0) this.#free--;
    else await this.#wait(priority, signal);
    return () => this.#giveBack();
  }

  #wait(priority: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(waiter), 1);
        reject(signal.reason as Error);
      };
      const waiter = {
        priority,
        grant: () => {
          signal.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      this.#waiting.push(waiter);
      signal.addEventListener("abort", onAbort, { once: true });
    });
  }

  #giveBack(): void {
    let next: Waiter | undefined;
    for (const waiter of this.#waiting) if (next === undefined || waiter.priority > next.priority) next = waiter;
    if (next === undefined) {
      this.#free++;
      return;
    }
    this.#waiting.splice(this.#waiting.indexOf(next), 1);
    next.grant();
  }
}
