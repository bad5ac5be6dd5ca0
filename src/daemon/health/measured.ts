import type { SourceTraffic } from "../../blob/source-traffic.ts";
import type { VolumeInfo } from "../../volume/types.ts";
import type { Delay } from "./event-loop-delay.ts";
import type { HealthCheck } from "./health.ts";
import type { NbdFigures } from "../exports/nbd-listeners.ts";
import type { ReclaimFigures } from "../snapshots/reclaimer.ts";
import type { CacheView, VolumeView } from "../views.ts";
import type { VolumeMeter } from "../volumes/volume-meters.ts";

/** What metrics are made from: counters since the start of the process, and how things stand. */
export interface Measured {
  process: ProcessFigures;
  /** of the last complete minute; before there was one, since the start */
  recentDelay: Delay;
  checks: HealthCheck[];
  /** of the data directory's file system; undefined: it does not answer */
  space: { free: number; total: number } | undefined;
  nbd: NbdFigures;
  /** by host */
  sources: SourceTraffic[];
  volumes: MeasuredVolume[];
  reclaim: ReclaimFigures;
  cache: CacheView;
}

export interface ProcessFigures {
  /** of all threads */
  cpuSeconds: number;
  residentBytes: number;
  heapUsedBytes: number;
}

export function processFigures(): ProcessFigures {
  const { user, system } = process.cpuUsage();
  const { rss, heapUsed } = process.memoryUsage();
  return { cpuSeconds: (user + system) / 1e6, residentBytes: rss, heapUsedBytes: heapUsed };
}

export interface MeasuredVolume {
  view: VolumeView;
  /** how many it has */
  snapshots: number;
  /** undefined: it is not open */
  info: VolumeInfo | undefined;
  /** undefined: nothing was done with it yet */
  meter: VolumeMeter | undefined;
}
