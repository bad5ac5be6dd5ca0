import { LatencyHistogram } from "../../base/latency-histogram.ts";
import { ExportTraffic } from "../../export/export-traffic.ts";
import type { EngineObserver } from "../../volume/engine-observer.ts";

/** How often something succeeded, how long that took, and how often it failed. */
export class WorkMeter {
  readonly latency = new LatencyHistogram();
  failures = 0;

  ended(ms: number, succeeded: boolean): void {
    if (succeeded) this.latency.observe(ms);
    else this.failures++;
  }
}

/** What is counted of one volume. */
export class VolumeMeter {
  /** Of the volume and of its snapshots. */
  readonly traffic = new ExportTraffic();
  readonly flushRounds = new WorkMeter();
  readonly checkpoints = new WorkMeter();
  /** How long new writes waited for snapshots and changes of size. */
  readonly gate = new LatencyHistogram();
  /** Bytes of it, or of its snapshots, that were read to be downloaded, and bytes other than zeros that it was made from. */
  exportedBytes = 0;
  importedBytes = 0;
}

/**
 * The counters of every volume that did something since the process started. They outlive closing and reopening, and a
 * new name; they go when their volume has gone.
 */
export class VolumeMeters implements EngineObserver {
  readonly #byId = new Map<string, VolumeMeter>();

  /** The meter of a volume, made when there is none. */
  of(volumeId: string): VolumeMeter {
    let meter = this.#byId.get(volumeId);
    if (meter === undefined) this.#byId.set(volumeId, (meter = new VolumeMeter()));
    return meter;
  }

  find(volumeId: string): VolumeMeter | undefined {
    return this.#byId.get(volumeId);
  }

  keepOnly(volumeIds: ReadonlySet<string>): void {
    for (const id of this.#byId.keys()) if (!volumeIds.has(id)) this.#byId.delete(id);
  }

  roundEnded(volumeId: string, ms: number, succeeded: boolean): void {
    this.of(volumeId).flushRounds.ended(ms, succeeded);
  }

  checkpointEnded(volumeId: string, ms: number, succeeded: boolean): void {
    this.of(volumeId).checkpoints.ended(ms, succeeded);
  }

  gateOpened(volumeId: string, ms: number): void {
    this.of(volumeId).gate.observe(ms);
  }
}
