import { html, render } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { signal, useSignal } from "@preact/signals";
import { offline } from "./api.js";
import { followEvents, streaming } from "./events.js";
import { can, featuresKnown, loadFeatures } from "./features.js";
import { health, loadHealth, replaced } from "./health.js";
import { ImagesPage } from "./images-page.js";
import { JobProblems } from "./job-problems.js";
import { ProblemBox, sentence } from "./parts.js";
import { Poller } from "./polling.js";
import { place, startRouter } from "./router.js";
import { adoptToken, tokenWanted } from "./session.js";
import { TokenForm } from "./token-form.js";
import { listenForVolumes } from "./volume-list.js";
import { VolumePage } from "./volume-page.js";
import { VolumesPage } from "./volumes-page.js";

const healthPollMs = 10_000;

const canShowImages = () => can("GET", "/v1/blobs");

/** Whether events are followed: they are once the server's description is known. */
let following = false;

/** Asks the server again, now. */
const retry = signal(() => {});

async function start() {
  await loadFeatures();
  if (following || !can("GET", "/v1/events")) return;
  following = true;
  listenForVolumes();
  void followEvents();
}

function App() {
  const problem = useSignal(/** @type {unknown} */ (null));
  useEffect(() => {
    const poller = new Poller(
      async () => {
        if (tokenWanted.value) return; // the form asks
        try {
          if (!featuresKnown()) await start();
          await loadHealth();
          problem.value = null;
        } catch (error) {
          problem.value = error;
          throw error;
        }
      },
      () => healthPollMs,
    );
    retry.value = () => poller.poke();
    return () => poller.stop();
  }, []);
  return html`<${Header} /> <${Offline} />
    <${JobProblems} />
    ${tokenWanted.value ? html`<${TokenForm} onSignedIn=${start} />` : html`<${Page} problem=${problem.value} />`}`;
}

/** @param {{ problem: unknown }} props */
function Page({ problem }) {
  const where = place.value;
  useNewPageFocus(where);
  if (!featuresKnown()) {
    return html`<main>
      ${offline.value === null && problem !== null ? html`<${ProblemBox} problem=${problem} />` : html`<p class="faint">Loading…</p>`}
    </main>`;
  }
  if (where.page === "volume") return html`<${VolumePage} key=${where.name} name=${where.name} />`;
  if (where.page === "volumes") return html`<${Warnings} /><${VolumesPage} />`;
  if (where.page === "images" && canShowImages()) return html`<${ImagesPage} />`;
  return html`<main>
    <h1 tabindex="-1">There is no such page</h1>
    <a href="#/">Volumes</a>
  </main>`;
}

/**
 * Who goes to another page of ours is at its heading, as with a page that is loaded: otherwise the focus would be
 * nowhere and screen readers would say nothing.
 * @param {import("./router.js").Place} where
 */
function useNewPageFocus(where) {
  const first = useRef(true);
  useEffect(() => {
    if (!first.current) document.querySelector("h1")?.focus();
    first.current = false;
  }, [where]);
}

function Header() {
  const [tone, text, meaning] =
    offline.value !== null
      ? ["bad", "offline", "The server can't be reached"]
      : streaming.value
        ? ["good", "live", "Changes are shown as they happen"]
        : ["idle", "online", "The server is asked every few seconds"];
  return html`<header class="top">
    <a class="brand" href="#/"><img src="dashboard/icon.svg" alt="" width="24" height="24" />Ullage</a>
    ${
      canShowImages() &&
      html`<nav aria-label="Main">
        <a href="#/" aria-current=${["volumes", "volume"].includes(place.value.page) ? "page" : undefined}>Volumes</a>
        <a href="#/images" aria-current=${place.value.page === "images" ? "page" : undefined}>Images</a>
      </nav>`
    }
    <span class="spring"></span>
    ${health.value !== null && html`<span class="version small faint" title=${health.value.dataDirectory}>${health.value.version}</span>`}
    ${health.value !== null && html`<span class=${`chip ${tone}`} title=${meaning}>${text}</span>`}
  </header>`;
}

function Offline() {
  const away = useRef(false);
  const back = useSignal("");
  const reason = offline.value;
  useEffect(() => {
    if (reason === null && away.current) back.value = "The server is back.";
    away.current = reason !== null;
    if (reason !== null) back.value = "";
  }, [reason]);
  if (reason === null) {
    return html`<p class="unseen" role="status">${back.value}</p>
      ${replaced() && html`<${Replaced} />`}`;
  }
  return html`<div class="offline" role="alert">
    <span> <b>${sentence(reason)}.</b> What you see may be old; it goes on by itself when the server is back. </span>
    <button onClick=${() => retry.value()}>Try now</button>
  </div>`;
}

function Replaced() {
  return html`<div class="replaced" role="status">
    <span>The server is of another version now: <b>${health.value?.version}</b>. This page is still the old one.</span>
    <button onClick=${() => location.reload()}>Reload</button>
  </div>`;
}

function Warnings() {
  const warnings = health.value?.warnings ?? [];
  if (warnings.length === 0) return null;
  return html`<details class="warnings">
    <summary>${warnings.length === 1 ? "1 warning" : `${warnings.length} warnings`} from the server</summary>
    <ul>
      ${warnings.map(({ code, message }) => html`<li key=${message}><code>${code}</code> ${message}</li>`)}
    </ul>
  </details>`;
}

adoptToken();
startRouter();
const root = document.getElementById("app");
if (root !== null) {
  root.textContent = "";
  render(html`<${App} />`, root);
}
