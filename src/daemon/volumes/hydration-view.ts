import type { HydrationWish, Standing } from "../../catalog/metadata-store.ts";
import { type Hydration, type HydrationStatus, PAUSED_BY_USER } from "../../volume/hydration/hydration.ts";
import type { HydrationView } from "../views.ts";

/** Makes hydration do what the user wishes. */
export function applyWish(hydration: Hydration, wish: HydrationWish): void {
  hydration.configure({ limitBytesPerSecond: wish.rate, priority: wish.priority });
  if (wish.wanted && !wish.paused) hydration.resume();
  else hydration.pause();
}

/** What users see of hydration; `status` is undefined for a volume that is not open or was made empty. */
export function hydrationView(
  status: HydrationStatus | undefined,
  wish: HydrationWish,
  download: { bytes: number; total: number } | undefined,
): HydrationView {
  if (download !== undefined) {
    return { ...nothing, state: "running", readyBytes: download.bytes, totalBytes: download.total };
  }
  if (status === undefined) return { ...nothing, limitBytesPerSecond: wish.rate, priority: wish.priority };
  if (status.state === "detached" || wish.wanted) return status;
  return { ...status, state: "none", reason: null };
}

/** Of a volume that is not open: nothing is being done for it. */
export function closedHydrationView(standing: Standing, wish: HydrationWish): HydrationView {
  const { detached, readyBytes, totalBytes } = standing;
  const paused = !detached && totalBytes > 0 && wish.wanted && wish.paused;
  return {
    ...nothing,
    state: detached ? "detached" : paused ? "paused" : "none",
    reason: paused ? PAUSED_BY_USER : null,
    readyBytes,
    totalBytes,
    limitBytesPerSecond: wish.rate,
    priority: wish.priority,
  };
}

const nothing: HydrationView = {
  state: "none",
  reason: null,
  readyBytes: 0,
  totalBytes: 0,
  damagedBytes: 0,
  damaged: [],
  rateBytesPerSecond: 0,
  etaSeconds: null,
  limitBytesPerSecond: null,
  priority: 0,
};
