import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, Problem, problemOf, volumePath } from "./api.js";
import { CreatingPanel } from "./creating-panel.js";
import { ConnectionsPanel } from "./connections-panel.js";
import { CreateDialog } from "./create-dialog.js";
import { onEvent, streaming } from "./events.js";
import { ExportsPanel } from "./exports-panel.js";
import { can, canSnapshot } from "./features.js";
import { formatBytes, formatCount, formatRate, formatTime } from "./format.js";
import { HydrationPanel } from "./hydration-panel.js";
import { MapPanel } from "./map-panel.js";
import { Chip, ProblemBox, StateChip, UnpinnedChip, VerifiedChip } from "./parts.js";
import { Poller } from "./polling.js";
import { followRates, rates } from "./rates.js";
import { RemoveDialog } from "./remove-dialog.js";
import { ReopenPanel } from "./reopen-panel.js";
import { go, volumeLink } from "./router.js";
import { SettingsPanel } from "./settings-panel.js";
import { canTellSpace, readSpace } from "./space.js";
import { SnapshotsPanel } from "./snapshots-panel.js";
import { knownVolume, readVolume } from "./volume-list.js";

/* Everything about one volume. */

/** @typedef {import("./volume-list.js").Volume} Volume */

const pollMs = 2_000;
const pollStreamingMs = 5_000;
const spacePollMs = 6_000;
const verifiedPollMs = 10_000;

/** @typedef {import("./space.js").Space} Space */

/**
 * What a volume takes on disk.
 * @param {string} name
 * @param {boolean} ready it is not being made
 * @returns {Space | null} null: not known yet
 */
function useSpace(name, ready) {
  const space = useSignal(/** @type {Space | null} */ (null));
  useEffect(() => {
    if (!ready || !canTellSpace()) return undefined;
    const poller = new Poller(
      async () => (space.value = await readSpace(name)),
      () => spacePollMs,
    );
    return () => poller.stop();
  }, [name, ready]);
  return space.value;
}

/**
 * Whether its image was compared with its digest.
 * @param {Volume | undefined} volume
 * @returns {boolean | null} null: it has none, or nothing is known
 */
function useVerified(volume) {
  const verified = useSignal(/** @type {boolean | null} */ (null));
  const blob = volume?.blob ?? null;
  useEffect(() => {
    verified.value = null;
    if (blob === null || !can("GET", "/v1/blobs/{id}")) return undefined;
    const poller = new Poller(
      async () => (verified.value = (await call(`v1/blobs/${blob}`)).verified),
      () => verifiedPollMs,
    );
    return () => poller.stop();
  }, [blob]);
  return verified.value;
}

/** @param {{ name: string }} props */
export function VolumePage({ name }) {
  const connections = useSignal(/** @type {any[]} */ ([]));
  const problem = useSignal(/** @type {unknown} */ (null));
  const dialog = useSignal(/** @type {"" | "remove" | "clone"} */ (""));

  useEffect(() => {
    document.title = `${name} – Ullage`;
    const poller = new Poller(
      async () => {
        try {
          const [, clients] = await Promise.all([readVolume(name), call(`${volumePath(name)}/connections`)]);
          connections.value = clients.connections;
          problem.value = null;
        } catch (error) {
          problem.value = error;
          throw error;
        }
      },
      () => (streaming.value ? pollStreamingMs : pollMs),
    );
    // The volume itself comes with events; who is connected has to be asked for.
    const quiet = onEvent(({ type, data }) => {
      if (type === "volume-removed" && data.name === name) {
        problem.value = new Problem({ status: 404, code: "not-found", detail: `“${name}” was removed` });
      } else if (type === "reset" || data.name === name || data.export?.split("@")[0] === name) poller.hint();
    });
    return () => {
      quiet();
      poller.stop();
    };
  }, [name]);
  useEffect(() => followRates(), [name]);
  const state = knownVolume(name)?.state;
  const verified = useVerified(knownVolume(name));
  const space = useSpace(name, state !== undefined && state !== "creating");

  const gone = problem.value !== null && problemOf(problem.value).status === 404;
  const volume = gone ? undefined : knownVolume(name);
  if (volume === undefined) {
    return html`<main>
      <a href="#/">← Volumes</a>
      <div class="toolbar"><h1 class="name" tabindex="-1">${name}</h1></div>
      ${problem.value === null ? html`<p class="faint">Reading…</p>` : html`<${ProblemBox} problem=${problem.value} />`}
    </main>`;
  }
  const hide = problem.value === null || problemOf(problem.value).code === "offline";
  return html`<main>
    <a href="#/">← Volumes</a>
    <div class="toolbar">
      <h1 class="name" tabindex="-1">${name}</h1>
      <${StateChip} state=${volume.state} reason=${volume.reason} />
      <span class="spring"></span>
      <span class="together">
        ${canSnapshot() && html`<button onClick=${() => (dialog.value = "clone")}>Clone</button>`}
        <button class="danger-text" onClick=${() => (dialog.value = "remove")}>Remove</button>
      </span>
    </div>
    <${ProblemBox} problem=${hide ? null : problem.value} />
    <${ReopenPanel} volume=${volume} />
    ${volume.state === "creating" && html`<${CreatingPanel} volume=${volume} />`}
    <${Facts} volume=${volume} space=${space} verified=${verified} />
    ${volume.state === "creating" || volume.state === "failed" ? null : html`<${MapPanel} key=${volume.id} volume=${volume} />`}
    <div class="panels">
      <div>
        ${volume.source !== null && volume.settings["cache"] !== "none" && html`<${HydrationPanel} volume=${volume} />`}
        ${canSnapshot() && html`<${SnapshotsPanel} volume=${volume} />`}
        <${ConnectionsPanel} connections=${connections.value} />
      </div>
      <div>
        <${ExportsPanel} name=${name} />
        <${SettingsPanel} key=${volume.id} volume=${volume} />
      </div>
    </div>
    ${
      dialog.value === "remove" &&
      html`<${RemoveDialog} volume=${volume} onClose=${() => (dialog.value = "")} onRemoved=${() => go("#/")} />`
    }
    ${dialog.value === "clone" && html`<${CreateDialog} origin=${name} onClose=${() => (dialog.value = "")} />`}
  </main>`;
}

/** @param {{ volume: string, snapshot: string | null }} origin */
function originName({ volume, snapshot }) {
  return snapshot === null ? volume : `${volume}@${snapshot}`;
}

/** @param {{ volume: Volume, space: Space | null, verified: boolean | null }} props */
function Facts({ volume, space, verified }) {
  const rate = rates.value.get(volume.name);
  const facts = /** @type {[string, unknown][]} */ ([
    ["Size", formatBytes(volume.size)],
    ["Written here", formatBytes(volume.writtenBytes)],
    ...(volume.source === null ? [] : [["Cached of the source", formatBytes(volume.fetchedBytes)]]),
    ...(canTellSpace()
      ? [
          ["Of its own on disk", space === null ? "–" : formatBytes(space.exclusiveBytes)],
          ["Shared on disk", space === null ? "–" : formatBytes(space.sharedBytes)],
        ]
      : []),
    ...(can("GET", "/v1/traffic")
      ? [
          ["Reading", rate === undefined ? "–" : formatRate(rate.readPerSecond)],
          ["Writing", rate === undefined ? "–" : formatRate(rate.writtenPerSecond)],
          ["IOPS", rate === undefined ? "–" : formatCount(rate.requestsPerSecond)],
        ]
      : []),
    ["Created", formatTime(volume.createdAt)],
  ]);
  return html`<dl class="totals">
      ${facts.map(
        ([label, value]) =>
          html`<div key=${label} class=${label === "Created" ? "time" : ""}>
            <dt>${label}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
    <p class="origin">
      ${
        volume.source === null
          ? "It needs no source."
          : html`<span class="faint">From${" "}</span>
              <code>${volume.source}</code>${volume.format === null ? "" : ` (${volume.format})`}${" "}
              <${Badges} volume=${volume} verified=${verified} />`
      }
      ${
        volume.origin != null &&
        html`${" "}<span class="faint">Cloned from${" "}</span> ${
            volume.origin.removed
              ? html`<b class="name">${originName(volume.origin)}</b> <span class="faint">(removed since)</span>`
              : html`<a class="name" href=${volumeLink(volume.origin.volume)}>${originName(volume.origin)}</a>`
          }`
      }
    </p>`;
}

/** What is special about how its image is read. @param {{ volume: Volume, verified: boolean | null }} props */
function Badges({ volume, verified }) {
  const title = "Its image is read through: nothing of it is kept here, and it always needs its source";
  return html`<span class="chips">
    ${volume.settings["cache"] === "none" && html`<${Chip} tone="" title=${title}>no cache<//>`}
    ${volume.pinned === false && html`<${UnpinnedChip} />`}
    <${VerifiedChip} verified=${verified} />
  </span>`;
}
