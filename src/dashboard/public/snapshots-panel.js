import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { CreateDialog } from "./create-dialog.js";
import { waysTo } from "./connect.js";
import { formatBytes, formatCount, formatTime, plural } from "./format.js";
import { health } from "./health.js";
import { ActionForm, ConfirmDialog, CopyButton, ProblemBox } from "./parts.js";
import { Poller } from "./polling.js";
import { useRoving } from "./roving.js";
import { volumeLink } from "./router.js";
import { followVolumes, readVolume, volumes } from "./volume-list.js";

/* A volume's family: what it is now, below that the states that were kept, the newest on top, and what was cloned of each. */

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {{ id: string, name: string, volume: string, size: number, createdAt: string }} Snapshot */

const pollMs = 10_000;
const pageSnapshots = 100;
/** Shown at once; more on demand. */
const shownAtFirst = 12;
const shownMore = 100;
/** Of one snapshot. */
const shownClones = 20;

/**
 * @param {string} volume
 * @returns {Promise<Snapshot[]>} the newest first
 */
async function readSnapshots(volume) {
  /** @type {Snapshot[]} */
  const found = [];
  let cursor = "";
  do {
    const more = cursor && `&cursor=${encodeURIComponent(cursor)}`;
    const page = await call(`v1/snapshots?volume=${encodeURIComponent(volume)}&limit=${pageSnapshots}${more}`);
    found.push(...page.snapshots);
    cursor = page.next ?? "";
  } while (cursor !== "");
  return found.toReversed(); // they come the oldest first
}

/** @param {{ volume: Volume }} props */
export function SnapshotsPanel({ volume }) {
  const snapshots = useSignal(/** @type {Snapshot[] | null} */ (null));
  const problem = useSignal(/** @type {unknown} */ (null));
  const name = useSignal("");
  const filter = useSignal("");
  const limit = useSignal(shownAtFirst);
  const said = useSignal("");
  const tree = useRef(/** @type {HTMLElement | null} */ (null));
  const force = useSignal(false);
  const asked = useSignal(/** @type {{ what: "remove" | "revert" | "clone", snapshot: Snapshot } | null} */ (null));

  const read = async () => {
    try {
      snapshots.value = await readSnapshots(volume.name);
      problem.value = null;
    } catch (error) {
      problem.value = error;
      throw error;
    }
  };
  useEffect(() => {
    const poller = new Poller(read, () => pollMs);
    return () => poller.stop();
  }, [volume.name]);

  useEffect(followVolumes, []); // for the clones
  useRoving(tree);
  // The button that showed more may be gone: the focus goes to what it showed.
  useLayoutEffect(() => {
    if (limit.value > shownAtFirst) focusRow(tree.current, limit.value - shownMore);
  }, [limit.value]);

  const create = async () => {
    const taken = name.value || timeName();
    await call(`${volumePath(volume.name)}/snapshots`, { method: "POST", body: { name: taken } });
    said.value = `Snapshot ${taken} was taken`;
    name.value = "";
    await read();
  };
  const remove = async (/** @type {Snapshot} */ snapshot) => {
    const path = `${volumePath(volume.name)}/snapshots/${encodeURIComponent(snapshot.name)}`;
    await call(`${path}${force.value ? "?force=true" : ""}`, { method: "DELETE" });
    said.value = `Snapshot ${snapshot.name} was removed`;
    await read();
  };
  const revert = async (/** @type {Snapshot} */ snapshot) => {
    await call(`${volumePath(volume.name)}/revert`, {
      method: "POST",
      body: { snapshot: snapshot.name, force: force.value },
    });
    said.value = `${volume.name} is what it was at ${snapshot.name}`;
    await Promise.all([read(), readVolume(volume.name)]);
  };
  const close = () => {
    asked.value = null;
    force.value = false;
  };
  const address = (/** @type {Snapshot} */ snapshot) =>
    waysTo(health.value?.listeners ?? [], `${volume.name}@${snapshot.name}`, location.hostname)[0]?.uri;

  const list = snapshots.value ?? [];
  const wanted = filter.value.trim().toLowerCase();
  const found = list.filter((snapshot) => snapshot.name.toLowerCase().includes(wanted));
  const shown = found.slice(0, limit.value);
  return html`<section class="card" aria-label="Snapshots">
    <h2>Snapshots <span class="count">${formatCount(list.length)}</span></h2>
    <${ActionForm} class="inline" label="Take snapshot" busyLabel="Taking…" onSubmit=${create}>
      <label class="field">
        <span>Name <i class="faint">(optional)</i></span>
        <input
          name="snapshot"
          autocomplete="off"
          autocapitalize="off"
          spellcheck=${false}
          placeholder=${timeName()}
          value=${name.value}
          onInput=${(/** @type {any} */ event) => (name.value = event.target.value)}
        />
      </label>
    <//>
    <${ProblemBox} problem=${problem.value} />
    <p class="unseen" role="status">${said.value}</p>
    ${
      list.length > shownAtFirst &&
      html`<div class="find">
        <input
          type="search"
          name="snapshot-filter"
          placeholder="Filter by name"
          aria-label="Filter snapshots"
          value=${filter.value}
          onInput=${(/** @type {any} */ event) => {
            filter.value = event.target.value;
            limit.value = shownAtFirst;
          }}
        />
        <span class="small faint" role="status"
          >${wanted !== "" && `${formatCount(found.length)} of ${plural(list.length, "snapshot")}`}</span
        >
      </div>`
    }
    <ol
      ref=${tree}
      class="tree"
      role="grid"
      aria-label=${`Snapshots of ${volume.name}, the newest first; arrow keys go between them`}
    >
      <li class="now" role="row">
        <span class="node" aria-hidden="true"></span
        ><span class="grow" role="rowheader"><b>now</b> <span class="faint">what clients read and write</span></span>
        <${Clones} of=${volume.name} snapshot=${null} />
      </li>
      ${shown.map(
        (snapshot) =>
          html`<li key=${snapshot.id} role="row">
            <span class="node" aria-hidden="true"></span>
            <span class="grow" role="rowheader">
              <b class="name">${snapshot.name}</b>
              <span class="small faint">${formatTime(snapshot.createdAt)}, ${formatBytes(snapshot.size)}</span>
            </span>
            <span class="row-actions" role="gridcell">
              ${
                address(snapshot) !== undefined &&
                html`<${CopyButton} text=${address(snapshot)} label=${`address of ${snapshot.name}`}>NBD<//>`
              }
              ${["clone", "revert", "remove"].map(
                (what) =>
                  html`<button
                    key=${what}
                    class=${what === "clone" ? "" : "danger-text"}
                    aria-label=${`${verbs[what]} ${snapshot.name}`}
                    onClick=${() => (asked.value = { what: /** @type {any} */ (what), snapshot })}
                  >
                    ${verbs[what]}
                  </button>`,
              )}
            </span>
            <${Clones} of=${volume.name} snapshot=${snapshot.name} />
          </li>`,
      )}
    </ol>
    ${
      shown.length < found.length &&
      html`<button class="link" onClick=${() => (limit.value += shownMore)}>
        ${moreText(found.length - shown.length)}
      </button>`
    }
    ${asked.value?.what === "clone" && html`<${CreateDialog} origin=${`${volume.name}@${asked.value.snapshot.name}`} onClose=${close} />`}
    ${
      asked.value?.what === "remove" &&
      html`<${ConfirmDialog}
        title="Remove snapshot"
        label="Remove"
        onConfirm=${() => remove(/** @type {any} */ (asked.value).snapshot)}
        onClose=${close}
      >
        <p>
          The snapshot <b class="name">${asked.value.snapshot.name}</b> goes; the volume and clones made from the
          snapshot stay as they are.
        </p>
        <${ForceTick} force=${force} text="Close connections to the snapshot first, if there are any" />
      <//>`
    }
    ${
      asked.value?.what === "revert" &&
      html`<${ConfirmDialog}
        title="Revert volume"
        label="Revert"
        typed=${volume.name}
        onConfirm=${() => revert(/** @type {any} */ (asked.value).snapshot)}
        onClose=${close}
      >
        <p>
          <b class="name">${volume.name}</b> becomes what it was at <b class="name"> ${asked.value.snapshot.name}</b>.
          What was written since then and is in no other snapshot is lost.
        </p>
        ${
          volume.connections > 0 &&
          html`<${ForceTick} force=${force} text=${`Close its ${plural(volume.connections, "connection")} first`} />`
        }
      <//>`
    }
  </section>`;
}

/**
 * Volumes that began as another one, each with those that began as it.
 * @param {{ of: string, snapshot?: string | null }} props snapshot: of that one only; null: of no snapshot, but of the
 *   volume as it was
 */
function Clones({ of, snapshot }) {
  const clones = volumes.value.filter(
    ({ origin }) =>
      origin?.volume === of && !origin.removed && (snapshot === undefined || origin.snapshot === snapshot),
  );
  if (clones.length === 0) return null;
  const list = html`<ul
    class="clones"
    aria-label=${`Clones of ${typeof snapshot === "string" ? `${of}@${snapshot}` : of}`}
  >
    ${clones.slice(0, shownClones).map(
      ({ id, name, origin }) =>
        html`<li key=${id}>
          <a class="name" href=${volumeLink(name)}>${name}</a>
          <span class="small faint">
            ${" "}${snapshot === undefined && origin?.snapshot != null ? `clone of @${origin.snapshot}` : "clone"}
          </span>
          <${Clones} of=${name} />
        </li>`,
    )}
    ${clones.length > shownClones && html`<li class="faint">and ${plural(clones.length - shownClones, "more clone")}</li>`}
  </ul>`;
  return snapshot === undefined ? list : html`<div class="branch" role="gridcell">${list}</div>`;
}

/** @param {number} hidden how many snapshots are not shown */
function moreText(hidden) {
  return `Show ${hidden > shownMore ? `${shownMore} of ` : ""}${plural(hidden, "older snapshot")}`;
}

/**
 * Puts the focus on the first control of the snapshot at this place.
 * @param {HTMLElement | null} tree
 * @param {number} index
 */
function focusRow(tree, index) {
  const row = tree?.querySelectorAll("[role=row]:not(.now)")[index];
  row?.querySelector("button")?.focus();
}

/** @param {{ force: import("@preact/signals").Signal<boolean>, text: string }} props */
function ForceTick({ force, text }) {
  return html`<label class="tick">
    <input
      type="checkbox"
      name="force"
      checked=${force.value}
      onChange=${(/** @type {any} */ event) => (force.value = event.target.checked)}
    />
    <span>${text}</span>
  </label>`;
}

/** @type {Record<string, string>} */
const verbs = { clone: "Clone", revert: "Revert", remove: "Remove" };

/** `2026-11-20-1905`: a name that sorts by time. */
function timeName() {
  const now = new Date();
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  return `${date}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
}
