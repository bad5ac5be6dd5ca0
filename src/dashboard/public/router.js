import { signal } from "@preact/signals";

/*
 * Where we are, from the fragment: `#/` is the list of volumes, `#/volumes/NAME` one of them, `#/images` the cache.
 * Nothing in it ever reaches the server.
 */

/** @typedef {{ page: "volumes" } | { page: "images" } | { page: "volume", name: string } | { page: "unknown" }} Place */

/** @type {import("@preact/signals").Signal<Place>} */
export const place = signal(/** @type {Place} */ ({ page: "volumes" }));

/**
 * @param {string} fragment
 * @returns {Place}
 */
export function parsePlace(fragment) {
  const path = fragment.replace(/^#/, "");
  if (path === "" || path === "/") return { page: "volumes" };
  if (path === "/images") return { page: "images" };
  const match = /^\/volumes\/([^/]+)$/.exec(path);
  if (match === null) return { page: "unknown" };
  try {
    return { page: "volume", name: decodeURIComponent(match[1] ?? "") };
  } catch {
    return { page: "unknown" };
  }
}

/** @param {string} name */
export const volumeLink = (name) => `#/volumes/${encodeURIComponent(name)}`;

export function startRouter() {
  const follow = () => {
    place.value = parsePlace(location.hash);
  };
  addEventListener("hashchange", follow);
  follow();
}

/** @param {string} fragment */
export function go(fragment) {
  location.hash = fragment;
}
