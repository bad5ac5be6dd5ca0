import { operations } from "../export/export-traffic.ts";
import type { Measured, MeasuredVolume } from "../daemon/health/measured.ts";
import { volumeViewStates, type VolumeView } from "../daemon/views.ts";
import type { VolumeMeter } from "../daemon/volumes/volume-meters.ts";
import { type Family, histogramSamples, type Sample, summarySamples } from "./family.ts";

/** A gauge with one value per volume; undefined: none for this one. */
function perVolume(name: string, help: string, value: (volume: MeasuredVolume) => number | undefined): Family {
  return {
    name,
    type: "gauge",
    help,
    labels: ["volume"],
    samples: ({ volumes }) =>
      volumes.flatMap((volume) => {
        const now = value(volume);
        return now === undefined ? [] : { labels: { volume: volume.view.name }, value: now };
      }),
  };
}

/** A gauge that is 1, with what it tells in the label `state`. */
function stateOf(name: string, help: string, state: (view: VolumeView) => string): Family {
  return {
    name,
    type: "gauge",
    help,
    labels: ["volume", "state"],
    samples: ({ volumes }) =>
      volumes.map(({ view }) => ({ labels: { volume: view.name, state: state(view) }, value: 1 })),
  };
}

/** What is made from a volume's counters, for every volume that has some. */
function* fromMeters(
  { volumes }: Measured,
  samples: (meter: VolumeMeter, volume: string) => Sample[],
): Generator<Sample> {
  for (const { view, meter } of volumes) if (meter !== undefined) yield* samples(meter, view.name);
}

/** What clients do with volumes. Counters begin at the first use of a volume since the process started. */
const trafficFamilies: readonly Family[] = [
  {
    name: "ullage_operation_duration_seconds",
    type: "histogram",
    help: "How long clients waited for operations that succeeded; several that were done at once are timed together",
    labels: ["volume", "operation"],
    samples: (measured) =>
      fromMeters(measured, ({ traffic }, volume) =>
        operations.flatMap((operation) =>
          traffic[operation].latency.count === 0
            ? []
            : histogramSamples("ullage_operation_duration_seconds", { volume, operation }, traffic[operation].latency),
        ),
      ),
  },
  {
    name: "ullage_operation_bytes_total",
    type: "counter",
    help: "Bytes that operations of clients which succeeded were for",
    labels: ["volume", "operation"],
    samples: (measured) =>
      fromMeters(measured, ({ traffic }, volume) =>
        operations.flatMap((operation) =>
          operation === "flush" || traffic[operation].latency.count === 0
            ? []
            : { labels: { volume, operation }, value: traffic[operation].bytes },
        ),
      ),
  },
  {
    name: "ullage_operation_errors_total",
    type: "counter",
    help: "Operations of clients that failed or were refused, by symbolic errno",
    labels: ["volume", "operation", "errno"],
    samples: (measured) =>
      fromMeters(measured, ({ traffic }, volume) =>
        [...traffic.errors].flatMap(([operation, byErrno]) =>
          [...byErrno].map(([errno, value]) => ({ labels: { volume, operation, errno }, value })),
        ),
      ),
  },
  {
    name: "ullage_cache_reads_total",
    type: "counter",
    help: "Reads of clients: hit, answered from this host; miss, had to wait for the source",
    labels: ["volume", "result"],
    samples: (measured) =>
      fromMeters(measured, ({ traffic }, volume) => [
        { labels: { volume, result: "hit" }, value: traffic.localReads },
        { labels: { volume, result: "miss" }, value: traffic.sourceReads },
      ]),
  },
  {
    name: "ullage_transfer_bytes_total",
    type: "counter",
    help: "Bytes that went through the API: export, read to be downloaded; import, other than zeros, uploaded",
    labels: ["volume", "direction"],
    samples: (measured) =>
      fromMeters(measured, ({ exportedBytes, importedBytes }, volume) => [
        ...(exportedBytes === 0 ? [] : [{ labels: { volume, direction: "export" }, value: exportedBytes }]),
        ...(importedBytes === 0 ? [] : [{ labels: { volume, direction: "import" }, value: importedBytes }]),
      ]),
  },
  {
    name: "ullage_flush_round_duration_seconds",
    type: "summary",
    help: "How long rounds of the journal took: sync of the data, commit record, sync of the log",
    labels: ["volume"],
    samples: (measured) =>
      fromMeters(measured, ({ flushRounds: { latency } }, volume) =>
        summarySamples("ullage_flush_round_duration_seconds", { volume }, latency),
      ),
  },
  {
    name: "ullage_flush_round_failures_total",
    type: "counter",
    help: "Rounds of the journal that failed: the disk was full, or the volume is poisoned",
    labels: ["volume"],
    samples: (measured) =>
      fromMeters(measured, ({ flushRounds }, volume) => [{ labels: { volume }, value: flushRounds.failures }]),
  },
  {
    name: "ullage_checkpoint_duration_seconds",
    type: "summary",
    help: "How long checkpoints took; no client waits for them",
    labels: ["volume"],
    samples: (measured) =>
      fromMeters(measured, ({ checkpoints: { latency } }, volume) =>
        summarySamples("ullage_checkpoint_duration_seconds", { volume }, latency),
      ),
  },
  {
    name: "ullage_checkpoint_failures_total",
    type: "counter",
    help: "Checkpoints that could not be written; the log grows meanwhile",
    labels: ["volume"],
    samples: (measured) =>
      fromMeters(measured, ({ checkpoints }, volume) => [{ labels: { volume }, value: checkpoints.failures }]),
  },
  {
    name: "ullage_snapshot_gate_seconds",
    type: "histogram",
    help: "How long new writes waited while a snapshot was taken or the size changed: for those under way to end",
    labels: ["volume"],
    samples: (measured) =>
      fromMeters(measured, ({ gate }, volume) =>
        gate.count === 0 ? [] : histogramSamples("ullage_snapshot_gate_seconds", { volume }, gate),
      ),
  },
];

/** How volumes stand. */
const stateFamilies: readonly Family[] = [
  {
    name: "ullage_volumes",
    type: "gauge",
    help: "How many volumes there are in each state",
    labels: ["state"],
    samples: ({ volumes }) =>
      volumeViewStates.map((state) => ({
        labels: { state },
        value: volumes.filter(({ view }) => view.state === state).length,
      })),
  },
  stateOf("ullage_volume_state", "Always 1; the label tells the volume's state", ({ state }) => state),
  perVolume("ullage_volume_size_bytes", "Size of the disk", ({ view }) => view.size),
  perVolume(
    "ullage_volume_written_bytes",
    "Bytes in blocks that were written here or in what it was cloned from",
    ({ view }) => view.writtenBytes,
  ),
  perVolume("ullage_volume_fetched_bytes", "Bytes of its image in the local cache", ({ view }) => view.fetchedBytes),
  perVolume("ullage_volume_snapshots", "Snapshots of the volume", ({ snapshots }) => snapshots),
  perVolume("ullage_volume_connections", "Open connections", ({ view }) => view.connections),
  perVolume(
    "ullage_volume_log_bytes",
    "Records of the intent log that no checkpoint has replaced yet; of open volumes",
    ({ info }) => info?.logBytes,
  ),
  perVolume("ullage_volume_map_bytes", "Size of the newest checkpoint; of open volumes", ({ info }) => info?.mapBytes),
  stateOf(
    "ullage_hydration_state",
    "Always 1; the label tells how far the volume is from being independent of its source",
    ({ hydration }) => hydration.state,
  ),
  perVolume("ullage_hydration_ready_bytes", "Bytes that the volume needs of its image and has", ({ view }) =>
    view.source === null ? undefined : view.hydration.readyBytes,
  ),
  perVolume("ullage_hydration_total_bytes", "Bytes that the volume needs of its image", ({ view }) =>
    view.source === null ? undefined : view.hydration.totalBytes,
  ),
  perVolume(
    "ullage_hydration_damaged_bytes",
    "Bytes that the volume needs of its image and that can't be had though the source answers",
    ({ view }) => (view.source === null ? undefined : view.hydration.damagedBytes),
  ),
];

export const volumeFamilies: readonly Family[] = [...stateFamilies, ...trafficFamilies];
