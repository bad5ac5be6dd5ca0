import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, problemOf, volumePath } from "./api.js";
import { canSnapshot } from "./features.js";
import { formatBytes, plural } from "./format.js";
import { ConfirmDialog } from "./parts.js";
import { withoutPolling } from "./polling.js";
import { canTellSpace, readSpace } from "./space.js";
import { noteRemoved } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */
/** @typedef {import("./space.js").Space} Space */

/** A layer that nothing was written to has its header on disk. */
const emptyLayerBytes = 4096;

/** Asks before a volume goes. @param {{ volume: Volume, onClose: () => void, onRemoved?: () => void }} props */
export function RemoveDialog({ volume, onClose, onRemoved }) {
  const force = useSignal(false);
  const snapshots = useSignal(false);
  const space = useSignal(/** @type {Space | null | undefined} */ (undefined));
  const asking = useSignal(new AbortController());
  useEffect(() => {
    const { signal } = asking.value;
    if (canTellSpace()) {
      readSpace(volume.name, signal)
        .then((found) => (space.value = found))
        .catch(() => (space.value = null)); // it can be removed without
    } else space.value = null;
    return () => asking.value.abort();
  }, []);
  const remove = async () => {
    asking.value.abort(); // what is being removed has no answer
    const query = [...(force.value ? ["force=true"] : []), ...(snapshots.value ? ["snapshots=true"] : [])].join("&");
    await withoutPolling(async () => {
      try {
        await call(`${volumePath(volume.name)}${query && `?${query}`}`, { method: "DELETE" });
      } catch (error) {
        if (problemOf(error).status !== 404) throw error; // somebody else was faster
      }
      noteRemoved(volume.name);
      onRemoved?.();
    });
  };
  return html`<${ConfirmDialog}
    title="Remove volume"
    label="Remove for good"
    typed=${volume.name}
    onConfirm=${remove}
    onClose=${onClose}
  >
    <p role="status">${lostText(volume, space.value)}${volume.source !== null && " Its source is left alone."}</p>
    ${
      volume.connections > 0 &&
      html`<label class="tick">
        <input
          type="checkbox"
          name="force"
          checked=${force.value}
          onChange=${(/** @type {any} */ event) => (force.value = event.target.checked)}
        />
        <span>Close its ${plural(volume.connections, "connection")} first</span>
      </label>`
    }
    ${
      canSnapshot() &&
      html`<label class="tick">
        <input
          type="checkbox"
          name="snapshots"
          checked=${snapshots.value}
          onChange=${(/** @type {any} */ event) => (snapshots.value = event.target.checked)}
        />
        <span>Remove its snapshots too, if it has any (clones live on)</span>
      </label>`
    }
  <//>`;
}

/**
 * What is gone for good when a volume and its snapshots go. What it was cloned from, and what was cloned of it, keeps
 * layers on disk: of those, nothing is lost that anybody else needs.
 * @param {Volume} volume
 * @param {Space | null | undefined} space undefined: not known yet; null: never
 */
function lostText({ writtenBytes, origin }, space) {
  if (space === undefined) return "Looking at what would be lost…";
  if (space === null) {
    if (writtenBytes === 0) return "Nothing was written to it yet.";
    if (origin != null) return "What was written to it since it was cloned is lost. There is no way back.";
    return html`The <b>${formatBytes(writtenBytes)}</b> that were written to it are lost. There is no way back.`;
  }
  const { exclusiveBytes, sharedBytes } = space;
  if (sharedBytes === 0) {
    // Files take their blocks some time after they were written: at first there may be less on disk.
    const lost = Math.max(exclusiveBytes, writtenBytes);
    if (lost <= emptyLayerBytes) return "Nothing was written to it yet.";
    return html`The <b>${formatBytes(lost)}</b> that it and its snapshots hold are lost. There is no way back.`;
  }
  const own =
    exclusiveBytes <= emptyLayerBytes
      ? "Nothing on disk is its alone: at most what was written in the last moments is lost."
      : html`The <b>${formatBytes(exclusiveBytes)}</b> on disk that only it and its snapshots need are lost. There is no
          way back.`;
  return html`${own} Of <b>${formatBytes(sharedBytes)}</b> that it shares with others, they keep what they need.`;
}
