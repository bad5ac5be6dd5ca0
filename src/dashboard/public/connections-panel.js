import { html } from "htm/preact";

/** Who is connected to a volume. @param {{ connections: { protocol: string, address: string, remote: boolean, writable: boolean }[] }} props */
export function ConnectionsPanel({ connections }) {
  return html`<section class="card">
    <h2>Connections <span class="count">${connections.length}</span></h2>
    ${connections.length === 0 && html`<p class="faint">Nobody is connected.</p>`}
    <ul class="rows">
      ${connections.map(
        ({ protocol, address, remote, writable }, index) =>
          html`<li key=${`${address} ${index}`}>
            <code>${protocol} ${address}</code>
            <span class="faint"
              >${writable ? "reads and writes" : "reads only"}${remote ? ", another machine" : ""}</span
            >
          </li>`,
      )}
    </ul>
  </section>`;
}
