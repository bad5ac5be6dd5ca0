/** Reads that began between two calls of `ended`. */
export interface ReadEpoch {
  running: number;
  ended: PromiseWithResolvers<void> | undefined;
}

/**
 * The reads of layers that are under way. Whoever frees blocks that no map refers to any more waits for those that began
 * before: they may have looked a block up while a map still did (durability rule 5). Later ones are not waited for, so
 * that the wait ends however busy the readers are.
 */
export class ReadEpochs {
  #current: ReadEpoch = { running: 0, ended: undefined };
  #earlier: Promise<unknown> = Promise.resolve();

  enter(): ReadEpoch {
    this.#current.running++;
    return this.#current;
  }

  leave(epoch: ReadEpoch): void {
    if (--epoch.running === 0) epoch.ended?.resolve();
  }

  /** Resolves when every read that has begun by now has ended. */
  async ended(): Promise<void> {
    const epoch = this.#current;
    if (epoch.running > 0) {
      epoch.ended = Promise.withResolvers<void>();
      this.#current = { running: 0, ended: undefined };
      this.#earlier = Promise.all([this.#earlier, epoch.ended.promise]);
    }
    await this.#earlier;
  }
}
