import type { Measurement } from "./fio.ts";

export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error("the median of nothing");
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Each figure's own median over the rounds. */
export function medianMeasurement(rounds: readonly Measurement[]): Measurement {
  const of = (key: keyof Measurement): number => median(rounds.map((round) => round[key]));
  return {
    iops: of("iops"),
    megabytesPerSecond: of("megabytesPerSecond"),
    p50: of("p50"),
    p99: of("p99"),
    cpuPerOperation: of("cpuPerOperation"),
  };
}
