import { signal } from "@preact/signals";
import { call } from "./api.js";
import { can } from "./features.js";
import { Poller } from "./polling.js";

/*
 * How busy volumes are: the difference between two readings of the server's counters, by the time between them.
 */

/**
 * @typedef {object} Counters of one volume, since the server started
 * @property {string} name
 * @property {number} readBytes
 * @property {number} writtenBytes
 * @property {number} requests
 */

/**
 * @typedef {object} Rate
 * @property {number} bytesPerSecond
 * @property {number} readPerSecond bytes
 * @property {number} writtenPerSecond bytes
 * @property {number} requestsPerSecond
 */

const pollMs = 2_000;

/** @type {import("@preact/signals").Signal<Map<string, Rate>>} by volume */
export const rates = signal(new Map());

/**
 * The rates between two readings; volumes that only one of them has, or that were restarted, have none.
 * @param {Counters[]} before
 * @param {Counters[]} after
 * @param {number} seconds between them
 * @returns {Map<string, Rate>}
 */
export function ratesBetween(before, after, seconds) {
  const earlier = new Map(before.map((counters) => [counters.name, counters]));
  /** @type {Map<string, Rate>} */
  const found = new Map();
  for (const { name, readBytes, writtenBytes, requests } of after) {
    const first = earlier.get(name);
    if (first === undefined || seconds <= 0 || requests < first.requests) continue;
    const readPerSecond = (readBytes - first.readBytes) / seconds;
    const writtenPerSecond = (writtenBytes - first.writtenBytes) / seconds;
    found.set(name, {
      readPerSecond,
      writtenPerSecond,
      bytesPerSecond: readPerSecond + writtenPerSecond,
      requestsPerSecond: (requests - first.requests) / seconds,
    });
  }
  return found;
}

/**
 * Keeps `rates` up to date while it is looked at.
 * @returns {() => void} ends it
 */
export function followRates() {
  if (!can("GET", "/v1/traffic")) return () => undefined;
  /** @type {{ counters: Counters[], atMs: number } | undefined} */
  let last;
  const poller = new Poller(
    async () => {
      const { traffic } = await call("v1/traffic");
      const now = { counters: traffic, atMs: performance.now() };
      if (last !== undefined) rates.value = ratesBetween(last.counters, now.counters, (now.atMs - last.atMs) / 1000);
      last = now;
    },
    () => pollMs,
  );
  return () => {
    poller.stop();
    rates.value = new Map();
  };
}
