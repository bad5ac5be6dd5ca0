import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { ActionForm, ConfirmDialog, sentence } from "./parts.js";
import { noteVolume } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */

/** Lets writers in again after writes were lost or a sync failed. @param {{ volume: Volume }} props */
export function ReopenPanel({ volume }) {
  const accepting = useSignal(false);
  if (volume.state === "ok" || volume.state === "creating") return null;
  const reopen = async (/** @type {boolean} */ acceptLoss) =>
    noteVolume(await call(`${volumePath(volume.name)}/reopen`, { method: "POST", body: { acceptLoss } }));
  const shut = volume.state === "poisoned" || volume.state === "lostUnflushed";
  return html`<section class="card notice" role="alert">
    <p>
      <b>${volume.state === "failed" ? "This volume can't be opened." : "This volume needs attention."}</b>
      ${` ${sentence(volume.reason ?? "")}`}
    </p>
    ${
      shut &&
      html`<${ActionForm} class="inline" label="Reopen" busyLabel="Reopening…" onSubmit=${() => reopen(false)}>
        <button type="button" class="danger-text" onClick=${() => (accepting.value = true)}>Accept the loss…</button>
      <//>`
    }
    ${
      accepting.value &&
      html`<${ConfirmDialog}
        title="Accept the loss"
        label="Go on without them"
        typed=${volume.name}
        onConfirm=${() => reopen(true)}
        onClose=${() => (accepting.value = false)}
      >
        <p>The volume goes on from its last flush. Writes that were acknowledged after that are lost for good.</p>
      <//>`
    }
  </section>`;
}
