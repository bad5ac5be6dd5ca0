import { html } from "htm/preact";
import { call } from "./api.js";
import { can } from "./features.js";
import { formatBytes, formatShare } from "./format.js";
import { ActionForm, Bar } from "./parts.js";
import { noteRemoved } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */

/** A volume whose image has to be downloaded before it can be used. @param {{ volume: Volume }} props */
export function CreatingPanel({ volume }) {
  const { readyBytes, totalBytes } = volume.hydration;
  const cancel = async () => {
    const { jobs } = await call("v1/jobs");
    const job = jobs.find((/** @type {any} */ each) => each.target === volume.name && each.state === "running");
    if (job === undefined) return;
    const { state } = await call(`v1/jobs/${job.id}`, { method: "DELETE" });
    if (state === "cancelled") noteRemoved(volume.name);
  };
  return html`<section class="card" aria-label="Being made">
    <p>Its image is downloaded; then it can be used.</p>
    <${Bar} part=${readyBytes} whole=${totalBytes} tone="busy" label="download" />
    <p class="small faint">
      ${formatBytes(readyBytes)} of ${formatBytes(totalBytes)}, ${formatShare(readyBytes, totalBytes)}
    </p>
    ${can("DELETE", "/v1/jobs/{id}") && html`<${ActionForm} label="Cancel" busyLabel="Cancelling…" danger onSubmit=${cancel} />`}
  </section>`;
}
