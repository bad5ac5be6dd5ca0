import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { waysTo } from "./connect.js";
import { onEvent } from "./events.js";
import { can } from "./features.js";
import { Copyable } from "./parts.js";
import { Poller } from "./polling.js";
import { health, loadHealth } from "./health.js";

/* How to connect to a volume, to be copied: under its own name, and under those that were added. */

/**
 * @typedef {object} Export
 * @property {string} name
 * @property {string} volume
 * @property {string | null} snapshot
 * @property {boolean} readOnly
 * @property {string | null} description
 * @property {boolean} implicit
 */

const pollMs = 15_000;

/**
 * The names that were added for a volume and its snapshots.
 * @param {string} volume
 * @returns {Export[]}
 */
function useAdded(volume) {
  const added = useSignal(/** @type {Export[]} */ ([]));
  useEffect(() => {
    if (!can("GET", "/v1/volumes/{name}/exports")) return undefined;
    const poller = new Poller(
      async () => (added.value = await readAdded(volume)),
      () => pollMs,
    );
    const quiet = onEvent(({ type, data }) => {
      if (type === "reset" || (type.startsWith("export-") && data.volume === volume)) poller.hint();
    });
    return () => {
      quiet();
      poller.stop();
    };
  }, [volume]);
  return added.value;
}

/**
 * @param {string} volume
 * @returns {Promise<Export[]>}
 */
async function readAdded(volume) {
  /** @type {Export[]} */
  const found = [];
  let cursor = "";
  do {
    const more = cursor && `?cursor=${encodeURIComponent(cursor)}`;
    const page = await call(`${volumePath(volume)}/exports${more}`);
    found.push(...page.exports);
    cursor = page.next ?? "";
  } while (cursor !== "");
  return found.filter(({ implicit }) => !implicit);
}

/** @param {{ name: string }} props */
export function ExportsPanel({ name }) {
  useEffect(() => void loadHealth().catch(() => undefined), []);
  const added = useAdded(name);
  if (health.value === null) return null;
  const { listeners } = health.value;
  const ways = waysTo(listeners, name, location.hostname);
  return html`<section class="card" aria-label="Connect">
    <h2>Connect</h2>
    ${ways.length === 0 && html`<p class="faint">The server has no NBD listener.</p>`}
    ${ways.map(
      ({ uri, where, commands }, index) =>
        html`<div class="way" key=${uri}>
          <h3>NBD <span class="faint">${where}</span></h3>
          <${Copyable} text=${uri} label="the address" />
          <details open=${index === 0}>
            <summary>Commands</summary>
            ${commands.map(
              ({ label, line }) =>
                html`<div key=${label}>
                  <span class="small faint">${label}</span>
                  <${Copyable} text=${line} label=${`the command: ${label}`} />
                </div>`,
            )}
          </details>
        </div>`,
    )}
    ${added.map(
      (each) =>
        html`<div class="way" key=${each.name}>
          <h3><span class="name">${each.name}</span> <span class="faint">${notes(each)}</span></h3>
          ${waysTo(listeners, each.name, location.hostname).map(
            ({ uri }) => html`<${Copyable} key=${uri} text=${uri} label=${`the address of ${each.name}`} />`,
          )}
        </div>`,
    )}
  </section>`;
}

/** @param {Export} added */
function notes({ volume, snapshot, readOnly, description }) {
  const target = snapshot === null ? [] : [`${volume}@${snapshot}`];
  return [...target, readOnly ? "read-only" : "read-write", ...(description === null ? [] : [description])].join(", ");
}
