import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { useComputed, useSignal } from "@preact/signals";
import { CreateDialog } from "./create-dialog.js";
import { formatBytes, formatCount, plural } from "./format.js";
import { Filter, Pager, SortChoice, TableHead } from "./list-parts.js";
import { ProblemBox } from "./parts.js";
import { RemoveDialog } from "./remove-dialog.js";
import { followRates, rates } from "./rates.js";
import { volumeOrder } from "./volume-order.js";
import { followVolumes, listed, listProblem, volumes } from "./volume-list.js";
import { VolumeRow } from "./volume-row.js";

/* The list: everything there is, found by typing, ordered by what matters, a page at a time. */

/** @typedef {import("./volume-list.js").Volume} Volume */

export function VolumesPage() {
  const creating = useSignal(false);
  const removing = useSignal(/** @type {Volume | null} */ (null));

  useEffect(followVolumes, []);
  useEffect(() => {
    document.title = "Volumes – Ullage";
  }, []);

  const found = useComputed(() => volumeOrder.arrange(volumes.value, ({ name }) => rates.value.get(name)));
  const { pages, index, shown } = volumeOrder.page(found.value);
  const busy = volumes.value.some(({ connections }) => connections > 0);
  useEffect(() => (busy ? followRates() : undefined), [busy]);

  return html`<main>
    <div class="toolbar">
      <h1 tabindex="-1">Volumes</h1>
      <${Filter}
        order=${volumeOrder}
        label="Filter volumes"
        placeholder="Filter by name, source or state"
        onNew=${() => (creating.value = true)}
      />
      <${SortChoice} order=${volumeOrder} />
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
      html`<table class="list">
        <${TableHead} order=${volumeOrder} />
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
        ${`None of ${plural(volumes.value.length, "volume")} matches “${volumeOrder.filterText.value}”. `}
        <button class="link" onClick=${() => volumeOrder.filter("")}>Show all</button>
      </p>`
    }
    <${Pager} order=${volumeOrder} pages=${pages} index=${index} count=${found.value.length} />
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
