import { html } from "htm/preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { useSignal } from "@preact/signals";
import { problemOf } from "./api.js";
import { formatShare } from "./format.js";

/* Small parts that several views are made of. */

/**
 * What went wrong and what to do next.
 * @param {{ problem: unknown, onDismiss?: () => void }} props
 */
export function ProblemBox({ problem, onDismiss }) {
  if (problem === null || problem === undefined) return null;
  const { detail, hint, code, status } = problemOf(problem);
  return html`<div class="problem" role="alert">
    <p>
      <strong>${sentence(detail)}</strong>
      ${hint && html`<span class="hint">${withCode(sentence(hint))}</span>`}
      <code>${status === 0 ? code : `${status} ${code}`}</code>
    </p>
    ${onDismiss && html`<button type="button" class="quiet" onClick=${onDismiss} aria-label="Dismiss">✕</button>`}
  </div>`;
}

/** Commands in hints stand between backticks. @param {string} text */
function withCode(text) {
  return text.split("`").map((part, index) => (index % 2 === 1 ? html`<kbd>${part}</kbd>` : part));
}

/** Messages begin with a small letter, sentences don't. @param {string} text */
export function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * A modal dialog; Escape and the backdrop close it unless it is busy.
 * @param {{ title: string, busy?: boolean, onClose: () => void, children?: unknown }} props
 */
export function Dialog({ title, busy = false, onClose, children }) {
  const element = useRef(/** @type {HTMLDialogElement | null} */ (null));
  // Not useEffect: its end would come after the dialog has left the page, and the focus with it.
  useLayoutEffect(() => {
    const before = ancestors(document.activeElement);
    const dialog = element.current;
    dialog?.showModal();
    return () => {
      dialog?.close(); // what is behind an open one can't take the focus
      focusNear(before);
    };
  }, []);
  const cancel = (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!busy) onClose();
  };
  return html`<dialog
    ref=${element}
    aria-label=${title}
    onCancel=${cancel}
    onMouseDown=${(/** @type {MouseEvent} */ event) => event.target === element.current && cancel(event)}
  >
    <div class="dialog">
      <header>
        <h2>${title}</h2>
        <button type="button" class="quiet" aria-label="Close" disabled=${busy} onClick=${onClose}>✕</button>
      </header>
      ${children}
    </div>
  </dialog>`;
}

/**
 * An element and what it is in, from the inside out.
 * @param {Element | null} element
 */
function ancestors(element) {
  const found = [];
  for (let at = element; at !== null && at !== document.body; at = at.parentElement) found.push(at);
  return found;
}

/**
 * Gives the focus back; when the element has gone (with what was removed), to what can be tabbed to where it was.
 * @param {Element[]} elements
 */
function focusNear(elements) {
  const left = elements.find(({ isConnected }) => isConnected);
  const target = left === elements[0] ? left : left?.querySelector(focusable);
  if (target instanceof HTMLElement) target.focus();
}

const focusable = `[tabindex="0"], a[href]:not([tabindex]), button:not(:disabled, [tabindex])`;

/**
 * A form that does one thing: while it runs nothing can be pressed; if it fails the problem is shown and everything that
 * was typed stays.
 * @param {{ label: string, busyLabel?: string, doneText?: string, danger?: boolean, disabled?: boolean, class?: string, onSubmit: () => Promise<unknown>,
 *   onBusy?: (busy: boolean) => void, onCancel?: () => void, children?: unknown }} props
 */
export function ActionForm(props) {
  const {
    label,
    busyLabel = label,
    doneText = "",
    danger = false,
    disabled = false,
    onSubmit,
    onBusy,
    onCancel,
    children,
  } = props;
  const busy = useSignal(false);
  const done = useSignal(false);
  const problem = useSignal(/** @type {unknown} */ (null));
  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (busy.value || disabled) return;
    busy.value = true;
    problem.value = null;
    done.value = false;
    onBusy?.(true);
    try {
      await onSubmit();
      done.value = true;
    } catch (error) {
      problem.value = error;
    }
    busy.value = false;
    onBusy?.(false);
  };
  return html`<form class=${props.class ?? ""} onSubmit=${submit} novalidate>
    ${children}
    <${ProblemBox} problem=${problem.value} onDismiss=${() => (problem.value = null)} />
    <div class="buttons">
      <span class="done small" role="status">${done.value && disabled ? doneText : ""}</span>
      ${onCancel && html`<button type="button" disabled=${busy.value} onClick=${onCancel}>Cancel</button>`}
      <button type="submit" class=${danger ? "danger" : "primary"} disabled=${disabled || busy.value}>
        ${busy.value ? busyLabel : label}
      </button>
    </div>
  </form>`;
}

/**
 * A dialog that asks before something is lost. With `typed`, its text has to be typed first.
 * @param {{ title: string, label: string, typed?: string, onConfirm: () => Promise<unknown>, onClose: () => void, children?: unknown }} props
 */
export function ConfirmDialog({ title, label, typed, onConfirm, onClose, children }) {
  const text = useSignal("");
  const busy = useSignal(false);
  return html`<${Dialog} title=${title} busy=${busy.value} onClose=${onClose}>
    <${ActionForm}
      label=${label}
      busyLabel="Working…"
      danger
      disabled=${typed !== undefined && text.value !== typed}
      onBusy=${(/** @type {boolean} */ value) => (busy.value = value)}
      onCancel=${onClose}
      onSubmit=${async () => {
        await onConfirm();
        onClose();
      }}
    >
      ${children}
      ${
        typed !== undefined &&
        html`<label class="field">
          <span>Type <b class="name">${typed}</b> to confirm</span>
          <input
            name="confirm"
            autofocus
            autocomplete="off"
            autocapitalize="off"
            spellcheck=${false}
            value=${text.value}
            onInput=${(/** @type {any} */ event) => (text.value = event.target.value)}
          />
        </label>`
      }
    <//>
  <//>`;
}

/**
 * A bar that is filled in part.
 * @param {{ part: number, whole: number, label: string, tone?: string }} props
 */
export function Bar({ part, whole, label, tone = "" }) {
  const share = whole === 0 ? 0 : Math.min(1, part / whole);
  return html`<span
    class=${`bar ${tone}`}
    role="progressbar"
    aria-label=${label}
    aria-valuemin="0"
    aria-valuemax="100"
    aria-valuenow=${Math.floor(share * 100)}
    aria-valuetext=${formatShare(part, whole)}
    ><span style=${{ width: `${share * 100}%` }}></span
  ></span>`;
}

/**
 * A line to be copied somewhere else.
 * @param {{ text: string, label: string }} props
 */
export function Copyable({ text, label }) {
  return html`<div class="copyable">
    <code tabindex="0">${text}</code>
    <${CopyButton} text=${text} label=${label} />
  </div>`;
}

/**
 * @param {{ text: string, label: string, children?: string }} props
 */
export function CopyButton({ text, label, children = "Copy" }) {
  const state = useSignal("");
  const copy = async () => {
    state.value = (await copyText(text)) ? "Copied" : "Not copied";
    setTimeout(() => (state.value = ""), 2_000);
  };
  return html`<button type="button" onClick=${copy} aria-label=${`Copy ${label}`}>${state.value || children}</button>
    <span class="unseen" role="status">${state.value}</span>`;
}

/**
 * The clipboard API exists on https and localhost only; elsewhere it is done the old way.
 * @param {string} text
 */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "unseen";
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return copied;
  }
}

const stateTones = /** @type {Record<string, string>} */ ({
  ok: "good",
  creating: "busy",
  degraded: "warn",
  poisoned: "bad",
  lostUnflushed: "bad",
  failed: "bad",
});

const stateWords = /** @type {Record<string, string>} */ ({ lostUnflushed: "lost writes" });

/** @param {{ state: string, reason: string | null }} props */
export function StateChip({ state, reason }) {
  return html`<span class=${`chip ${stateTones[state] ?? "warn"}`} title=${reason ?? ""}
    >${stateWords[state] ?? state}</span
  >`;
}

/**
 * A dot and a word.
 * @param {{ tone: string, title?: string, children?: unknown }} props
 */
export function Chip({ tone, title, children }) {
  return html`<span class=${`chip ${tone}`} title=${title}>${children}</span>`;
}

/** Of what nothing pins. */
export function UnpinnedChip() {
  return html`<${Chip} tone="warn" title="If the source changes, nobody can tell">unpinned source<//>`;
}

/**
 * Whether an image was compared with its digest.
 * @param {{ verified: boolean | null | undefined }} props null: it has none
 */
export function VerifiedChip({ verified }) {
  if (verified === null || verified === undefined) return null;
  return verified
    ? html`<${Chip} tone="good" title="All of it was compared with its digest">verified<//>`
    : html`<${Chip} tone="" title="It is compared with its digest when all of it is here">not verified yet<//>`;
}
