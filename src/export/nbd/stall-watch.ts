import type { BufferPool } from "./buffer-pool.ts";
import { PAYLOAD_PROGRESS_BYTES } from "./limits.ts";

/** A connection, as far as it can keep others from the payload budget. */
export interface PayloadHolder {
  /** It holds a part of the budget and its client is the one to make the next move. */
  readonly holdsPayload: boolean;
  /** Bytes taken from and by the client so far. */
  readonly progressBytes: number;
  /** Ends the connection. */
  cut(reason: string): void;
}

/**
 * Sees to it that clients who stall can't keep the payload budget from others: while somebody waits for it, a holder
 * must move `PAYLOAD_PROGRESS_BYTES` in each period or is cut off. When nobody waits, nothing is looked at.
 */
export class StallWatch {
  readonly #pool: BufferPool;
  readonly #periodMs: number;
  readonly #holders: () => Iterable<PayloadHolder>;
  #timer: NodeJS.Timeout | undefined;
  #before = new Map<PayloadHolder, number>();

  constructor(pool: BufferPool, periodMs: number, holders: () => Iterable<PayloadHolder>) {
    this.#pool = pool;
    this.#periodMs = periodMs;
    this.#holders = holders;
    pool.onWait = () => this.#start();
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#before.clear();
  }

  #start(): void {
    if (this.#timer !== undefined) return;
    this.#timer = setInterval(() => this.#look(), this.#periodMs);
    this.#note();
  }

  #look(): void {
    if (!this.#pool.someoneWaits) {
      this.stop();
      return;
    }
    const before = this.#before;
    this.#before = new Map();
    for (const [holder, bytes] of before) {
      if (!holder.holdsPayload || holder.progressBytes - bytes >= PAYLOAD_PROGRESS_BYTES) continue;
      holder.cut(`it stalled with a large request, and others wait for the memory`);
    }
    this.#note();
  }

  #note(): void {
    for (const holder of this.#holders()) if (holder.holdsPayload) this.#before.set(holder, holder.progressBytes);
  }
}
