import { packageVersion } from "../daemon/version.ts";
import { type Family, single } from "./family.ts";

/** The process, its event loop, the data directory and the NBD server. */
export const processFamilies: readonly Family[] = [
  {
    name: "ullage_build_info",
    type: "gauge",
    help: "Always 1; which version of Ullage runs on which Node",
    labels: ["version", "node"],
    samples: () => [{ labels: { version: packageVersion, node: process.versions.node }, value: 1 }],
  },
  single(
    "ullage_start_time_seconds",
    "gauge",
    "When the process started, in seconds since 1970",
    () => performance.timeOrigin / 1000,
  ),
  single("ullage_cpu_seconds_total", "counter", "CPU time of all threads", (measured) => measured.process.cpuSeconds),
  single(
    "ullage_resident_bytes",
    "gauge",
    "Memory that the process has in RAM",
    (measured) => measured.process.residentBytes,
  ),
  single("ullage_heap_used_bytes", "gauge", "JavaScript heap in use", (measured) => measured.process.heapUsedBytes),
  {
    name: "ullage_event_loop_delay_seconds",
    type: "gauge",
    help: "How late timers ran in the last complete minute: p50, p99, max",
    labels: ["statistic"],
    samples: ({ recentDelay }) => [
      { labels: { statistic: "p50" }, value: recentDelay.p50Ms / 1000 },
      { labels: { statistic: "p99" }, value: recentDelay.p99Ms / 1000 },
      { labels: { statistic: "max" }, value: recentDelay.maxMs / 1000 },
    ],
  },
  {
    name: "ullage_health",
    type: "gauge",
    help: "Checks of /v1/health: 0 ok, 1 warn, 2 fail",
    labels: ["check"],
    samples: ({ checks }) =>
      checks.map(({ name, status }) => ({ labels: { check: name }, value: ["ok", "warn", "fail"].indexOf(status) })),
  },
  {
    name: "ullage_data_free_bytes",
    type: "gauge",
    help: "What can still be written to the file system of the data directory",
    labels: [],
    samples: ({ space }) => (space === undefined ? [] : [{ labels: {}, value: space.free }]),
  },
  {
    name: "ullage_data_size_bytes",
    type: "gauge",
    help: "Size of the file system of the data directory",
    labels: [],
    samples: ({ space }) => (space === undefined ? [] : [{ labels: {}, value: space.total }]),
  },
  single("ullage_reclaim_runs_total", "counter", "Looks for unused blocks of layers", ({ reclaim }) => reclaim.runs),
  single(
    "ullage_reclaim_failures_total",
    "counter",
    "Looks for unused blocks of layers that ended early",
    ({ reclaim }) => reclaim.failures,
  ),
  single(
    "ullage_reclaimed_bytes_total",
    "counter",
    "Bytes on disk that reclaim has freed inside layers",
    ({ reclaim }) => reclaim.bytes,
  ),
  single("ullage_cache_bytes", "gauge", "Bytes on disk that the cache takes", ({ cache }) => cache.diskBytes),
  single(
    "ullage_cache_capacity_bytes",
    "gauge",
    "Bytes on disk that the cache may take; +Inf: no limit of its own",
    ({ cache }) => cache.capacityBytes ?? Infinity,
  ),
  single(
    "ullage_cache_evicted_bytes_total",
    "counter",
    "Bytes on disk that were freed by throwing images, or parts of them, out of the cache",
    ({ cache }) => cache.evictedBytes,
  ),
  single("ullage_nbd_connections", "gauge", "Open NBD connections", ({ nbd }) => nbd.connections),
  single("ullage_nbd_accepted_total", "counter", "NBD connections that were taken", ({ nbd }) => nbd.accepted),
  single(
    "ullage_nbd_turned_away_total",
    "counter",
    "NBD connections that were turned away because there were too many",
    ({ nbd }) => nbd.turnedAway,
  ),
  single(
    "ullage_nbd_inflight_requests",
    "gauge",
    "NBD requests that wait for a disk, the source or a flush",
    ({ nbd }) => nbd.inflight,
  ),
  single("ullage_nbd_buffer_bytes", "gauge", "Memory in use for payloads of NBD", ({ nbd }) => nbd.bufferBytes),
];
