import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { call, problemOf, volumePath } from "./api.js";
import { canSnapshot } from "./features.js";
import { formatBytes, plural } from "./format.js";
import { ConfirmDialog } from "./parts.js";
import { noteRemoved } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */

/** Asks before a volume goes. @param {{ volume: Volume, onClose: () => void, onRemoved?: () => void }} props */
export function RemoveDialog({ volume, onClose, onRemoved }) {
  const force = useSignal(false);
  const snapshots = useSignal(false);
  const remove = async () => {
    const query = [...(force.value ? ["force=true"] : []), ...(snapshots.value ? ["snapshots=true"] : [])].join("&");
    try {
      await call(`${volumePath(volume.name)}${query && `?${query}`}`, { method: "DELETE" });
    } catch (error) {
      if (problemOf(error).status !== 404) throw error; // somebody else was faster
    }
    noteRemoved(volume.name);
    onRemoved?.();
  };
  return html`<${ConfirmDialog}
    title="Remove volume"
    label="Remove for good"
    typed=${volume.name}
    onConfirm=${remove}
    onClose=${onClose}
  >
    <p>
      ${
        volume.writtenBytes === 0
          ? "Nothing was written to it yet."
          : html`The <b>${formatBytes(volume.writtenBytes)}</b> that were written to it are lost. There is no way back.`
      }
      ${volume.source !== null && " Its source is left alone."}
    </p>
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
