import { type LatencyHistogram, latencyBounds } from "../base/latency-histogram.ts";
import type { Measured } from "../daemon/health/measured.ts";

/** One line of a metric, in the shape that prom-client writes. */
export interface Sample {
  labels: Record<string, string | number>;
  /** Labels that several samples have in common: written only once. */
  sharedLabels?: Record<string, string>;
  /** Default: the family's name. */
  metricName?: string;
  value: number;
}

/**
 * A metric with all its label values. Its samples are made from what was measured when somebody asks; nothing is kept
 * here. Every family has its row in docs/METRICS.md.
 */
export interface Family {
  /** `ullage_…`, with the unit; counters end in `_total` */
  name: string;
  type: "counter" | "gauge" | "histogram" | "summary";
  help: string;
  labels: readonly string[];
  /** Made one after the other as they are written, because there may be very many. */
  samples(measured: Measured): Iterable<Sample>;
}

/** A family with one value and no labels. */
export function single(
  name: string,
  type: "counter" | "gauge",
  help: string,
  value: (measured: Measured) => number,
): Family {
  return { name, type, help, labels: [], samples: (measured) => [{ labels: {}, value: value(measured) }] };
}

/** The samples of a histogram, in seconds. */
export function histogramSamples(
  name: string,
  sharedLabels: Record<string, string>,
  { counts, count, sumMs }: LatencyHistogram,
): Sample[] {
  let below = 0;
  const buckets = latencyBounds.map((le, index) => {
    below += counts[index];
    return { metricName: `${name}_bucket`, sharedLabels, labels: { le }, value: below };
  });
  return [
    ...buckets,
    { metricName: `${name}_bucket`, sharedLabels, labels: { le: "+Inf" }, value: count },
    ...summarySamples(name, sharedLabels, { count, sumMs }),
  ];
}

/** Sum and count alone: what there are too many of for buckets. */
export function summarySamples(
  name: string,
  sharedLabels: Record<string, string>,
  { count, sumMs }: Pick<LatencyHistogram, "count" | "sumMs">,
): Sample[] {
  return [
    { metricName: `${name}_sum`, sharedLabels, labels: {}, value: sumMs / 1000 },
    { metricName: `${name}_count`, sharedLabels, labels: {}, value: count },
  ];
}
