import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { useComputed, useSignal } from "@preact/signals";
import { CreateDialog } from "./create-dialog.js";
import { formatBytes, formatCount, plural } from "./format.js";
import { ProblemBox } from "./parts.js";
import { RemoveDialog } from "./remove-dialog.js";
import { followRates, rates } from "./rates.js";
import { filterText, pageRows, pageIndex, sortBy, sortDown, sortKeys, sortVolumes } from "./volume-order.js";
import { followVolumes, listed, listProblem, volumes } from "./volume-list.js";
import { VolumeRow } from "./volume-row.js";

/* The list: everything there is, found by typing, ordered by what matters, a page at a time. */

/** @typedef {import("./volume-list.js").Volume} Volume */

export function VolumesPage() {
  const creating = useSignal(false);
  const removing = useSignal(/** @type {Volume | null} */ (null));
  const filter = useRef(/** @type {HTMLInputElement | null} */ (null));

  useEffect(followVolumes, []);
  useEffect(() => {
    document.title = "Volumes – Ullage";
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
      if (document.querySelector("dialog[open]") !== null) return;
      if (event.key === "/") filter.current?.focus();
      else if (event.key === "n") creating.value = true;
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);

  const found = useComputed(() => sortVolumes(volumes.value, rates.value));
  const pages = Math.max(1, Math.ceil(found.value.length / pageRows));
  const index = Math.min(pageIndex.value, pages - 1);
  const shown = found.value.slice(index * pageRows, (index + 1) * pageRows);
  const busy = volumes.value.some(({ connections }) => connections > 0);
  useEffect(() => (busy ? followRates() : undefined), [busy]);

  return html`<main>
    <div class="toolbar">
      <h1>Volumes</h1>
      <input
        ref=${filter}
        type="search"
        name="filter"
        placeholder="Filter by name, source or state"
        aria-label="Filter volumes"
        title="Press / to get here"
        value=${filterText.value}
        onInput=${(/** @type {any} */ event) => {
          filterText.value = event.target.value;
          pageIndex.value = 0;
        }}
      />
      <${SortChoice} />
      <button class="primary" title="Press n" onClick=${() => (creating.value = true)}>New volume</button>
    </div>
    <${ProblemBox} problem=${listProblem.value?.code === "offline" ? null : listProblem.value} />
    ${!listed.value && listProblem.value === null && html`<p class="faint">Reading the list…</p>`}
    ${listed.value && volumes.value.length > 0 && html`<${Totals} />`}
    ${
      listed.value &&
      volumes.value.length === 0 &&
      html`<div class="card empty">
        <p><b>There are no volumes yet.</b></p>
        <p>
          A volume is a writable disk, made from an image in the blink of an eye: the image is fetched as it is read.
        </p>
        <button class="primary" onClick=${() => (creating.value = true)}>Make the first one</button>
      </div>`
    }
    ${
      shown.length > 0 &&
      html`<table class="volumes">
        <${TableHead} />
        <tbody>
          ${shown.map(
            (volume) =>
              html`<${VolumeRow}
                key=${volume.id}
                volume=${volume}
                rate=${rates.value.get(volume.name)}
                onRemove=${() => (removing.value = volume)}
              />`,
          )}
        </tbody>
      </table>`
    }
    ${
      listed.value &&
      volumes.value.length > 0 &&
      found.value.length === 0 &&
      html`<p class="card empty">
        ${`None of ${plural(volumes.value.length, "volume")} matches “${filterText.value}”. `}
        <button class="link" onClick=${() => (filterText.value = "")}>Show all</button>
      </p>`
    }
    ${pages > 1 && html`<${Pager} pages=${pages} index=${index} count=${found.value.length} />`}
    ${creating.value && html`<${CreateDialog} onClose=${() => (creating.value = false)} />`}
    ${removing.value && html`<${RemoveDialog} volume=${removing.value} onClose=${() => (removing.value = null)} />`}
  </main>`;
}

function Totals() {
  const all = volumes.value;
  const sum = (/** @type {(volume: Volume) => number} */ of) => all.reduce((total, volume) => total + of(volume), 0);
  const unwell = all.filter(({ state }) => !["ok", "creating"].includes(state)).length;
  const running = all.filter(({ hydration }) => hydration.state === "running").length;
  const figures = /** @type {[string, string, string?][]} */ ([
    [formatCount(all.length), all.length === 1 ? "volume" : "volumes"],
    [formatBytes(sum(({ size }) => size)), "in size"],
    [formatBytes(sum(({ writtenBytes }) => writtenBytes)), "written here"],
    [formatCount(sum(({ connections }) => connections)), "connections"],
    [formatCount(running), "hydrating"],
    ...(unwell === 0 ? [] : [[formatCount(unwell), "need attention", "bad"]]),
  ]);
  return html`<dl class="totals">
    ${figures.map(
      ([value, label, tone = ""]) =>
        html`<div key=${label} class=${tone}>
          <dt>${label}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

function TableHead() {
  return html`<thead>
    <tr>
      ${sortKeys
        .filter(({ column }) => column)
        .map(({ key, label, number = false }) => {
          const direction = sortBy.value !== key ? "none" : sortDown.value ? "descending" : "ascending";
          return html`<th key=${key} class=${number ? "number" : ""} aria-sort=${direction} scope="col">
            <button class="sort" onClick=${() => chooseOrder(key)}>
              ${label}<span aria-hidden="true">${{ none: "", ascending: " ▲", descending: " ▼" }[direction]}</span>
            </button>
          </th>`;
        })}
      <th scope="col"><span class="unseen">Actions</span></th>
    </tr>
  </thead>`;
}

/** @param {string} key */
function chooseOrder(key) {
  if (sortBy.value === key) sortDown.value = !sortDown.value;
  else {
    sortBy.value = key;
    sortDown.value = sortKeys.find((known) => known.key === key)?.number === true;
  }
  pageIndex.value = 0;
}

/** The order, where the table has no head: on narrow screens. */
function SortChoice() {
  return html`<label class="narrow sort-choice">
    <span class="unseen">Order by</span>
    <select value=${sortBy.value} onChange=${(/** @type {any} */ event) => chooseOrder(event.target.value)}>
      ${sortKeys.map(({ key, label }) => html`<option key=${key} value=${key}>${label}</option>`)}
    </select>
    <button
      type="button"
      aria-label=${sortDown.value ? "Order upwards" : "Order downwards"}
      onClick=${() => (sortDown.value = !sortDown.value)}
    >
      ${sortDown.value ? "▼" : "▲"}
    </button>
  </label>`;
}

/** @param {{ pages: number, index: number, count: number }} props */
function Pager({ pages, index, count }) {
  const first = index * pageRows + 1;
  const last = Math.min(count, (index + 1) * pageRows);
  const turn = (/** @type {number} */ to) => {
    pageIndex.value = to;
    document.querySelector(".toolbar")?.scrollIntoView();
  };
  return html`<nav class="pager" aria-label="Pages">
    <button disabled=${index === 0} onClick=${() => turn(0)} aria-label="First page">«</button>
    <button disabled=${index === 0} onClick=${() => turn(index - 1)}>Previous</button>
    <span>${`${formatCount(first)}–${formatCount(last)} of ${formatCount(count)}`}</span>
    <button disabled=${index === pages - 1} onClick=${() => turn(index + 1)}>Next</button>
    <button disabled=${index === pages - 1} onClick=${() => turn(pages - 1)} aria-label="Last page">»</button>
  </nav>`;
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  return target instanceof HTMLElement && target.matches("input, select, textarea");
}
