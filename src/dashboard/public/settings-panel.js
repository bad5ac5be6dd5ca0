import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { call, Problem, volumePath } from "./api.js";
import { hasKey } from "./features.js";
import { exactSize, formatBytes, parseSize } from "./format.js";
import { ActionForm } from "./parts.js";
import { go, volumeLink } from "./router.js";
import { noteRemoved, noteVolume } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */

const choices = [
  {
    key: "hydrate",
    label: "Hydrate",
    options: [
      ["auto", "all of it, in the background"],
      ["off", "only what is read"],
    ],
  },
  {
    key: "sync",
    label: "Writes are durable",
    options: [
      ["normal", "when the client flushes"],
      ["always", "before they are answered"],
    ],
  },
  {
    key: "remoteAfterPowerLoss",
    label: "Remote writers after a power cut",
    options: [
      ["refuse", "are refused until “reopen”"],
      ["serve", "are let in again"],
    ],
  },
];

/** @param {{ volume: Volume }} props */
export function SettingsPanel({ volume }) {
  const draft = useSignal(/** @type {Record<string, string>} */ ({}));
  const save = async () => {
    noteVolume(await call(volumePath(volume.name), { method: "PATCH", body: { settings: draft.value } }));
    draft.value = {};
  };
  const canHydrate = volume.source !== null && volume.settings["cache"] !== "none";
  return html`<section class="card">
    <h2>Settings</h2>
    <${ActionForm}
      label="Save"
      busyLabel="Saving…"
      doneText="Saved"
      disabled=${Object.keys(draft.value).length === 0}
      onSubmit=${save}
    >
      ${choices
        .filter(({ key }) => volume.settings[key] !== undefined && (key !== "hydrate" || canHydrate))
        .map(
          ({ key, label, options }) =>
            html`<label class="field" key=${key}>
              <span>${label}</span>
              <select
                name=${key}
                value=${draft.value[key] ?? volume.settings[key]}
                onChange=${(/** @type {any} */ event) => (draft.value = { ...draft.value, [key]: event.target.value })}
              >
                ${options.map(([value, text]) => html`<option key=${value} value=${value}>${text}</option>`)}
              </select>
            </label>`,
        )}
    <//>
    ${hasKey("VolumeChange", "size") && html`<${ChangeForm} volume=${volume} what="size" />`}
    ${hasKey("VolumeChange", "name") && html`<${ChangeForm} volume=${volume} what="name" />`}
  </section>`;
}

/** A new size or a new name. @param {{ volume: Volume, what: "size" | "name" }} props */
function ChangeForm({ volume, what }) {
  const text = useSignal("");
  const force = useSignal(false);
  const shrinks = what === "size" && (parseSize(text.value) ?? Infinity) < volume.size;
  const change = async () => {
    const value = what === "size" ? sizeFrom(text.value) : text.value.trim();
    const body = { [what]: value, ...(shrinks && force.value ? { force: true } : {}) };
    const changed = await call(volumePath(volume.name), { method: "PATCH", body });
    text.value = "";
    force.value = false;
    const renamed = changed.name !== volume.name;
    if (renamed) go(volumeLink(changed.name));
    noteVolume(changed);
    if (renamed) noteRemoved(volume.name);
  };
  return html`<${ActionForm}
    class="inline"
    label=${what === "size" ? "Resize" : "Rename"}
    disabled=${text.value.trim() === ""}
    onSubmit=${change}
  >
    <label class="field">
      <span>${what === "size" ? "New size" : "New name"}</span>
      <input
        name=${`new-${what}`}
        autocomplete="off"
        spellcheck=${false}
        placeholder=${what === "size" ? exactSize(volume.size) : volume.name}
        value=${text.value}
        onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
      />
      ${what === "size" && html`<small class="faint">now ${formatBytes(volume.size)}; clients that connect later see it</small>`}
    </label>
    ${
      shrinks &&
      html`<label class="tick">
        <input
          type="checkbox"
          name="shrink"
          checked=${force.value}
          onChange=${(/** @type {any} */ event) => (force.value = event.target.checked)}
        />
        <span>Shrink it, if nothing is in what goes, and close connections that write to it</span>
      </label>`
    }
  <//>`;
}

/** @param {string} text */
function sizeFrom(text) {
  const size = parseSize(text);
  if (size !== undefined) return size;
  throw new Problem({ status: 0, code: "not-sent", detail: `“${text}” is no size`, hint: "write 512M, 10G or 1.5T" });
}
