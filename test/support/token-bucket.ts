/** Bytes per second, handed out in order of asking; up to 10 ms worth may be saved up. */
export class TokenBucket {
  #perMs: number;
  readonly #queue: { bytes: number; resolve: () => void }[] = [];
  #tokens = 0;
  #refilledAt = performance.now();
  #timer: NodeJS.Timeout | undefined;

  constructor(bytesPerSecond: number) {
    this.#perMs = bytesPerSecond / 1000;
  }

  /** From now on. */
  set bytesPerSecond(value: number) {
    this.#refill();
    this.#perMs = value / 1000;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#serve();
  }

  take(bytes: number): Promise<void> {
    return new Promise((resolve) => {
      this.#queue.push({ bytes, resolve });
      this.#serve();
    });
  }

  #refill(): void {
    const now = performance.now();
    this.#tokens = Math.min(this.#perMs * 10, this.#tokens + (now - this.#refilledAt) * this.#perMs);
    this.#refilledAt = now;
  }

  #serve(): void {
    this.#refill();
    // Whoever is served may leave a debt, which is paid back before the next one: the mean is exact.
    while (this.#queue.length > 0 && this.#tokens > 0) {
      const next = this.#queue.shift()!;
      this.#tokens -= next.bytes;
      next.resolve();
    }
    if (this.#queue.length === 0 || this.#timer !== undefined) return;
    const waitMs = Math.max(1, -this.#tokens / this.#perMs);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#serve();
    }, waitMs);
  }
}
