import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { call, problemOf } from "./api.js";
import { can } from "./features.js";
import { formatBytes, formatCount, formatTime, plural } from "./format.js";
import { noteBlob } from "./image-list.js";
import { imageOrder } from "./image-order.js";
import { Bar, Chip, UnpinnedChip, VerifiedChip } from "./parts.js";
import { go, volumeLink } from "./router.js";
import { volumeOrder } from "./volume-order.js";

/** @typedef {import("./image-list.js").Blob} Blob */

/** Named one by one; a number stands for the others. */
const shownVolumes = 3;

/** @param {{ blob: Blob, old: boolean, onEvict: () => void }} props old: there is a newer version */
export function ImageRow({ blob, old, onEvict }) {
  const cells = imageOrder.sortKeys.filter(({ column, key }) => column && key !== "source");
  return html`<tr>
    <th scope="row" class="name-cell">
      <span class="name">${blob.source}</span>
      <span class="source small faint" title=${`blob ${blob.id}`}>
        ${blob.format}, ${blob.identity === null ? "nothing to know its version by" : blob.identity}
      </span>
    </th>
    ${cells.map(
      ({ key, label, number = false }) =>
        html`<td key=${key} class=${`${number ? "number" : ""} cell-${key}`} data-label=${label}>
          ${cell(key, blob, old)}
        </td>`,
    )}
    <td class="actions"><${RowActions} blob=${blob} onEvict=${onEvict} /></td>
  </tr>`;
}

/**
 * @param {string} key
 * @param {Blob} blob
 * @param {boolean} old
 */
function cell(key, blob, old) {
  switch (key) {
    case "state":
      return html`<${States} blob=${blob} old=${old} />`;
    case "size":
      return formatBytes(blob.size);
    case "ready":
      return html`${formatBytes(blob.readyBytes)}
        <${Bar}
          part=${blob.readyBytes}
          whole=${blob.size}
          tone=${blob.readyBytes === blob.size ? "good" : "busy"}
          label=${`cached of ${blob.source}`}
        />`;
    case "disk":
      return formatBytes(blob.diskBytes);
    default:
      return html`<${Users} blob=${blob} />`;
  }
}

/** @param {{ blob: Blob, old: boolean }} props */
function States({ blob, old }) {
  const { kept, pinned, verified, cache, sourceState } = blob;
  const { state, reason } = sourceState;
  const calm = state === "notNeeded" ? "complete" : state === "notAsked" ? "source not asked" : "source ok";
  return html`<span class="chips">
    ${state === "failing" ? html`<${Chip} tone="bad">source fails<//>` : html`<${Chip} tone=${state === "notNeeded" ? "good" : ""}>${calm}<//>`}
    ${kept && html`<${Chip} tone="busy">pinned<//>`} ${!pinned && html`<${UnpinnedChip} />`}
    <${VerifiedChip} verified=${verified} />
    ${cache === "none" && html`<${Chip} tone="" title="For volumes without a cache: nothing of it is kept on disk">not kept<//>`}
    ${old && html`<${Chip} tone="warn" title="The source had another version later">older version<//>`}
    ${state === "failing" && html`<span class="small bad-text">${reason}</span>`}
  </span>`;
}

/** The volumes that were made from it. @param {{ blob: Blob }} props */
function Users({ blob }) {
  const { volumes, detached, usedAt, source } = blob;
  const more = volumes.length - shownVolumes;
  const showAll = () => {
    volumeOrder.filter(source);
    go("#/");
  };
  return html`<span class="users">
    ${
      volumes.length === 0
        ? html`<span class="faint">none${usedAt !== null && `, last ${formatTime(usedAt)}`}</span>`
        : volumes
            .slice(0, shownVolumes)
            .map((name) => html`<a key=${name} class="name" href=${volumeLink(name)}>${name}</a> `)
    }
    ${more > 0 && html`<button class="link" onClick=${showAll}>and ${formatCount(more)} more</button>`}
    ${detached.length > 0 && html`<span class="small faint">${plural(detached.length, "volume")} detached</span>`}
  </span>`;
}

/** @param {{ blob: Blob, onEvict: () => void }} props */
function RowActions({ blob, onEvict }) {
  const busy = useSignal(false);
  const problem = useSignal("");
  const { kept, source, id, cache } = blob;
  const pin = async () => {
    busy.value = true;
    problem.value = "";
    try {
      noteBlob(await call(`v1/blobs/${id}/pin`, { method: kept ? "DELETE" : "POST" }));
    } catch (error) {
      problem.value = problemOf(error).detail;
    }
    busy.value = false;
  };
  return html`<span class="row-actions">
    ${
      can("POST", "/v1/blobs/{id}/pin") &&
      cache !== "none" &&
      html`<button
        aria-disabled=${busy.value}
        aria-label=${`${kept ? "Unpin" : "Pin"} ${source}`}
        title=${kept ? "Keep it only while a volume needs it" : "Keep it, whether a volume needs it or not"}
        onClick=${() => !busy.value && pin()}
      >
        ${kept ? "Unpin" : "Pin"}
      </button>`
    }
    ${
      can("POST", "/v1/cache/evict") &&
      html`<button
        class="danger-text"
        disabled=${kept}
        title=${kept ? "It is pinned: unpin it first" : ""}
        aria-label=${`Evict ${source}`}
        onClick=${onEvict}
      >
        Evict
      </button>`
    }
    ${problem.value && html`<span class="small bad-text" role="alert">${problem.value}</span>`}
  </span>`;
}
