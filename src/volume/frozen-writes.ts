import { describeError } from "../base/errors.ts";
import { type FrozenMap, writeFrozenMap } from "./frozen-map.ts";
import type { VolumeEnvironment } from "./types.ts";

/**
 * Frozen maps on their way into files, one after the other, beside requests. Until one is there the volume's map and log
 * can rebuild it; so a failure loses nothing, and the next checkpoint, which may not go on without them, tries again.
 */
export class FrozenWrites {
  readonly #env: VolumeEnvironment;
  readonly #pending = new Map<string, FrozenMap>();
  #working: Promise<void> = Promise.resolve();

  constructor(env: VolumeEnvironment) {
    this.#env = env;
  }

  /** One that is in no file yet. */
  get(id: string): FrozenMap | undefined {
    return this.#pending.get(id);
  }

  tables(): FrozenMap["table"][] {
    return [...this.#pending.values()].map(({ table }) => table);
  }

  add(frozen: FrozenMap): void {
    this.#pending.set(frozen.id, frozen);
    this.write(frozen.id).catch((error: unknown) => {
      this.#env.log("warn", `snapshot ${frozen.id}: its map can't be written now: ${describeError(error)}`);
    });
  }

  /** Resolves when the frozen map is in its file, durably. */
  write(id: string): Promise<void> {
    const done = this.#working.then(async () => {
      const frozen = this.#pending.get(id);
      if (frozen === undefined) return;
      await writeFrozenMap(this.#env, frozen);
      this.forget(id);
    });
    this.#working = done.catch(() => undefined);
    return done;
  }

  /** Resolves when none is left. */
  async writeAll(): Promise<void> {
    for (const id of [...this.#pending.keys()]) await this.write(id);
    await this.#working;
  }

  /** It is not needed any more. */
  forget(id: string): void {
    this.#pending.get(id)?.map.release();
    this.#pending.delete(id);
  }

  /** Resolves when nothing is under way. */
  settled(): Promise<void> {
    return this.#working;
  }
}
