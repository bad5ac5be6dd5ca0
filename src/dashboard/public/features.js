import { signal } from "@preact/signals";
import { call } from "./api.js";

/*
 * What this server can do, from its own description: a page shows what the server has and nothing else.
 */

/** @type {import("@preact/signals").Signal<any>} */
const description = signal(null);

export async function loadFeatures() {
  description.value = await call("openapi.json");
}

/** Whether the description was read. */
export const featuresKnown = () => description.value !== null;

/**
 * @param {string} method
 * @param {string} path as the description has it, e.g. `/v1/volumes/{name}/revert`
 */
export function can(method, path) {
  return description.value?.paths?.[path]?.[method.toLowerCase()] !== undefined;
}

/**
 * Whether objects of this kind have such a key.
 * @param {string} schema
 * @param {string} key
 */
export function hasKey(schema, key) {
  return description.value?.components?.schemas?.[schema]?.properties?.[key] !== undefined;
}

export const canSnapshot = () => can("POST", "/v1/volumes/{name}/snapshots") && can("GET", "/v1/snapshots");
