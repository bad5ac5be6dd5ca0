/** fio's nbd engine: one job against one server. */
import { cpuMicros, machineCpuMicros, run } from "./process.ts";
import type { DiskServer } from "./peers.ts";

export interface Workload {
  name: string;
  rw: "randread" | "randwrite" | "randrw" | "read" | "write";
  blockBytes: number;
  queueDepth: number;
  /** A flush behind every write. */
  flush?: boolean;
}

export interface Measurement {
  iops: number;
  /** MB/s, powers of ten */
  megabytesPerSecond: number;
  /** of a request; with `flush`, of the write and its flush together; µs */
  p50: number;
  p99: number;
  /** of the server, all its threads, µs; for a flush workload per write with its flush */
  cpuPerOperation: number;
  /** CPUs that neither server nor fio used meanwhile, e.g. 0.3: how much else went on on the machine */
  othersCpus: number;
}

interface FioDirection {
  iops: number;
  bw_bytes: number;
  total_ios: number;
  lat_ns: { percentile?: Record<string, number> };
}

interface FioJob {
  read: FioDirection;
  write: FioDirection;
  /** percent of one CPU */
  usr_cpu: number;
  sys_cpu: number;
  job_runtime: number;
  sync: { lat_ns: { percentile?: Record<string, number> } };
}

/** @param seed differs per round, so that no round repeats another's order */
export async function fio(
  server: Pick<DiskServer, "uri" | "pid">,
  workload: Workload,
  seconds: number,
  seed: number,
): Promise<Measurement> {
  const args = [
    "--name=bench",
    "--ioengine=nbd",
    `--uri=${server.uri}`,
    `--rw=${workload.rw}`,
    `--bs=${workload.blockBytes}`,
    `--iodepth=${workload.queueDepth}`,
    ...(workload.flush === true ? ["--fsync=1"] : []),
    "--time_based",
    `--runtime=${seconds}`,
    "--randrepeat=0",
    `--randseed=${seed}`,
    // From submission to completion: fio's own default, clat, leaves out the submission, in which libnbd does much of the work.
    "--clat_percentiles=0",
    "--lat_percentiles=1",
    "--percentile_list=50:99",
    "--output-format=json",
  ];
  const [cpuBefore, machineBefore] = [await cpuMicros(server.pid), await machineCpuMicros()];
  const start = performance.now();
  const output = await run("fio", args, (seconds + 60) * 1000);
  const elapsed = (performance.now() - start) * 1000;
  const [cpu, machine] = [(await cpuMicros(server.pid)) - cpuBefore, (await machineCpuMicros()) - machineBefore];
  const { jobs } = JSON.parse(output.slice(output.indexOf("{"))) as { jobs: FioJob[] };
  const { read, write, sync, usr_cpu: user, sys_cpu: system, job_runtime: runtimeMs } = jobs[0];
  const fioCpu = ((user + system) / 100) * runtimeMs * 1000;
  const operations = read.total_ios + write.total_ios;
  const flushes = workload.flush === true ? [sync.lat_ns] : [];
  // Of a mix the slower direction counts; a write and its flush follow each other, so their times add up.
  const percentile = (which: string): number => {
    const of = (side: { percentile?: Record<string, number> }): number => (side.percentile?.[which] ?? 0) / 1000;
    return Math.max(of(read.lat_ns), of(write.lat_ns)) + flushes.reduce((sum, side) => sum + of(side), 0);
  };
  return {
    iops: read.iops + write.iops,
    megabytesPerSecond: (read.bw_bytes + write.bw_bytes) / 1e6,
    p50: percentile("50.000000"),
    p99: percentile("99.000000"),
    cpuPerOperation: cpu / operations,
    othersCpus: Math.max(0, (machine - cpu - fioCpu) / elapsed),
  };
}
