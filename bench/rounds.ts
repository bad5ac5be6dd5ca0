import { type Measurement, type Workload, fio } from "./fio.ts";
import { settle } from "./files.ts";
import type { Context } from "./context.ts";
import type { DiskServer } from "./peers.ts";
import { atLeast, atMost, short, type Target } from "./report.ts";
import { type Summary, summarize } from "./statistics.ts";

/** Medians per server name, in the servers' order. */
export type Medians = Map<string, Summary>;

/**
 * Interleaved rounds of one workload: in every round each server has its turn, and every round begins with another
 * server, so that what the machine does meanwhile meets them all.
 * @param before runs ahead of each turn, outside the measurement
 */
export async function interleave(
  context: Context,
  workload: Workload,
  servers: readonly DiskServer[],
  before: (server: DiskServer) => Promise<void> = settle,
): Promise<Medians> {
  const measured = new Map<string, Measurement[]>(servers.map((server) => [server.name, []]));
  for (let round = 0; round < context.rounds; round++) {
    for (let turn = 0; turn < servers.length; turn++) {
      const server = servers[(round + turn) % servers.length];
      await before(server);
      const result = await fio(server, workload, context.seconds, round + 1);
      measured.get(server.name)!.push(result);
      context.log(`${workload.name}, round ${round + 1}, ${server.name}: ${describe(workload, result)}`);
    }
  }
  return new Map([...measured].map(([name, results]) => [name, summarize(results)]));
}

export const measurementColumns = [
  "workload",
  "server",
  "IOPS or MB/s",
  "spread",
  "p50 µs",
  "p99 µs",
  "server CPU µs/op",
  "others' CPUs",
  "Ullage ÷ it",
];

/** Ullage's row first, then one per peer. */
export function measurementRows(workload: Workload, medians: Medians, ours: string): string[][] {
  const own = medians.get(ours);
  return [...medians].map(([name, result]) => {
    const ratio = own === undefined || name === ours ? "" : `${(own.iops / result.iops).toFixed(2)} x`;
    const times = [short(result.p50), short(result.p99), short(result.cpuPerOperation)];
    const spread = `${Math.round(result.spread * 100)} %`;
    return [workload.name, name, describe(workload, result), spread, ...times, result.othersCpus.toFixed(2), ratio];
  });
}

/** Compares the throughput of two servers; nothing when one of them was not measured. */
export function throughputTarget(what: string, medians: Medians, ours: string, peer: string, least: number): Target[] {
  const [own, other] = [medians.get(ours), medians.get(peer)];
  if (own === undefined || other === undefined) return [];
  return [atLeast(`${what}, beside ${peer}`, own.iops / other.iops, least)];
}

/** Compares p50. */
export function latencyTarget(what: string, medians: Medians, ours: string, peer: string, most: number): Target[] {
  const [own, other] = [medians.get(ours), medians.get(peer)];
  if (own === undefined || other === undefined) return [];
  return [atMost(`${what}, p50 beside ${peer}`, own.p50 / other.p50, most, "x")];
}

function describe(workload: Workload, result: Measurement): string {
  return workload.blockBytes >= 2 ** 20 ? `${short(result.megabytesPerSecond)} MB/s` : short(result.iops);
}
