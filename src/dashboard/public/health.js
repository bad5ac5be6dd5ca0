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

/** When something fails the answer is a 503, and still an answer. */
export async function loadHealth() {
  health.value = await call("v1/health", { alsoGood: 503 });
}
