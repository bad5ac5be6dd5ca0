import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { useComputed, useSignal } from "@preact/signals";
import { call } from "./api.js";
import { EvictDialog, FreeDialog, isUnused } from "./evict-dialogs.js";
import { can } from "./features.js";
import { formatBytes, formatCount, formatShare, plural } from "./format.js";
import { blobs, cache, followImages, imagesProblem, outdated } from "./image-list.js";
import { imageOrder } from "./image-order.js";
import { ImageRow } from "./image-row.js";
import { Filter, Pager, SortChoice, TableHead } from "./list-parts.js";
import { Bar, ProblemBox } from "./parts.js";
import { PullDialog } from "./pull-dialog.js";
import { noteJob, pulls } from "./pulling.js";

/* The cache: every version of every image that is here, for which volumes, and what is being fetched. */

/** @typedef {import("./image-list.js").Blob} Blob */
/** @typedef {import("./pulling.js").Job} Job */

export function ImagesPage() {
  const dialog = useSignal(/** @type {"" | "pull" | "free"} */ (""));
  const evicting = useSignal(/** @type {Blob | null} */ (null));
  const said = useSignal("");
  useEffect(followImages, []);
  useEffect(() => {
    document.title = "Images – Ullage";
  }, []);

  const found = useComputed(() => imageOrder.arrange(blobs.value ?? []));
  const old = useComputed(() => outdated(blobs.value ?? []));
  const { pages, index, shown } = imageOrder.page(found.value);
  const all = blobs.value;
  const canPull = can("POST", "/v1/images");
  return html`<main>
    <div class="toolbar">
      <h1 tabindex="-1">Images</h1>
      <${Filter}
        order=${imageOrder}
        label="Filter images"
        placeholder="Filter by source, version or volume"
        onNew=${() => canPull && (dialog.value = "pull")}
      />
      <${SortChoice} order=${imageOrder} />
      ${
        can("POST", "/v1/cache/evict") &&
        html`<button disabled=${!all?.some(isUnused)} onClick=${() => (dialog.value = "free")}>Free unused…</button>`
      }
      ${
        canPull &&
        html`<button class="primary" title="Press n" onClick=${() => (dialog.value = "pull")}>Pull image</button>`
      }
    </div>
    <${ProblemBox} problem=${imagesProblem.value?.code === "offline" ? null : imagesProblem.value} />
    ${all === null && imagesProblem.value === null && html`<p class="faint">Reading the list…</p>`}
    ${all !== null && html`<${Totals} all=${all} />`}
    <p class="said" role="status">${said.value}</p>
    <${Pulls} jobs=${pulls.value} />
    ${
      all?.length === 0 &&
      html`<div class="card empty">
        <p><b>There are no images in the cache.</b></p>
        <p>
          They come with volumes that are made from them; one that is pulled before is here at once when it is needed.
        </p>
      </div>`
    }
    ${
      shown.length > 0 &&
      html`<table class="list images">
        <${TableHead} order=${imageOrder} />
        <tbody>
          ${shown.map(
            (blob) =>
              html`<${ImageRow}
                key=${blob.id}
                blob=${blob}
                old=${old.value.has(blob.id)}
                onEvict=${() => (evicting.value = blob)}
              />`,
          )}
        </tbody>
      </table>`
    }
    ${
      all !== null &&
      all.length > 0 &&
      found.value.length === 0 &&
      html`<p class="card empty">
        ${`None of ${plural(all.length, "image")} matches “${imageOrder.filterText.value}”. `}
        <button class="link" onClick=${() => imageOrder.filter("")}>Show all</button>
      </p>`
    }
    <${Pager} order=${imageOrder} pages=${pages} index=${index} count=${found.value.length} />
    ${dialog.value === "pull" && html`<${PullDialog} onClose=${() => (dialog.value = "")} />`}
    ${dialog.value === "free" && html`<${FreeDialog} all=${all} said=${said} onClose=${() => (dialog.value = "")} />`}
    ${
      evicting.value !== null &&
      html`<${EvictDialog}
        blob=${evicting.value}
        old=${old.value.has(evicting.value.id)}
        said=${said}
        onClose=${() => (evicting.value = null)}
      />`
    }
  </main>`;
}

/** @param {{ all: Blob[] }} props */
function Totals({ all }) {
  const unused = all.filter(isUnused).reduce((sum, { diskBytes }) => sum + diskBytes, 0);
  const images = new Set(all.map(({ image }) => image)).size;
  const figures = [
    [formatCount(images), images === 1 ? "image" : "images"],
    ...(images === all.length ? [] : [[formatCount(all.length), "versions"]]),
    [formatBytes(cache.value?.diskBytes ?? all.reduce((sum, { diskBytes }) => sum + diskBytes, 0)), "on disk"],
    [formatBytes(unused), "needed by no volume"],
    ...(cache.value === null
      ? []
      : [
          [cache.value.capacityBytes === null ? "no limit" : formatBytes(cache.value.capacityBytes), "capacity"],
          [formatShare(cache.value.reserve, 1), "of the disk left free"],
        ]),
  ];
  return html`<dl class="totals">
    ${figures.map(
      ([value, label]) =>
        html`<div key=${label}>
          <dt>${label}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

/** What is being fetched. @param {{ jobs: Job[] }} props */
function Pulls({ jobs }) {
  if (jobs.length === 0) return null;
  return html`<section class="card pulls" aria-label="Being fetched">
    <h2>Being fetched</h2>
    <ul class="rows">
      ${jobs.map((job) => html`<${Pull} key=${job.id} job=${job} />`)}
    </ul>
  </section>`;
}

/** @param {{ job: Job }} props */
function Pull({ job }) {
  const { done, total } = job.progress;
  const problem = useSignal(/** @type {unknown} */ (null));
  const cancel = async () => {
    try {
      noteJob(await call(`v1/jobs/${job.id}`, { method: "DELETE" }));
    } catch (error) {
      problem.value = error;
    }
  };
  return html`<li>
    <span class="grow">
      <span class="name">${job.target}</span>
      <${Bar} part=${done} whole=${total ?? 0} tone="busy" label=${`fetching ${job.target}`} />
      <span class="small faint"
        >${formatBytes(done)}${total !== null && ` of ${formatBytes(total)}, ${formatShare(done, total)}`}</span
      >
      <${ProblemBox} problem=${problem.value} />
    </span>
    ${
      can("DELETE", "/v1/jobs/{id}") &&
      html`<button aria-label=${`Stop fetching ${job.target}`} title="What is here stays" onClick=${cancel}>
        Stop
      </button>`
    }
  </li>`;
}
