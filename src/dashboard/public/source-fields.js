import { html } from "htm/preact";
import { Problem, problemOf } from "./api.js";

/* An image's address and how to read it, for whoever makes a volume of it or fetches it. */

/** @typedef {{ source: string, format: string, download: boolean, unpinned: boolean, allowBacking: boolean }} TypedSource */

/** @type {TypedSource & { more: boolean }} more: what is seldom needed is shown */
export const noSource = { more: false, source: "", format: "", download: false, unpinned: false, allowBacking: false };

/**
 * What the server is to be asked for.
 * @param {TypedSource} typed
 * @throws {Problem} when it is no address
 */
export function sourceRequest({ source, format, download, unpinned, allowBacking }) {
  if (!/^(\/|[A-Za-z][A-Za-z0-9+.-]*:\/\/)/.test(source)) {
    throw new Problem({
      status: 0,
      code: "not-sent",
      detail: "the image needs an address",
      hint: "a URL such as https://…, or an absolute path on the server",
    });
  }
  const chosen = format.trim();
  return {
    source,
    ...(chosen === "" ? {} : { format: chosen }),
    ...(download ? { download } : {}),
    ...(unpinned ? { unpinned } : {}),
    ...(allowBacking ? { allowBacking } : {}),
  };
}

/**
 * What inputs of a form have in common.
 * @param {import("@preact/signals").Signal<any>} form
 */
export function formFields(form) {
  const set = (/** @type {string} */ key, /** @type {unknown} */ value) =>
    (form.value = { ...form.value, [key]: value });
  return {
    field: (/** @type {string} */ key) => ({
      name: key,
      value: form.value[key],
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: false,
      onInput: (/** @type {any} */ event) => set(key, event.target.value),
    }),
    tick: (/** @type {string} */ key) => ({
      type: "checkbox",
      name: key,
      checked: form.value[key],
      onChange: (/** @type {any} */ event) => set(key, event.target.checked),
    }),
  };
}

/**
 * Does what the form asks for. A refusal that names one of the options that are seldom needed opens them.
 * @template T
 * @param {import("@preact/signals").Signal<any>} form
 * @param {() => Promise<T>} work
 */
export async function openingMore(form, work) {
  try {
    return await work();
  } catch (error) {
    if (/--|cache=/.test(problemOf(error).hint ?? "")) form.value = { ...form.value, more: true };
    throw error;
  }
}

/** @param {{ form: import("@preact/signals").Signal<any>, autofocus?: boolean }} props */
export function SourceField({ form, autofocus = false }) {
  const { field } = formFields(form);
  return html`<label class="field">
    <span>Image</span>
    <input ...${field("source")} inputmode="url" placeholder="https://example.org/disk.raw" autofocus=${autofocus} />
    <small>A URL, or an absolute path on the server. It is only read, never changed.</small>
  </label>`;
}

/**
 * What is seldom needed.
 * @param {{ form: import("@preact/signals").Signal<any>, children?: unknown }} props children: what is only asked here
 */
export function SourceDetails({ form, children }) {
  const { field, tick } = formFields(form);
  const toggle = (/** @type {any} */ event) => (form.value = { ...form.value, more: event.target.open });
  return html`<details open=${form.value.more} onToggle=${toggle}>
    <summary>More</summary>
    <label class="field">
      <span>Format</span>
      <input ...${field("format")} placeholder="by its first bytes" />
      <small>raw, qcow2, vmdk, vhd or vhdx; packed ones as in tar+qcow2</small>
    </label>
    <label class="tick">
      <input ...${tick("download")} />
      <span>Download it first, for servers that can't serve ranges <code>download</code></span>
    </label>
    <label class="tick">
      <input ...${tick("unpinned")} />
      <span>Accept a source that offers nothing to notice a change by <code>unpinned</code></span>
    </label>
    <label class="tick">
      <input ...${tick("allowBacking")} />
      <span>Allow backing files: read the images that it lies on, too <code>allow-backing</code></span>
    </label>
    ${children}
  </details>`;
}
