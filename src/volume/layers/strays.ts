import { describeError } from "../../base/errors.ts";
import type { Clock } from "../../base/clock.ts";
import type { RangeLock } from "../../base/range-lock.ts";
import type { Head } from "./head.ts";
import type { Layer } from "./layer.ts";
import type { OwnerMap } from "../map/owner-map.ts";

/*
 * Strays: blocks with data in the head's file that the map does not give to the head. A kill between a write and its
 * record leaves them, and so does a write that failed half-way. They are never read, but they take space, and while there
 * may be some, a block's having data proves nothing after a lost page cache (durability rule 7). Each punch runs under
 * the range lock and looks at the map right before the call (rule 5).
 */

/** One punch covers this many blocks at most (1 GiB), so that writers never wait long for the range. */
const punchBlocks = 262144;

export interface StraysOptions {
  clock: Clock;
  map: OwnerMap;
  head: Head;
  locks: RangeLock;
  warn(message: string): void;
}

export class Strays {
  readonly #options: StraysOptions;
  #working: Promise<boolean> = Promise.resolve(true);
  #stopped = false;

  constructor(options: StraysOptions) {
    this.#options = options;
  }

  /** Frees all there are, beside requests. @returns whether none is left */
  sweep(): Promise<boolean> {
    return this.#later(async () => {
      const { head, map, clock } = this.#options;
      const { layer } = head; // what a snapshot seals meanwhile is left to `reclaim`
      for (let run = layer.nextData(0); run && !this.#stopped; run = layer.nextData(run.block + run.count)) {
        if (head.layer !== layer) break;
        await this.#free(run.block, Math.min(run.block + run.count, map.blocks));
        await clock.sleep(0);
      }
    });
  }

  /** A write failed before it could claim blocks [first, last): what it left there is freed, soon. */
  abandoned(first: number, last: number): void {
    void this.#later(() => this.#free(first, last));
  }

  /** One after the other; a failed punch frees no space and harms nothing else. */
  #later(work: () => Promise<void>): Promise<boolean> {
    const done = this.#working.then(async () => {
      try {
        await work();
        return !this.#stopped;
      } catch (error) {
        this.#options.warn(`can't free space: ${describeError(error)}`);
        return false;
      }
    });
    this.#working = done;
    return done;
  }

  async #free(first: number, last: number): Promise<void> {
    const { locks, map, head } = this.#options;
    for (let at = first; at < last && !this.#stopped; at += punchBlocks) {
      const end = Math.min(at + punchBlocks, last);
      const range = await locks.acquire(at, end);
      try {
        await punchUnowned(map, head.layer, head.owner, at, end); // looked up under the lock
      } finally {
        locks.release(range);
      }
    }
  }

  /** Starts nothing more, and resolves when the last punch has returned. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#working;
  }
}

/** Punches the blocks of [first, last) that `owner` does not own in the map. Nobody may write there meanwhile. */
async function punchUnowned(map: OwnerMap, head: Layer, owner: number, first: number, last: number): Promise<void> {
  for (let block = first; block < last;) {
    const owned = map.ownerOf(block) === owner;
    let end = block;
    while (end < last && (map.ownerOf(end) === owner) === owned) end += map.runLength(end, last - end);
    if (!owned) await head.punch(block, end - block);
    block = end;
  }
}

/** Frees all strays while nothing else uses the volume. */
export async function punchStrays(map: OwnerMap, head: Layer, owner: number): Promise<void> {
  for (let run = head.nextData(0); run; run = head.nextData(run.block + run.count)) {
    await punchUnowned(map, head, owner, run.block, Math.min(run.block + run.count, map.blocks));
  }
}
