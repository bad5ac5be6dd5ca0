import { html } from "htm/preact";
import { useSignal } from "@preact/signals";
import { Problem } from "./api.js";
import { exactSize, formatRate, parseSize } from "./format.js";
import { canPause, canResume, HydrationBar, HydrationFigures } from "./hydration-view.js";
import { ActionForm, ProblemBox } from "./parts.js";
import { steerHydration } from "./volume-list.js";

/** @typedef {import("./volume-list.js").Volume} Volume */

/** Filling the cache: how far, and how it goes on. @param {{ volume: Volume }} props */
export function HydrationPanel({ volume }) {
  const { name, hydration } = volume;
  const problem = useSignal(/** @type {unknown} */ (null));
  const draft = useSignal(/** @type {{ rate: string, priority: string } | null} */ (null));
  const limit = hydration.limitBytesPerSecond;
  const shown = draft.value ?? {
    rate: limit === null ? "" : exactSize(limit),
    priority: String(hydration.priority),
  };
  const edit = (/** @type {string} */ key) => (/** @type {any} */ event) =>
    (draft.value = { ...shown, [key]: event.target.value });
  const steer = async (/** @type {"running" | "paused"} */ state) => {
    problem.value = null;
    try {
      await steerHydration(name, { state });
    } catch (error) {
      problem.value = error;
    }
  };
  const apply = async () => {
    await steerHydration(name, { limitBytesPerSecond: rateFrom(shown.rate), priority: priorityFrom(shown.priority) });
    draft.value = null;
  };
  return html`<section class="card">
    <h2>Hydration</h2>
    <${HydrationBar} volume=${volume} />
    <p>
      ${
        hydration.state === "detached"
          ? html`<span class="small faint">Everything is here: the source is not needed any more.</span>`
          : html`<${HydrationFigures} volume=${volume} />`
      }
    </p>
    <${ProblemBox} problem=${problem.value} onDismiss=${() => (problem.value = null)} />
    ${
      hydration.state !== "detached" &&
      html`<div class="buttons start">
          ${canPause(volume) && html`<button onClick=${() => steer("paused")}>Pause</button>`}
          ${
            canResume(volume) &&
            html`<button onClick=${() => steer("running")}>
              ${hydration.state === "paused" ? "Resume" : "Start"}
            </button>`
          }
        </div>
        <${ActionForm}
          class="inline"
          label="Apply"
          busyLabel="Applying…"
          doneText="Applied"
          disabled=${draft.value === null}
          onSubmit=${apply}
        >
          <label class="field">
            <span>At most, per second</span>
            <input name="rate" placeholder="as fast as it goes" value=${shown.rate} onInput=${edit("rate")} />
            <small class="faint">${limit === null ? "now without a limit" : `now ${formatRate(limit)}`}</small>
          </label>
          <label class="field">
            <span>Priority</span>
            <input
              name="priority"
              type="number"
              min="-100"
              max="100"
              value=${shown.priority}
              onInput=${edit("priority")}
            />
            <small class="faint">more is sooner</small>
          </label>
        <//>`
    }
  </section>`;
}

/**
 * @param {string} text
 * @returns {number | null}
 */
function rateFrom(text) {
  if (text.trim() === "") return null;
  const rate = parseSize(text.replace(/\/s$/, ""));
  if (rate !== undefined && rate > 0) return rate;
  throw notSent(`“${text}” is no rate`, "write 10M for 10 MiB per second; nothing for as fast as it goes");
}

/** @param {string} text */
function priorityFrom(text) {
  const priority = Number(text);
  if (text.trim() !== "" && Number.isInteger(priority) && Math.abs(priority) <= 100) return priority;
  throw notSent(`“${text}” is no priority`, "a whole number from -100 to 100");
}

/**
 * @param {string} detail
 * @param {string} hint
 */
function notSent(detail, hint) {
  return new Problem({ status: 0, code: "not-sent", detail, hint });
}
