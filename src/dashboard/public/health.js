import { signal } from "@preact/signals";
import { call } from "./api.js";

/**
 * @typedef {object} Health
 * @property {string} status
 * @property {{ code: string, message: string }[]} warnings
 * @property {string} version
 * @property {string} dataDirectory
 * @property {import("./connect.js").Listener[]} listeners
 */

/** What the server says of itself; null until it was asked. */
export const health = signal(/** @type {Health | null} */ (null));

/** The version that this page came from; null until the server was asked. @type {string | null} */
let pageVersion = null;

/** Whether the server was replaced by another version since this page was loaded. */
export const replaced = () => health.value !== null && health.value.version !== pageVersion;

/** When something fails the answer is a 503, and still an answer. */
export async function loadHealth() {
  health.value = await call("v1/health", { alsoGood: 503 });
  pageVersion ??= health.value?.version ?? null;
}
