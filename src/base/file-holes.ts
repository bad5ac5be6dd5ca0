import { setImmediate as nextTurn } from "node:timers/promises";

/** Runs that are looked up before others have their turn. */
const RUNS_PER_TURN = 256;

/** lseek(2), on this thread or in the pool. */
export interface Seeks {
  /** @returns where the next data begins, -1 when there is none behind `offset` */
  seekData(offset: number): number | Promise<number>;
  seekHole(offset: number): number | Promise<number>;
}

/**
 * Tells which parts of a file's range are holes, run by run from its beginning on.
 * @param take gets each run's length in bytes @param may whether the file may be looked at, asked in each turn; when not, the rest is not told
 */
export async function tellHoles(
  file: Seeks,
  offset: number,
  length: number,
  take: (length: number, hole: boolean) => void,
  may: () => boolean,
): Promise<void> {
  const end = offset + length;
  for (let at = offset; at < end && may(); await nextTurn()) {
    for (let runs = 0; at < end && runs < RUNS_PER_TURN; runs++) {
      const found = file.seekData(at);
      const data = typeof found === "number" ? found : await found; // nobody closes the file within a turn on this thread
      const start = data < 0 ? end : Math.min(data, end);
      if (start > at) take(start - at, true);
      const hole = start === end ? end : file.seekHole(start);
      at = Math.min(typeof hole === "number" ? hole : await hole, end);
      if (at > start) take(at - start, false);
    }
  }
}
