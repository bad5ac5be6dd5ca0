import { signal } from "@preact/signals";
import { askForToken, authorization, hasToken } from "./session.js";

/** Why the server can't be reached; null while it can. */
export const offline = signal(/** @type {string | null} */ (null));

/** A call without an answer for so long has failed. Making a volume may take longer: a source may have to be streamed. */
const answerTimeoutMs = 30_000;

/** What went wrong, as the server's problem document says it, or ours when there is none. */
export class Problem extends Error {
  /** @param {{ status: number, code: string, detail: string, hint?: string | undefined }} parts */
  constructor({ status, code, detail, hint }) {
    super(detail);
    /** 0: no answer came */
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.hint = hint;
  }
}

/**
 * @param {unknown} error
 * @returns {Problem}
 */
export function problemOf(error) {
  if (error instanceof Problem) return error;
  return new Problem({ status: 0, code: "defect", detail: error instanceof Error ? error.message : String(error) });
}

/**
 * @typedef {object} CallOptions
 * @property {string} [method] default GET
 * @property {unknown} [body] sent as JSON
 * @property {Record<string, string>} [headers]
 * @property {number} [alsoGood] a status that is no failure though it looks like one
 * @property {boolean} [patient] wait for the answer however long it takes
 * @property {AbortSignal} [signal]
 */

/**
 * The answer's object; undefined when it has none.
 * @param {string} path without a slash in front: relative to the page, so that a proxy may serve it below a prefix
 * @param {CallOptions} [options]
 * @returns {Promise<any>}
 * @throws {Problem}
 */
export async function call(path, options = {}) {
  const answer = await send(path, options);
  if (answer.status === 204) return undefined;
  try {
    return await answer.json();
  } catch {
    throw new Problem({ status: answer.status, code: "no-json", detail: `the answer to ${path} can't be read` });
  }
}

/**
 * @param {string} path
 * @param {CallOptions} [options]
 * @returns {Promise<Response>} a good one
 * @throws {Problem}
 */
export async function send(path, options = {}) {
  const { method = "GET", body, headers = {}, alsoGood, patient = false, signal: stop } = options;
  const stops = [...(stop ? [stop] : []), ...(patient ? [] : [AbortSignal.timeout(answerTimeoutMs)])];
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: {
        ...authorization(),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: AbortSignal.any(stops),
      cache: "no-store",
    });
  } catch (error) {
    if (stop?.aborted === true) throw new Problem({ status: 0, code: "stopped", detail: "no longer wanted" });
    const slow = error instanceof DOMException && error.name === "TimeoutError";
    const detail = slow ? "the server does not answer" : "the server can't be reached";
    offline.value = detail;
    throw new Problem({ status: 0, code: "offline", detail, hint: "is the daemon running? this page tries again" });
  }
  offline.value = null;
  if (answer.ok || answer.status === alsoGood) return answer;
  if (answer.status === 401) askForToken();
  throw await refusal(answer);
}

/** @param {Response} answer */
async function refusal(answer) {
  const { status, statusText } = answer;
  const known = { status, code: `http-${status}`, detail: statusText || `HTTP status ${status}` };
  try {
    const { code, detail, hint } = await answer.json();
    if (typeof detail === "string") return new Problem({ status, code: String(code), detail, hint });
  } catch {
    // a proxy's page instead of a problem document: its status has to do
  }
  if (status === 401 && !hasToken()) known.detail = "a token is needed";
  return new Problem(known);
}

/** @param {string} name */
export const volumePath = (name) => `v1/volumes/${encodeURIComponent(name)}`;

/** For `Idempotency-Key`: a repeated request makes no second volume. (`randomUUID` exists on https and localhost only.) */
export function requestKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
