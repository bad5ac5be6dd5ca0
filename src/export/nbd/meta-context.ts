import { ExtentState, type Extent } from "../block-device.ts";
import { AllocationFlag } from "./protocol.ts";

/** A metadata context ("Metadata querying"): a name and what it says of an extent. */
export interface MetaContext {
  readonly id: number;
  readonly name: string;
  flagsOf(state: ExtentState): number;
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

const contexts: readonly MetaContext[] = [allocation, hydration];

/** NBD_OPT_LIST_META_CONTEXT: no query asks for all, an empty leaf name for all of its namespace. */
export function listMetaContexts(queries: readonly string[]): MetaContext[] {
  if (queries.length === 0) return [...contexts];
  return contexts.filter(({ name }) =>
    queries.some((query) => query === name || (query.endsWith(":") && name.startsWith(query))),
  );
}

/** NBD_OPT_SET_META_CONTEXT: full names only; what is unknown selects nothing. */
export function selectMetaContexts(queries: readonly string[]): MetaContext[] {
  return contexts.filter(({ name }) => queries.includes(name));
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
  extents: readonly Extent[],
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
