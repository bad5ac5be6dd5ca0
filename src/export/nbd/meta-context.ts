import { type Changes, type ComparableSnapshots, ExtentState } from "../block-device.ts";
import { AllocationFlag } from "../../nbd/protocol.ts";

/** A metadata context ("Metadata querying"): a name, and how it describes a range. */
export interface MetaContext {
  readonly id: number;
  readonly name: string;
  /** The flags of a run. */
  flagsOf(state: number): number;
  /** What the runs are, where the device's extents are not what it is about; `state` is 1 for changed ones. */
  readonly changes?: Changes;
}

/** A run, and what the context says of it. */
export interface DescribedRun {
  length: number;
  state: number;
}

/**
 * `base:allocation`: only zeros are a hole. What was not fetched yet counts as data, since NBD_STATE_HOLE without
 * NBD_STATE_ZERO would tell the client that the content is undefined.
 */
const allocation: MetaContext = {
  id: 1,
  name: "base:allocation",
  flagsOf: (state) => (state === ExtentState.zero ? AllocationFlag.hole | AllocationFlag.zero : 0),
};

/** `ullage:hydration`: 0 local, 1 remote and not fetched, 2 written here, 3 zero. */
const hydration: MetaContext = { id: 2, name: "ullage:hydration", flagsOf: (state) => state };

const fixed: readonly MetaContext[] = [allocation, hydration];

/**
 * Changed since a snapshot (1) or not (0): under our own name, and under the one by which QEMU's tools know dirty bitmaps
 * (QEMU's docs/interop/nbd.txt, "qemu" namespace).
 */
const changePrefixes = ["ullage:diff/", "qemu:dirty-bitmap:"] as const;

/** Contexts that one connection may select. */
const maxSelected = 64;

/** NBD_OPT_LIST_META_CONTEXT: no query asks for all, an empty leaf name for all of its namespace. */
export function listMetaContexts(queries: readonly string[], snapshots: readonly string[]): string[] {
  const all = fixed.map(({ name }) => name);
  for (const prefix of changePrefixes) all.push(...snapshots.map((snapshot) => `${prefix}${snapshot}`));
  if (queries.length === 0) return all;
  return all.filter((name) =>
    queries.some((query) => query === name || (/[:/]$/.test(query) && name.startsWith(query))),
  );
}

/** NBD_OPT_SET_META_CONTEXT: full names only; what is unknown selects nothing. */
export async function selectMetaContexts(
  queries: readonly string[],
  snapshots: ComparableSnapshots | undefined,
): Promise<MetaContext[]> {
  const selected = fixed.filter(({ name }) => queries.includes(name));
  const known = new Set(snapshots?.names());
  for (const name of new Set(queries)) {
    const prefix = changePrefixes.find((candidate) => name.startsWith(candidate));
    const snapshot = name.slice(prefix?.length);
    if (snapshots === undefined || prefix === undefined || !known.has(snapshot)) continue;
    if (selected.length === maxSelected) break;
    const changes = await snapshots.changesSince(snapshot);
    selected.push({ id: fixed.length + 1 + selected.length, name, flagsOf: (state) => state, changes });
  }
  return selected;
}

/** The runs that a context describes, when they are not the device's extents. */
export function changedExtents(changes: Changes, offset: number, length: number, limit: number): DescribedRun[] {
  return changes(offset, length, limit).map((run) => ({ length: run.length, state: run.changed ? 1 : 0 }));
}

/**
 * Lays down the descriptors of a NBD_REPLY_TYPE_BLOCK_STATUS chunk: runs that look the same in the context are one.
 * @param length of the request: no descriptor goes beyond it
 * @returns bytes written
 */
export function writeDescriptors(
  view: DataView,
  at: number,
  context: MetaContext,
  extents: readonly DescribedRun[],
  length: number,
): number {
  let end = at;
  let covered = 0;
  for (const extent of extents) {
    const run = Math.min(extent.length, length - covered);
    if (run <= 0) break;
    covered += run;
    const flags = context.flagsOf(extent.state);
    if (end > at && view.getUint32(end - 4) === flags) {
      view.setUint32(end - 8, view.getUint32(end - 8) + run);
    } else {
      view.setUint32(end, run);
      view.setUint32(end + 4, flags);
      end += 8;
    }
  }
  return end - at;
}
