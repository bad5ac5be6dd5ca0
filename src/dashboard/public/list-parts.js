import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { formatCount } from "./format.js";
import { pageRows } from "./list-order.js";

/* Parts of a long list: a filter, a table's head that orders it, and pages. */

/** @typedef {import("./list-order.js").ListOrder<any, any>} Order */

/**
 * The field to find things with; `/` leads to it, and `n` to what makes a new one.
 * @param {{ order: Order, label: string, placeholder: string, onNew: () => void }} props
 */
export function Filter({ order, label, placeholder, onNew }) {
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  useEffect(() => {
    const press = (/** @type {KeyboardEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
      if (document.querySelector("dialog[open]") !== null) return;
      if (event.key === "/") field.current?.focus();
      else if (event.key === "n") onNew();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  return html`<input
    ref=${field}
    type="search"
    name="filter"
    placeholder=${placeholder}
    aria-label=${label}
    title="Press / to get here"
    value=${order.filterText.value}
    onInput=${(/** @type {any} */ event) => order.filter(event.target.value)}
  />`;
}

/** @param {EventTarget | null} target */
function isTyping(target) {
  return target instanceof HTMLElement && target.matches("input, select, textarea");
}

/** @param {{ order: Order }} props */
export function TableHead({ order }) {
  return html`<thead>
    <tr>
      ${order.sortKeys
        .filter(({ column }) => column)
        .map(({ key, label, number = false }) => {
          const direction = order.sortBy.value !== key ? "none" : order.sortDown.value ? "descending" : "ascending";
          return html`<th key=${key} class=${number ? "number" : ""} aria-sort=${direction} scope="col">
            <button class="sort" onClick=${() => order.choose(key)}>
              ${label}<span aria-hidden="true">${{ none: "", ascending: " ▲", descending: " ▼" }[direction]}</span>
            </button>
          </th>`;
        })}
      <th scope="col"><span class="unseen">Actions</span></th>
    </tr>
  </thead>`;
}

/** The order, where the table has no head: on narrow screens. @param {{ order: Order }} props */
export function SortChoice({ order }) {
  return html`<label class="narrow sort-choice">
    <span class="unseen">Order by</span>
    <select value=${order.sortBy.value} onChange=${(/** @type {any} */ event) => order.choose(event.target.value)}>
      ${order.sortKeys.map(({ key, label }) => html`<option key=${key} value=${key}>${label}</option>`)}
    </select>
    <button
      type="button"
      aria-label=${order.sortDown.value ? "Order upwards" : "Order downwards"}
      onClick=${() => (order.sortDown.value = !order.sortDown.value)}
    >
      ${order.sortDown.value ? "▼" : "▲"}
    </button>
  </label>`;
}

/** @param {{ order: Order, pages: number, index: number, count: number }} props */
export function Pager({ order, pages, index, count }) {
  if (pages === 1) return null;
  const first = index * pageRows + 1;
  const last = Math.min(count, (index + 1) * pageRows);
  const turn = (/** @type {number} */ to) => {
    order.pageIndex.value = to;
    document.querySelector(".toolbar")?.scrollIntoView();
  };
  return html`<nav class="pager" aria-label="Pages">
    <button disabled=${index === 0} onClick=${() => turn(0)} aria-label="First page">«</button>
    <button disabled=${index === 0} onClick=${() => turn(index - 1)}>Previous</button>
    <span role="status">${`${formatCount(first)}–${formatCount(last)} of ${formatCount(count)}`}</span>
    <button disabled=${index === pages - 1} onClick=${() => turn(index + 1)}>Next</button>
    <button disabled=${index === pages - 1} onClick=${() => turn(pages - 1)} aria-label="Last page">»</button>
  </nav>`;
}
