import { signal } from "@preact/signals";
import { send } from "./api.js";

/*
 * The server's events, read with fetch because EventSource can't send a token. An event says that something changed,
 * which makes the lists ask sooner; where there is no stream, they ask by the clock alone.
 */

/** Whether events arrive at the moment. */
export const streaming = signal(false);

/** @typedef {{ type: string, data: any }} ServerEvent */

/** @type {Set<(event: ServerEvent) => void>} */
const listeners = new Set();

const firstRetryMs = 1_000;
const maxRetryMs = 30_000;

/**
 * @param {(event: ServerEvent) => void} listener
 * @returns {() => void} ends it
 */
export function onEvent(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Reads events while the page is shown, for as long as it is open. */
export async function followEvents() {
  let retryMs = firstRetryMs;
  for (;;) {
    await shown();
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await send("v1/events", {
        headers: { accept: "text/event-stream" },
        patient: true,
        signal: stop.signal,
      });
      streaming.value = true;
      retryMs = firstRetryMs;
      await readEvents(answer);
    } catch {
      // whoever needs the server shows that it is gone; here it only means trying again
    }
    streaming.value = false;
    document.removeEventListener("visibilitychange", hide);
    await pause(retryMs);
    retryMs = Math.min(maxRetryMs, retryMs * 2);
  }
}

/** @param {Response} answer */
async function readEvents(answer) {
  if (answer.body === null) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const { events, rest } = parseEvents(pending + value);
    pending = rest;
    for (const event of events) for (const listener of listeners) listener(event);
  }
}

/**
 * The whole events in a piece of a `text/event-stream`, and what is left of the last one.
 * @param {string} text
 * @returns {{ events: ServerEvent[], rest: string }}
 */
export function parseEvents(text) {
  const blocks = text.replaceAll("\r\n", "\n").split("\n\n");
  const rest = blocks.pop() ?? "";
  const events = blocks.flatMap((block) => {
    const event = parseEvent(block);
    return event === undefined ? [] : [event];
  });
  return { events, rest };
}

/**
 * @param {string} block
 * @returns {ServerEvent | undefined}
 */
function parseEvent(block) {
  let type = "message";
  /** @type {string[]} */
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]+):? ?(.*)$/.exec(line) ?? [];
    if (field === "event") type = value ?? "";
    if (field === "data") data.push(value ?? "");
  }
  if (data.length === 0) return undefined;
  try {
    return { type, data: JSON.parse(data.join("\n")) };
  } catch {
    return undefined;
  }
}

function shown() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

/** @param {number} ms */
function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
