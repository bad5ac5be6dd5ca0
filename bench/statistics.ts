import type { Measurement } from "./fio.ts";

export function median(values: readonly number[]): number {
  if (values.length === 0) throw new Error("the median of nothing");
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The smallest value that `share` of all do not exceed, e.g. 0.99. */
export function percentile(values: readonly number[], share: number): number {
  if (values.length === 0) throw new Error("a percentile of nothing");
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * share) - 1)];
}

/** Milliseconds that `work` takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

/** Medians over the rounds, and how far the rounds lay apart. */
export interface Summary extends Measurement {
  /** (most - least) / median of the throughput, e.g. 0.08 */
  spread: number;
}

export function summarize(rounds: readonly Measurement[]): Summary {
  const of = (key: keyof Measurement): number => median(rounds.map((round) => round[key]));
  const iops = rounds.map((round) => round.iops);
  return {
    iops: of("iops"),
    megabytesPerSecond: of("megabytesPerSecond"),
    p50: of("p50"),
    p99: of("p99"),
    cpuPerOperation: of("cpuPerOperation"),
    othersCpus: of("othersCpus"),
    spread: (Math.max(...iops) - Math.min(...iops)) / median(iops),
  };
}
