import { computed, signal } from "@preact/signals";
import { call, volumePath } from "./api.js";
import { onEvent, streaming } from "./events.js";
import { Poller } from "./polling.js";

/*
 * All volumes, as the server last told:
 *
 *     sweep ..... reads all, in small pages, so that a server with thousands of them is never held up by one long answer;
 *                 again and again, seldom while events arrive
 *     events .... bring what changed, gathered for a moment
 *     answers ... to what we did ourselves
 *
 * What came while a sweep was under way is newer than what the sweep found.
 */

/**
 * @typedef {object} Hydration
 * @property {"none" | "running" | "paused" | "waiting" | "detached"} state
 * @property {string | null} reason
 * @property {number} readyBytes
 * @property {number} totalBytes
 * @property {number} [damagedBytes] of these, what can't be had though the source answers
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
 * @property {boolean | null} [pinned] a change of the source can't go unnoticed
 * @property {string | null} [blob] id of the version of the image that it was made from
 * @property {string | null} format
 * @property {number} fetchedBytes
 * @property {{ volume: string, snapshot: string | null, removed: boolean } | null} [origin] what a clone began as
 * @property {number} writtenBytes
 * @property {Hydration} hydration
 * @property {Record<string, string>} settings
 * @property {number} connections
 * @property {string} createdAt
 */

const pageVolumes = 100;
const pollMs = 2_000;
/** With events, asking by the clock is only a safety net. */
const pollStreamingMs = 60_000;
/** Events are gathered for so long before anything is drawn. */
const gatherMs = 150;

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

/** What was told since the last sweep began, by name; null: removed. @type {Map<string, Volume | null>} */
let told = new Map();

/** @returns {() => void} ends it */
export function followVolumes() {
  const current = new Poller(readAll, () => (streaming.value ? pollStreamingMs : pollMs));
  poller = current;
  return () => current.stop();
}

/** @type {Map<string, Volume | null>} by name; null: removed */
let gathered = new Map();

/** Takes in what events tell. Called once. */
export function listenForVolumes() {
  onEvent(({ type, data }) => {
    if (type === "reset") return poller?.poke();
    if (!["volume-created", "volume-changed", "volume-removed", "hydration"].includes(type)) return;
    if (gathered.size === 0) setTimeout(takeGathered, gatherMs);
    if (!known.value.has(data.name)) forgetOldName(data);
    gathered.set(data.name, type === "volume-removed" ? null : data);
  });
}

/** A volume with a name that is new to us may be an old one, renamed. @param {Volume} volume */
function forgetOldName(volume) {
  for (const { id, name } of known.value.values()) if (id === volume.id) gathered.set(name, null);
}

function takeGathered() {
  const changes = gathered;
  gathered = new Map();
  take(changes);
}

/** @param {ReadonlyMap<string, Volume | null>} changes */
function take(changes) {
  for (const [name, volume] of changes) told.set(name, volume);
  known.value = merged(known.value, changes);
}

/**
 * @param {ReadonlyMap<string, Volume>} before ordered by name
 * @param {ReadonlyMap<string, Volume | null>} changes
 */
function merged(before, changes) {
  const after = new Map(before);
  for (const [name, volume] of changes) {
    if (volume === null) after.delete(name);
    else after.set(name, volume);
  }
  const added = [...changes].some(([name, volume]) => volume !== null && !before.has(name));
  return added ? new Map([...after].sort(([a], [b]) => (a < b ? -1 : 1))) : after;
}

async function readAll() {
  told = new Map();
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
  known.value = merged(found, told);
  listed.value = true;
}

/**
 * One volume, asked for now.
 * @param {string} name
 */
export async function readVolume(name) {
  noteVolume(await call(volumePath(name)));
}

/** What an answer told of a volume. @param {Volume} volume */
export function noteVolume(volume) {
  take(new Map([[volume.name, volume]]));
}

/** @param {string} name */
export function noteRemoved(name) {
  take(new Map([[name, null]]));
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
