import { signal } from "@preact/signals";
import { send } from "./api.js";
import { tokenWanted } from "./session.js";

/*
 * The server's events, read with fetch because EventSource can't send a token. They carry the objects that changed; where
 * there is no stream, whoever shows something asks by the clock. After a gap a `reset` says that objects have to be asked
 * for anew; it comes first in every stream that doesn't go on where the last one ended.
 */

/** Whether events arrive at the moment. */
export const streaming = signal(false);

/** @typedef {{ type: string, data: any, id?: string | undefined }} ServerEvent */

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
  let lastId = "";
  for (;;) {
    await shown();
    if (tokenWanted.value) {
      await pause(firstRetryMs);
      continue;
    }
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await send("v1/events", {
        headers: { accept: "text/event-stream", ...(lastId === "" ? {} : { "last-event-id": lastId }) },
        patient: true,
        signal: stop.signal,
      });
      streaming.value = true;
      retryMs = firstRetryMs;
      if (lastId === "") tell({ type: "reset", data: {} });
      await readEvents(answer, (event) => {
        lastId = event.id ?? lastId;
        if (event.data !== undefined) tell(event);
      });
    } catch {
      // whoever needs the server shows that it is gone; here it only means trying again
    }
    streaming.value = false;
    document.removeEventListener("visibilitychange", hide);
    await pause(retryMs);
    retryMs = Math.min(maxRetryMs, retryMs * 2);
  }
}

/** @param {ServerEvent} event what the server says, or what it could not say because it went away */
export function tell(event) {
  for (const listener of listeners) listener(event);
}

/**
 * @param {Response} answer
 * @param {(event: ServerEvent) => void} take
 */
async function readEvents(answer, take) {
  if (answer.body === null) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const { events, rest } = parseEvents(pending + value);
    pending = rest;
    for (const event of events) take(event);
  }
}

/**
 * The whole events in a piece of a `text/event-stream`, and what is left of the last one. One without data only says from
 * which id to go on.
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
  let id;
  /** @type {string[]} */
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]+):? ?(.*)$/.exec(line) ?? [];
    if (field === "event") type = value ?? "";
    if (field === "id") id = value;
    if (field === "data") data.push(value ?? "");
  }
  if (data.length === 0) return id === undefined ? undefined : { type, id, data: undefined };
  try {
    return { type, id, data: JSON.parse(data.join("\n")) };
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
