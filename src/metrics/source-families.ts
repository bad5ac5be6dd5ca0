import type { LaneTraffic, SourceTraffic } from "../blob/source-traffic.ts";
import type { Measured } from "../daemon/health/measured.ts";
import { type Family, histogramSamples, type Sample } from "./family.ts";

const lanes = ["foreground", "background"] as const;

function perLane(
  { sources }: Measured,
  samples: (lane: LaneTraffic, labels: { host: string; lane: string }) => Sample[],
): Sample[] {
  return sources.flatMap((source) => lanes.flatMap((lane) => samples(source[lane], { host: source.host, lane })));
}

/** What was asked of the hosts that images come from. */
export const sourceFamilies: readonly Family[] = [
  {
    name: "ullage_source_requests_total",
    type: "counter",
    help: "Ranges asked of a source; foreground: somebody waits for them, background: hydration and readahead",
    labels: ["host", "lane"],
    samples: (measured) => perLane(measured, ({ requests }, labels) => [{ labels, value: requests }]),
  },
  {
    name: "ullage_source_bytes_total",
    type: "counter",
    help: "Bytes received from a source",
    labels: ["host", "lane"],
    samples: (measured) => perLane(measured, ({ bytes }, labels) => [{ labels, value: bytes }]),
  },
  {
    name: "ullage_source_fetch_duration_seconds",
    type: "histogram",
    help: "How long ranges took from the first attempt to the last byte in the cache; those that came",
    labels: ["host", "lane"],
    samples: (measured) =>
      perLane(measured, ({ latency }, labels) =>
        latency.count === 0 ? [] : histogramSamples("ullage_source_fetch_duration_seconds", labels, latency),
      ),
  },
  {
    name: "ullage_source_retries_total",
    type: "counter",
    help: "Attempts that failed and were made again",
    labels: ["host"],
    samples: ({ sources }) => sources.map(({ host, retries }) => ({ labels: { host }, value: retries })),
  },
  {
    name: "ullage_source_errors_total",
    type: "counter",
    help: "Ranges that could not be had, by the error's code",
    labels: ["host", "code"],
    samples: ({ sources }) => sources.flatMap(errorSamples),
  },
];

function errorSamples({ host, errors }: SourceTraffic): Sample[] {
  return [...errors].map(([code, value]) => ({ labels: { host, code }, value }));
}
