import { LatencyHistogram } from "../base/latency-histogram.ts";

/** What clients ask of a disk, whatever the protocol calls it. */
export const operations = ["read", "write", "flush", "trim", "zero", "cache"] as const;
export type Operation = (typeof operations)[number];

/** How many operations succeeded, how long they took, and how many bytes they were for. */
export class OperationTraffic {
  readonly latency = new LatencyHistogram();
  bytes = 0;

  /** @param ms of each @param bytes of all */
  count(ms: number, bytes: number, times = 1): void {
    this.latency.observe(ms, times);
    this.bytes += bytes;
  }
}

/**
 * What clients did with one export, since it was first used. Only counters: whoever wants rates looks twice. What failed,
 * or was refused before the device saw it, is in `errors` alone.
 */
export class ExportTraffic {
  readonly read = new OperationTraffic();
  readonly write = new OperationTraffic();
  readonly flush = new OperationTraffic();
  readonly trim = new OperationTraffic();
  readonly zero = new OperationTraffic();
  readonly cache = new OperationTraffic();
  /** Reads that were answered from what is on this host, and those that had to wait for the source. */
  localReads = 0;
  sourceReads = 0;
  /** Operation and symbolic errno -> how often; both come from short lists. */
  readonly errors = new Map<Operation | "other", Map<string, number>>();

  /** @param operation `other`: none of those that are timed */
  failed(operation: Operation | "other", errno: string): void {
    let byErrno = this.errors.get(operation);
    if (byErrno === undefined) this.errors.set(operation, (byErrno = new Map<string, number>()));
    byErrno.set(errno, (byErrno.get(errno) ?? 0) + 1);
  }
}
