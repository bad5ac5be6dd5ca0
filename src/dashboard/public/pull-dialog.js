import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { refreshImages } from "./image-list.js";
import { ActionForm, Dialog } from "./parts.js";
import { pull } from "./pulling.js";
import { noSource, openingMore, SourceDetails, SourceField, sourceRequest } from "./source-fields.js";

/** Fetching an image before a volume is made from it. @param {{ onClose: () => void }} props */
export function PullDialog({ onClose }) {
  const form = useSignal(noSource);
  const busy = useSignal(false);
  const submit = async () => {
    const body = sourceRequest(form.value);
    await openingMore(form, () => pull(body));
    refreshImages();
    onClose();
  };
  return html`<${Dialog} title="Pull image" busy=${busy.value} onClose=${onClose}>
    <${ActionForm}
      label="Pull"
      busyLabel="Asking the source…"
      onSubmit=${submit}
      onCancel=${onClose}
      onBusy=${(/** @type {boolean} */ value) => (busy.value = value)}
    >
      <p class="faint">All of it is fetched now, for volumes that are made from it later.</p>
      <${SourceField} form=${form} autofocus />
      <${SourceDetails} form=${form} />
    <//>
  <//>`;
}
