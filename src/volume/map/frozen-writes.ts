import { dirname } from "node:path";
import { describeError, IoError } from "../../base/errors.ts";
import { type FrozenMap, writeFrozenMap } from "./frozen-map.ts";
import { frozenMapPath } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/**
 * A snapshot is often followed by something that is in a hurry, a clone or a client: the file can wait so long, ms. Until
 * then the frozen map costs the memory of what changes.
 */
const QUIET_MS = 500;

/**
 * Frozen maps on their way into files, one after the other, beside requests. Until one is there the volume's map and log
 * can rebuild it; so a failure loses nothing, and the next checkpoint, which may not go on without them, tries again.
 *
 *     added in the turn of its record -> committed with it (durability rule 3) -> written -> gone from here
 */
export class FrozenWrites {
  readonly #env: VolumeEnvironment;
  readonly #commit: () => Promise<void>;
  readonly #onGivenUp: (layers: string[]) => void;
  readonly #pending = new Map<string, FrozenMap>();
  #working: Promise<void> = Promise.resolve();
  readonly #stopping = new AbortController();
  #soon: Promise<void> | undefined;
  #stopped = false;

  /**
   * @param commit makes every record that has been appended durable, with its data
   * @param onGivenUp told of layers that a table here named, and its file does not
   */
  constructor(env: VolumeEnvironment, commit: () => Promise<void>, onGivenUp: (layers: string[]) => void) {
    this.#env = env;
    this.#commit = commit;
    this.#onGivenUp = onGivenUp;
  }

  /** One that is in no file yet. */
  get(id: string): FrozenMap | undefined {
    return this.#pending.get(id);
  }

  ids(): string[] {
    return [...this.#pending.keys()];
  }

  tables(): FrozenMap["table"][] {
    return [...this.#pending.values()].map(({ table }) => table);
  }

  add(frozen: FrozenMap): void {
    this.#pending.set(frozen.id, frozen);
  }

  /** Writes all there are, in a moment. */
  start(): void {
    this.#soon ??= this.#writeSoon();
  }

  async #writeSoon(): Promise<void> {
    try {
      await this.#env.clock.sleep(QUIET_MS, this.#stopping.signal);
      this.#soon = undefined;
      await this.writeAll();
    } catch (error) {
      if (!this.#stopped) this.#env.log("warn", `the map of a snapshot can't be written now: ${describeError(error)}`);
    }
  }

  /** Resolves when the frozen map is in its file, durably. */
  write(id: string): Promise<void> {
    return this.#next(async () => {
      const frozen = this.#pending.get(id);
      if (frozen === undefined) return;
      await this.#commit(); // a frozen map that is there refers to nothing that could still be lost
      this.#drop(frozen, await writeFrozenMap(this.#env, frozen));
    });
  }

  /** Resolves when none is left. */
  async writeAll(): Promise<void> {
    for (const id of this.#pending.keys()) await this.write(id);
    await this.#working;
  }

  /** It is not needed any more: when this resolves it is neither here nor in a file. */
  forget(id: string): Promise<void> {
    return this.#next(async () => {
      const frozen = this.#pending.get(id);
      if (frozen !== undefined) this.#drop(frozen);
      const path = frozenMapPath(this.#env.dataDir, id);
      if (!(await this.#env.fs.exists(path))) return;
      await this.#env.fs.unlink(path);
      await this.#env.fs.syncDirectory(dirname(path));
    });
  }

  /** @param inFile its table there, if it has a file */
  #drop(frozen: FrozenMap, inFile?: FrozenMap["table"]): void {
    this.#pending.delete(frozen.id);
    frozen.map.release();
    const givenUp = frozen.table.only((owner, { kind }) => kind === "layer" && inFile?.has(owner) !== true);
    this.#onGivenUp([...givenUp.entries()].map(([, { id }]) => id));
  }

  #next(work: () => Promise<void>): Promise<void> {
    if (this.#stopped) return Promise.reject(new IoError("ESHUTDOWN", "the volume is being closed"));
    const done = this.#working.then(work);
    this.#working = done.catch(() => undefined);
    return done;
  }

  /** Begins nothing more, and resolves when nothing is under way. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#stopping.abort(new IoError("ESHUTDOWN", "the volume is being closed"));
    await this.#soon;
    await this.#working;
  }
}
