import type { FrozenMap } from "./frozen-map.ts";
import { blockBytes, type OwnerMap, zeroOwner } from "./owner-map.ts";
import type { OwnerTable } from "./owner-table.ts";

/** A run of bytes that is the same as in the snapshot, or may differ from it. */
export interface ChangeRun {
  /** bytes, > 0 */
  length: number;
  changed: boolean;
}

/**
 * Compares a map with an earlier one of the same volume, block by block: who holds a block tells whether it was written
 * since, because a snapshot ends a head. Never says "same" of a block that differs; a block that was written again with the
 * same bytes counts as changed. What lies behind the end of the earlier one is changed where anything is.
 * @param limit at most so many runs; fewer bytes than `length` may be covered, at least one run is
 */
export function changedRuns(
  now: { map: OwnerMap; table: OwnerTable },
  before: Pick<FrozenMap, "map" | "table">,
  offset: number,
  length: number,
  limit: number,
): ChangeRun[] {
  const runs: ChangeRun[] = [];
  const end = offset + length;
  for (let position = offset; position < end;) {
    const block = Math.floor(position / blockBytes);
    const most = Math.ceil(end / blockBytes) - block;
    const owner = now.map.ownerOf(block);
    let count = now.map.runLength(block, most);
    let changed = owner !== zeroOwner;
    if (block < before.map.blocks) {
      const old = before.map.ownerOf(block);
      count = Math.min(count, before.map.runLength(block, most));
      changed = now.table.get(owner)?.id !== before.table.get(old)?.id;
    }
    const stop = Math.min((block + count) * blockBytes, end);
    const last = runs[runs.length - 1];
    if (last?.changed === changed) last.length += stop - position;
    else if (runs.length === limit) break;
    else runs.push({ length: stop - position, changed });
    position = stop;
  }
  return runs;
}
