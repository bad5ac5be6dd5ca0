import { orAborted } from "./or-aborted.ts";

/**
 * One piece of work that several wait for. Each may leave when its signal says so; when nobody waits any more, the work
 * itself is aborted.
 */
export class SharedWork<T> {
  readonly #controller = new AbortController();
  readonly #result: Promise<T>;
  #waiters = 0;
  #settled = false;

  /** Starts `work` at once. */
  constructor(work: (signal: AbortSignal) => Promise<T>) {
    this.#result = work(this.#controller.signal);
    const settle = (): void => void (this.#settled = true);
    this.#result.then(settle, settle); // whoever waits meets the failure
  }

  /** Everybody has left: it is about to fail, and no use to anybody new. */
  get aborted(): boolean {
    return this.#controller.signal.aborted;
  }

  /** The result, or the failure, of the work; rejects with the reason of `signal` when that comes first. */
  async join(signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted();
    this.#waiters++;
    try {
      return await orAborted(this.#result, signal);
    } finally {
      this.#waiters--;
      if (this.#waiters === 0 && !this.#settled) this.#controller.abort(signal?.reason);
    }
  }
}
