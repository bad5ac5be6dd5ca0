import { html } from "htm/preact";
import { formatBytes, formatDuration, formatRate, formatShare } from "./format.js";
import { Bar } from "./parts.js";

/* How far a volume is on its way to not needing its source any more. */

/** @typedef {import("./volume-list.js").Volume} Volume */

/**
 * In words: `42 %, 3 min left`, `paused at 42 %`, `complete`.
 * @param {Volume} volume
 */
export function hydrationText({ hydration, source, settings }) {
  const { state, readyBytes, totalBytes, etaSeconds, reason } = hydration;
  if (source === null) return "no source";
  if (settings["cache"] === "none") return "no cache";
  if (state === "detached") return "complete";
  const share = formatShare(readyBytes, totalBytes);
  if (state === "none") return totalBytes === 0 ? "off" : `off, ${share} here`;
  if (state === "paused") return `paused at ${share}`;
  if (state === "waiting") return `waiting at ${share}${reason === null ? "" : `: ${reason}`}`;
  return etaSeconds === null ? share : `${share}, ${formatDuration(etaSeconds)} left`;
}

/** @param {{ volume: Volume }} props */
export function HydrationBar({ volume }) {
  const { state, readyBytes, totalBytes } = volume.hydration;
  if (volume.source === null || volume.settings["cache"] === "none") {
    return html`<span class="faint">${hydrationText(volume)}</span>`;
  }
  const complete = state === "detached";
  return html`<span class="hydration">
    <${Bar}
      part=${complete ? 1 : readyBytes}
      whole=${complete ? 1 : totalBytes}
      tone=${complete ? "good" : state === "running" ? "busy" : "idle"}
      label=${`hydration of ${volume.name}`}
    />
    <span class="small">${hydrationText(volume)}</span>
  </span>`;
}

/**
 * The figures behind the bar.
 * @param {{ volume: Volume }} props
 */
export function HydrationFigures({ volume }) {
  const { readyBytes, totalBytes, rateBytesPerSecond, state } = volume.hydration;
  if (totalBytes === 0) return null;
  return html`<span class="small faint"
    >${formatBytes(readyBytes)} of ${formatBytes(totalBytes)} of the
    source${state === "running" ? `, ${formatRate(rateBytesPerSecond)}` : ""}</span
  >`;
}

/** @param {Volume} volume */
export const canPause = (volume) => ["running", "waiting"].includes(volume.hydration.state);

/** @param {Volume} volume */
export const canResume = (volume) =>
  volume.source !== null &&
  volume.settings["cache"] !== "none" &&
  volume.state !== "creating" &&
  ["paused", "none"].includes(volume.hydration.state);
