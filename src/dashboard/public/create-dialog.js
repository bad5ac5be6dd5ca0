import { html } from "htm/preact";
import { useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, Problem, requestKey } from "./api.js";
import { canSnapshot } from "./features.js";
import { parseSize } from "./format.js";
import { ActionForm, Dialog } from "./parts.js";
import { go, volumeLink } from "./router.js";
import { formFields, noSource, openingMore, SourceDetails, SourceField, sourceRequest } from "./source-fields.js";
import { noteVolume, readVolume } from "./volume-list.js";

/* Making a volume: from an image, empty, or as a clone. */

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/**
 * The request for what was typed.
 * @param {{ name: string, kind: string, origin: string, size: string, hydrate: boolean, cache: string } & import("./source-fields.js").TypedSource} typed
 * @returns {object}
 * @throws {Problem} what is wrong with it
 */
export function createRequest(typed) {
  const { name, kind, origin, size, hydrate, cache } = typed;
  const wrong = (/** @type {string} */ detail, /** @type {string} */ hint) =>
    new Problem({ status: 0, code: "not-sent", detail, hint });
  if (!namePattern.test(name)) {
    throw wrong(
      name === "" ? "the volume needs a name" : `“${name}” can't be a volume's name`,
      "letters, digits, dots, dashes and underscores, starting with a letter or a digit; at most 128",
    );
  }
  const bytes = size.trim() === "" ? undefined : parseSize(size);
  if (size.trim() !== "" && bytes === undefined) throw wrong(`“${size}” is no size`, "write 512M, 10G or 1.5T");
  /** @type {Record<string, unknown>} */
  const request = { name, ...(bytes === undefined ? {} : { size: bytes }) };
  if (kind === "empty") {
    if (bytes === undefined) throw wrong("an empty volume needs a size", "write 512M, 10G or 1.5T");
    return request;
  }
  if (kind === "clone") {
    if (origin === "") throw wrong("a clone needs a volume or a snapshot to start from", "VOLUME or VOLUME@SNAPSHOT");
    request["from"] = origin.includes("@") ? { snapshot: origin } : { volume: origin };
    return request;
  }
  request["from"] = sourceRequest(typed);
  // What is not said is for the server to decide: it may be configured to keep nothing of some sources.
  const settings = {
    ...(cache === "" ? {} : { cache }),
    ...(hydrate || cache === "none" ? {} : { hydrate: "off" }),
  };
  if (Object.keys(settings).length > 0) request["settings"] = settings;
  return request;
}

/** @param {{ origin?: string, onClose: () => void }} props origin: the volume or snapshot to clone */
export function CreateDialog({ origin, onClose }) {
  const form = useSignal({
    name: "",
    kind: origin === undefined ? "image" : "clone",
    origin: origin ?? "",
    size: "",
    hydrate: true,
    cache: "",
    ...noSource,
  });
  const busy = useSignal(false);
  const sent = useRef({ text: "", key: "" });
  const { kind, cache } = form.value;
  const { field, tick } = formFields(form);

  const create = async () => {
    const body = createRequest(form.value);
    // The same request again, after an answer was lost, is the same wish; a changed one is another.
    const text = JSON.stringify(body);
    if (sent.current.text !== text) sent.current = { text, key: requestKey() };
    const headers = { "idempotency-key": sent.current.key };
    // A volume that can be used, or a job: then it is listed as `creating` until its image is downloaded.
    const asking = { method: "POST", body, headers, patient: true };
    const made = await openingMore(form, () => call("v1/volumes", asking));
    if (typeof made.size === "number") noteVolume(made);
    else await readVolume(form.value.name);
    onClose();
    go(volumeLink(form.value.name));
  };

  return html`<${Dialog}
    title=${origin === undefined ? "New volume" : `Clone ${origin}`}
    busy=${busy.value}
    onClose=${onClose}
  >
    <${ActionForm}
      label="Create"
      busyLabel="Creating…"
      onSubmit=${create}
      onCancel=${onClose}
      onBusy=${(/** @type {boolean} */ value) => (busy.value = value)}
    >
      <label class="field"><span>Name</span><input ...${field("name")} placeholder="web1" autofocus /></label>
      ${origin === undefined && html`<${KindChoice} form=${form} />`}
      ${
        kind === "image" &&
        html`<${SourceField} form=${form} />
          <label class="tick">
            <input
              ...${tick("hydrate")}
              checked=${form.value.hydrate && cache !== "none"}
              disabled=${cache === "none"}
            />
            <span>Fetch all of it in the background, so that the source is not needed for ever</span>
          </label>`
      }
      ${
        kind === "clone" &&
        origin === undefined &&
        html`<label class="field">
          <span>Clone of</span><input ...${field("origin")} placeholder="web1 or web1@monday" />
        </label>`
      }
      <label class="field">
        <span>Size${kind === "empty" ? "" : html` <i class="faint">(optional)</i>`}</span>
        <input
          ...${field("size")}
          placeholder=${kind === "empty" ? "10G" : `that of the ${kind === "image" ? "image" : "original"}`}
        />
      </label>
      ${
        kind === "image" &&
        html`<${SourceDetails} form=${form}>
          <label class="field">
            <span>Cache</span>
            <select ...${field("cache")}>
              <option value="">as the server is configured</option>
              <option value="shared">shared: what is fetched is kept, for all volumes of the image</option>
              <option value="none">none: read through, nothing of the image is kept</option>
            </select>
            <small>Stays as it is for the volume's life. Without a cache it always needs its source.</small>
          </label>
        <//>`
      }
    <//>
  <//>`;
}

/** @param {{ form: import("@preact/signals").Signal<any> }} props */
function KindChoice({ form }) {
  const kinds = [["image", "Image"], ["empty", "Empty"], ...(canSnapshot() ? [["clone", "Clone"]] : [])];
  return html`<fieldset class="choice">
    <legend class="unseen">What it starts from</legend>
    ${kinds.map(
      ([value, label]) =>
        html`<label key=${value}>
          <input
            type="radio"
            name="kind"
            value=${value}
            checked=${form.value.kind === value}
            onChange=${() => (form.value = { ...form.value, kind: value })}
          />
          <span>${label}</span>
        </label>`,
    )}
  </fieldset>`;
}
