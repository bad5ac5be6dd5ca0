import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { problemOf } from "./api.js";
import { formatBytes, formatCount, formatRate } from "./format.js";
import { canPause, canResume, HydrationBar } from "./hydration-view.js";
import { StateChip } from "./parts.js";
import { volumeLink } from "./router.js";
import { volumeOrder } from "./volume-order.js";
import { steerHydration } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {import("./rates.js").Rate} Rate */

/** @param {{ volume: Volume, rate: Rate | undefined, onRemove: () => void }} props */
export function VolumeRow({ volume, rate, onRemove }) {
  const cells = volumeOrder.sortKeys.filter(({ column, key }) => column && key !== "name");
  return html`<tr>
    <th scope="row" class="name-cell">
      <a class="name" href=${volumeLink(volume.name)}>${volume.name}</a>
      <span class="source small faint" title=${volume.source ?? ""}>${volume.source ?? "needs no source"}</span>
    </th>
    ${cells.map(
      ({ key, label, number = false }) =>
        html`<td key=${key} class=${`${number ? "number" : ""} cell-${key}`} data-label=${label}>
          ${cell(key, volume, rate)}
        </td>`,
    )}
    <td class="actions"><${RowActions} volume=${volume} onRemove=${onRemove} /></td>
  </tr>`;
}

/**
 * @param {string} key
 * @param {Volume} volume
 * @param {Rate | undefined} rate
 */
function cell(key, volume, rate) {
  switch (key) {
    case "state":
      return html`<${StateChip} state=${volume.state} reason=${volume.reason} />`;
    case "size":
      return formatBytes(volume.size);
    case "written":
      return formatBytes(volume.writtenBytes);
    case "fetched":
      return formatBytes(volume.fetchedBytes);
    case "hydration":
      return html`<${HydrationBar} volume=${volume} />`;
    case "traffic":
      return html`<${Traffic} rate=${rate} />`;
    default:
      return formatCount(volume.connections);
  }
}

/** @param {{ rate: Rate | undefined }} props */
export function Traffic({ rate }) {
  if (rate === undefined) return html`<span class="faint">–</span>`;
  return html`<span class="traffic">
    <span>${formatRate(rate.bytesPerSecond)}</span>
    <span class="small faint">${formatCount(rate.requestsPerSecond)} IOPS</span>
  </span>`;
}

/** @param {{ volume: Volume, onRemove: () => void }} props */
function RowActions({ volume, onRemove }) {
  const busy = useSignal(false);
  const problem = useSignal("");
  const steer = async (/** @type {"running" | "paused"} */ state) => {
    busy.value = true;
    problem.value = "";
    try {
      await steerHydration(volume.name, { state });
    } catch (error) {
      problem.value = problemOf(error).detail;
    }
    busy.value = false;
  };
  const { name } = volume;
  return html`<span class="row-actions">
    ${
      canPause(volume) &&
      html`<button disabled=${busy.value} aria-label=${`Pause ${name}`} onClick=${() => steer("paused")}>Pause</button>`
    }
    ${
      canResume(volume) &&
      html`<button disabled=${busy.value} aria-label=${`Hydrate ${name}`} onClick=${() => steer("running")}>
        ${volume.hydration.state === "paused" ? "Resume" : "Hydrate"}
      </button>`
    }
    <button class="danger-text" aria-label=${`Remove ${name}`} onClick=${onRemove}>Remove</button>
    ${problem.value && html`<span class="small bad-text" role="alert">${problem.value}</span>`}
  </span>`;
}
