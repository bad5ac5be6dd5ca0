import { html } from "htm/preact";
import { useEffect } from "preact/hooks";
import { signal } from "@preact/signals";
import { Problem } from "./api.js";
import { onEvent } from "./events.js";
import { ProblemBox } from "./parts.js";
import { isAskedForAgain } from "./pulling.js";

/** What is kept of work that failed in the background; the oldest goes first. */
const maxProblems = 5;

/** @type {import("@preact/signals").Signal<{ id: string, problem: Problem }[]>} */
const failed = signal([]);

/** Work that went on by itself and failed, until somebody has seen it. */
export function JobProblems() {
  useEffect(
    () =>
      onEvent(({ type, data }) => {
        if (type !== "job" || data.state !== "failed" || data.error === null || isAskedForAgain(data)) return;
        const { status, code, detail, hint } = data.error;
        const what = data.kind === "image-pull" ? "fetched" : "made";
        const problem = new Problem({
          status,
          code,
          detail: data.target === null ? detail : `“${data.target}” could not be ${what}: ${detail}`,
          hint,
        });
        failed.value = [...failed.value.filter(({ id }) => id !== data.id), { id: data.id, problem }].slice(
          -maxProblems,
        );
      }),
    [],
  );
  if (failed.value.length === 0) return null;
  return html`<div class="background-problems">
    ${failed.value.map(
      ({ id, problem }) =>
        html`<${ProblemBox}
          key=${id}
          problem=${problem}
          onDismiss=${() => (failed.value = failed.value.filter((other) => other.id !== id))}
        />`,
    )}
  </div>`;
}
