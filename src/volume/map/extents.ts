import type { Blob } from "../../blob/blob.ts";
import { type Extent, ExtentState } from "../../export/block-device.ts";
import { blockBytes, type OwnerMap, zeroOwner } from "./owner-map.ts";
import type { OwnerTable } from "./owner-table.ts";
import type { MapRun } from "../types.ts";

/*
 * Questions about the map that change nothing: where bytes are (BLOCK_STATUS, `volume map`) and which ranges of a blob are
 * still needed (hydration).
 */

type Blobs = ReadonlyMap<number, Blob>;

/** Calls `visit` for consecutive runs of one owner and one state until it returns false. */
function walk(
  map: OwnerMap,
  blobs: Blobs,
  offset: number,
  length: number,
  visit: (owner: number, state: ExtentState, length: number) => boolean,
): void {
  const end = offset + length;
  for (let position = offset; position < end;) {
    const block = Math.floor(position / blockBytes);
    const owner = map.ownerOf(block);
    const run = map.runLength(block, Math.ceil(end / blockBytes) - block);
    let stop = Math.min((block + run) * blockBytes, end);
    let state: ExtentState = owner === zeroOwner ? ExtentState.zero : ExtentState.written;
    const blob = blobs.get(owner);
    if (blob) {
      if (position >= blob.size) {
        state = ExtentState.zero;
      } else {
        const { zeros } = blob;
        stop = Math.min(stop, blob.size);
        if (zeros !== undefined) stop = position + zeros.run(position, stop - position);
        if (zeros?.has(position) === true) {
          state = ExtentState.zero;
        } else {
          stop = position + blob.readyRun(position, stop - position);
          state = blob.isReady(position, stop - position) ? ExtentState.local : ExtentState.remote;
        }
      }
    }
    if (!visit(owner, state, stop - position)) return;
    position = stop;
  }
}

export function listExtents(map: OwnerMap, blobs: Blobs, offset: number, length: number, limit: number): Extent[] {
  const extents: Extent[] = [];
  walk(map, blobs, offset, length, (_owner, state, runBytes) => {
    const last = extents[extents.length - 1];
    if (last?.state === state) last.length += runBytes;
    else if (extents.length === limit) return false;
    else extents.push({ length: runBytes, state });
    return true;
  });
  return extents;
}

/**
 * Lets the blobs that the map reads a range from ask their sources' tables where there are zeros.
 * @returns undefined: there is nothing to wait for. Else of how many bytes from `offset` on, 1 at least, the extents should
 * be told: of what is behind them more will be known in a moment.
 */
export function learnZeros(map: OwnerMap, blobs: Blobs, offset: number, length: number): Promise<number> | undefined {
  const end = offset + length;
  let learnings: Promise<number>[] | undefined;
  for (const [owner, { zeros, size }] of blobs) {
    const stop = Math.min(end, size);
    if (zeros === undefined || offset >= stop) continue;
    const block = map.next(owner, Math.floor(offset / blockBytes), Math.ceil(stop / blockBytes));
    if (block < 0) continue;
    const start = Math.max(offset, block * blockBytes);
    const learning = zeros.learn(start, stop - start);
    if (learning === undefined) continue;
    (learnings ??= []).push(learning.then((told) => (start + told < stop ? start + told - offset : length)));
  }
  return learnings && Promise.all(learnings).then((told) => Math.min(...told) || length);
}

const kinds = {
  [ExtentState.local]: "local",
  [ExtentState.remote]: "remote",
  [ExtentState.written]: "written",
  [ExtentState.zero]: "zero",
} as const;

export function listMapRuns(
  map: OwnerMap,
  table: OwnerTable,
  blobs: Blobs,
  offset: number,
  length: number,
  limit: number,
): MapRun[] {
  const runs: MapRun[] = [];
  let at = offset;
  walk(map, blobs, offset, length, (ownerId, state, runBytes) => {
    const kind = kinds[state];
    const owner = kind === "zero" ? undefined : table.get(ownerId)?.id;
    const last = runs[runs.length - 1];
    if (last?.kind === kind && last.owner === owner) last.length += runBytes;
    else if (runs.length === limit) return false;
    else runs.push({ offset: at, length: runBytes, kind, owner });
    at += runBytes;
    return true;
  });
  return runs;
}

/** Whoever asks for the next run takes a small part of it at a time: to measure a terabyte each time would be for nothing. */
const maxNeededBlocks = 65_536;

/** The next range at or behind `offset` that the map still reads from `blob`; bytes. */
export function nextNeeded(
  map: OwnerMap,
  blobs: Blobs,
  blob: Blob,
  offset: number,
): { offset: number; length: number } | undefined {
  const end = Math.min(map.blocks, Math.ceil(blob.size / blockBytes));
  for (const [owner, candidate] of blobs) {
    if (candidate !== blob) continue;
    const block = map.next(owner, Math.floor(offset / blockBytes), end);
    if (block < 0) return undefined;
    const start = Math.max(offset, block * blockBytes);
    const stop = Math.min(
      (block + map.runLength(block, Math.min(end - block, maxNeededBlocks))) * blockBytes,
      blob.size,
    );
    return start < stop ? { offset: start, length: stop - start } : undefined;
  }
  return undefined;
}
