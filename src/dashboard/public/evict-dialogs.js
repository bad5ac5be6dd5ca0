import { html } from "htm/preact";
import { call } from "./api.js";
import { formatBytes, plural } from "./format.js";
import { refreshImages } from "./image-list.js";
import { ConfirmDialog } from "./parts.js";

/* Questions before something is thrown out of the cache. */

/** @typedef {import("./image-list.js").Blob} Blob */
/** @typedef {import("@preact/signals").Signal<string>} Said what came of it */

/** @param {Blob} blob */
export const isUnused = ({ volumes, kept }) => volumes.length === 0 && !kept;

/**
 * @param {object} body
 * @param {Said} said
 */
async function evict(body, said) {
  const { freedBytes } = await call("v1/cache/evict", { method: "POST", body });
  said.value = `${formatBytes(freedBytes)} freed`;
  refreshImages();
}

/** One version of an image. @param {{ blob: Blob, old: boolean, said: Said, onClose: () => void }} props */
export function EvictDialog({ blob, old, said, onClose }) {
  const { source, readyBytes, volumes, sourceState } = blob;
  return html`<${ConfirmDialog}
    title="Evict from the cache"
    label="Evict"
    onConfirm=${() => evict({ blob: blob.id }, said)}
    onClose=${onClose}
  >
    ${
      volumes.length === 0
        ? html`<p>
            The <b>${formatBytes(readyBytes)}</b> that are here of <b class="name">${source}</b> go. No volume needs
            them; one that is made from it later fetches them again.
          </p>`
        : html`<p>
            <b>${plural(volumes.length, "volume")}</b> ${volumes.length === 1 ? "was" : "were"} made from
            <b class="name"> ${source}</b>. Only what none of them has to keep goes, and is fetched again when it is
            read; if they have to keep all of it, nothing goes.
          </p>`
    }
    ${
      sourceState.state === "failing" &&
      html`<p class="bad-text">
        The source can't be read at the moment (${sourceState.reason}): what goes now may not come back.
      </p>`
    }
    ${
      old &&
      html`<p class="bad-text">The source had a newer version since: this one can probably not be fetched again.</p>`
    }
  <//>`;
}

/** All that no volume needs. @param {{ all: Blob[], said: Said, onClose: () => void }} props */
export function FreeDialog({ all, said, onClose }) {
  const unused = all.filter(isUnused);
  const bytes = unused.reduce((sum, { diskBytes }) => sum + diskBytes, 0);
  return html`<${ConfirmDialog}
    title="Free what is unused"
    label="Free"
    onConfirm=${() => evict({}, said)}
    onClose=${onClose}
  >
    <p>
      ${plural(unused.length, "image")} that no volume was made from and nobody pinned
      ${unused.length === 1 ? " goes" : " go"}: <b>${formatBytes(bytes)}</b> on disk. Parts that volumes read but do not
      have to keep may go as well. All of it is fetched again when it is needed.
    </p>
  <//>`;
}
