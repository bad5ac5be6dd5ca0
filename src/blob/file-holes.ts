import { setImmediate as nextTurn } from "node:timers/promises";
import type { ZeroTaker } from "../backend/backend.ts";
import type { File } from "../base/file-system.ts";

/** Runs that are looked up before others have their turn. */
const RUNS_PER_TURN = 256;

/**
 * Tells which parts of a file's range are holes, from its beginning on.
 * @param may whether the file may be looked at, asked in each turn; when not, the rest is not told
 */
export async function tellHoles(
  file: Pick<File, "seekData" | "seekHole">,
  offset: number,
  length: number,
  take: ZeroTaker,
  may: () => boolean,
): Promise<void> {
  const end = offset + length;
  for (let at = offset; at < end && may(); await nextTurn()) {
    for (let runs = 0; at < end && runs < RUNS_PER_TURN; runs++) {
      const data = file.seekData(at);
      const start = data < 0 ? end : Math.min(data, end);
      if (start > at) take(start - at, true);
      at = start === end ? end : Math.min(file.seekHole(start), end);
      if (at > start) take(at - start, false);
    }
  }
}
