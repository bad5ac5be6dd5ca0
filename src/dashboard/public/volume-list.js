import { computed, signal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { onEvent, streaming } from "./events.js";
import { Poller } from "./polling.js";

/*
 * All volumes, as the server last told. They are read in small pages, so that a server with thousands of them is never
 * held up by one long answer, and anew every few seconds; events make it sooner.
 */

/**
 * @typedef {object} Hydration
 * @property {"none" | "running" | "paused" | "waiting" | "detached"} state
 * @property {string | null} reason
 * @property {number} readyBytes
 * @property {number} totalBytes
 * @property {number} rateBytesPerSecond
 * @property {number | null} etaSeconds
 * @property {number | null} limitBytesPerSecond
 * @property {number} priority
 */

/**
 * @typedef {object} Volume
 * @property {string} id
 * @property {string} name
 * @property {number} size
 * @property {string} state
 * @property {string | null} reason
 * @property {string | null} source
 * @property {string | null} format
 * @property {number} fetchedBytes
 * @property {number} writtenBytes
 * @property {number} [exclusiveBytes]
 * @property {number} [sharedBytes]
 * @property {Hydration} hydration
 * @property {Record<string, string>} settings
 * @property {number} connections
 * @property {string} createdAt
 */

const pageVolumes = 100;
const pollMs = 2_000;
/** With events, asking by the clock is only a safety net. */
const pollStreamingMs = 10_000;

/** @type {import("@preact/signals").Signal<Map<string, Volume>>} by name */
const known = signal(new Map());

/** Whether all volumes were read once. */
export const listed = signal(false);
/** Why the last reading failed; null when it did not. */
export const listProblem = signal(/** @type {import("./api.js").Problem | null} */ (null));

/** Ordered by name. */
export const volumes = computed(() => [...known.value.values()]);

/** @param {string} name */
export const knownVolume = (name) => known.value.get(name);

/** @type {Poller | undefined} */
let poller;

/** Counts local changes: what a sweep read before one of them may be older than what we know. */
let changes = 0;

/** @returns {() => void} ends it */
export function followVolumes() {
  poller = new Poller(readAll, () => (streaming.value ? pollStreamingMs : pollMs));
  const current = poller;
  const quiet = onEvent(() => current.hint());
  return () => {
    quiet();
    current.stop();
  };
}

export function refreshVolumes() {
  poller?.poke();
}

async function readAll() {
  const before = changes;
  /** @type {Map<string, Volume>} */
  const found = new Map();
  try {
    let cursor = "";
    do {
      const page = await call(`v1/volumes?limit=${pageVolumes}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
      for (const volume of page.volumes) found.set(volume.name, volume);
      cursor = page.next ?? "";
    } while (cursor !== "");
  } catch (error) {
    listProblem.value = /** @type {import("./api.js").Problem} */ (error);
    throw error;
  }
  listProblem.value = null;
  if (changes !== before) return refreshVolumes(); // made, changed or removed meanwhile: read again
  known.value = found;
  listed.value = true;
}

/**
 * One volume, asked for now.
 * @param {string} name
 * @returns {Promise<Volume>}
 */
export async function readVolume(name) {
  const volume = await call(volumePath(name));
  put(volume);
  return volume;
}

/**
 * A volume that we made or changed.
 * @param {Volume} volume
 */
export function noteVolume(volume) {
  changes++;
  put(volume);
}

/** @param {Volume} volume */
function put(volume) {
  const names = [...known.value.keys(), volume.name].sort(byName);
  const after = new Map(known.value).set(volume.name, volume);
  known.value = new Map(names.map((name) => [name, /** @type {Volume} */ (after.get(name))]));
}

/** @param {string} name */
export function noteRemoved(name) {
  changes++;
  known.value = new Map([...known.value].filter(([other]) => other !== name));
}

/**
 * @param {string} name
 * @param {Partial<Hydration>} change
 */
export async function steerHydration(name, change) {
  const hydration = await call(`${volumePath(name)}/hydration`, { method: "PATCH", body: change });
  const volume = known.value.get(name);
  if (volume !== undefined) noteVolume({ ...volume, hydration });
}

/**
 * As the server orders names: by their bytes.
 * @param {string} a
 * @param {string} b
 */
function byName(a, b) {
  return a < b ? -1 : Number(a > b);
}
