import { operations, type ExportTraffic } from "../../export/export-traffic.ts";

/** What clients did with a volume and its snapshots since the process started. Only counters: whoever wants rates looks twice. */
export interface VolumeTraffic {
  /** of the volume */
  name: string;
  /** how many of each succeeded; `requests` is all operations together */
  reads: number;
  writes: number;
  flushes: number;
  requests: number;
  /** bytes */
  readBytes: number;
  writtenBytes: number;
}

export function volumeTraffic(name: string, traffic: ExportTraffic): VolumeTraffic {
  return {
    name,
    reads: traffic.read.latency.count,
    writes: traffic.write.latency.count,
    flushes: traffic.flush.latency.count,
    requests: operations.reduce((sum, operation) => sum + traffic[operation].latency.count, 0),
    readBytes: traffic.read.bytes,
    writtenBytes: traffic.write.bytes,
  };
}
