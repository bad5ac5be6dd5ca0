import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { waysTo } from "./connect.js";
import { Copyable } from "./parts.js";
import { health, loadHealth } from "./health.js";

/** How to connect to a volume, to be copied. @param {{ name: string }} props */
export function ExportsPanel({ name }) {
  useEffect(() => void loadHealth().catch(() => undefined), []);
  if (health.value === null) return null;
  const ways = waysTo(health.value.listeners, name, location.hostname);
  return html`<section class="card">
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
  </section>`;
}
