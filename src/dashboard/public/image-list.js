import { signal } from "@preact/signals";
import { call } from "./api.js";
import { onEvent } from "./events.js";
import { can } from "./features.js";
import { Poller } from "./polling.js";
import { readPulls } from "./pulling.js";

/*
 * What the cache holds, as the server last told while somebody looked. There are no events for blobs: it is asked by the
 * clock, and after what is likely to change something.
 */

/**
 * One version of an image.
 * @typedef {object} Blob
 * @property {string} id
 * @property {string} image the same for all versions
 * @property {string} source
 * @property {string} format
 * @property {string | null} identity
 * @property {boolean} pinned a change of the source can't go unnoticed
 * @property {boolean | null} [verified] compared with its digest; null: there is none
 * @property {"shared" | "none"} [cache] none: nothing of it is kept on disk
 * @property {number} size
 * @property {number} readyBytes
 * @property {number} diskBytes
 * @property {string[]} volumes
 * @property {string[]} detached
 * @property {boolean} kept somebody wants it to stay
 * @property {string | null} usedAt
 * @property {{ state: "notNeeded" | "notAsked" | "ok" | "failing", reason: string | null }} sourceState
 * @property {string} createdAt
 */

/** @typedef {{ blobs: number, diskBytes: number, capacityBytes: number | null, reserve: number, evictedBytes: number }} Cache */

const pageBlobs = 100;
const pollMs = 5_000;

/** @type {import("@preact/signals").Signal<Blob[] | null>} null: not read yet */
export const blobs = signal(null);
/** @type {import("@preact/signals").Signal<Cache | null>} */
export const cache = signal(null);
/** Why the last reading failed. */
export const imagesProblem = signal(/** @type {import("./api.js").Problem | null} */ (null));

/** @type {Poller | undefined} */
let poller;

/** Reads again and again. @returns {() => void} ends it */
export function followImages() {
  const current = new Poller(readAll, () => pollMs);
  poller = current;
  const quiet = onEvent(({ type }) => {
    if (["reset", "job", "volume-created", "volume-removed"].includes(type)) current.hint();
  });
  return () => {
    quiet();
    current.stop();
  };
}

/** Reads as soon as possible, after something was done. */
export function refreshImages() {
  poller?.poke();
}

async function readAll() {
  try {
    const [found, whole] = await Promise.all([
      readBlobs(),
      can("GET", "/v1/cache") ? call("v1/cache") : null,
      can("GET", "/v1/jobs") ? readPulls() : undefined,
    ]);
    blobs.value = found;
    cache.value = whole;
    imagesProblem.value = null;
  } catch (error) {
    imagesProblem.value = /** @type {import("./api.js").Problem} */ (error);
    throw error;
  }
}

/** @returns {Promise<Blob[]>} ordered by source, the newest version first */
async function readBlobs() {
  /** @type {Blob[]} */
  const found = [];
  let cursor = "";
  do {
    const page = await call(`v1/blobs?limit=${pageBlobs}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`);
    found.push(...page.blobs);
    cursor = page.next ?? "";
  } while (cursor !== "");
  const place = (/** @type {Blob} */ { source, image }) => `${source}\0${image}`;
  return found.sort((a, b) => {
    if (a.image !== b.image) return place(a) < place(b) ? -1 : 1;
    return a.createdAt > b.createdAt ? -1 : 1;
  });
}

/** What an answer told of a blob. @param {Blob} blob */
export function noteBlob(blob) {
  blobs.value = blobs.value?.map((known) => (known.id === blob.id ? blob : known)) ?? null;
}

/** The ids of blobs of which a newer version is there. @param {readonly Blob[]} all as `blobs` is ordered */
export function outdated(all) {
  /** @type {Map<string, Blob>} by image */
  const newest = new Map();
  for (const blob of all) if (!newest.has(blob.image)) newest.set(blob.image, blob);
  const isOld = (/** @type {Blob} */ blob) => {
    const latest = newest.get(blob.image);
    // The same version may be here twice: kept, and read through.
    return latest !== blob && (blob.identity === null || latest?.identity !== blob.identity);
  };
  return new Set(all.filter(isOld).map(({ id }) => id));
}
