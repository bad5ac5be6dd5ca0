import { totalmem } from "node:os";

/** The engine's bounds. Injected, so that the crash model meets them within a few operations. */
export interface VolumeLimits {
  /** Zeros kept written ahead of the log's tail: commits, trims and zeroing need no new space (durability rule 22). */
  logReserveBytes: number;
  /** How much more is written ahead each time the tail comes near the reserve. */
  logExtendBytes: number;
  /** A checkpoint is made when the log is larger than this and larger than the map. */
  checkpointLogBytes: number;
  /** At this multiple of the above, requests that change the map wait for the checkpoint. */
  logHardFactor: number;
  /** Chunks per slice of a trim, and of everything else that walks a map. */
  sliceChunks: number;
  /** Unsynced bytes of a head at which a flush is started; at twice that, writes go through the thread pool. */
  dirtyBytes: number;
  /** A write into the page cache that took longer than this sends the next ones to the thread pool. */
  slowWriteMs: number;
}

const defaultVolumeLimits: VolumeLimits = {
  logReserveBytes: 1024 * 1024,
  logExtendBytes: 1024 * 1024,
  checkpointLogBytes: 64 * 1024 * 1024,
  logHardFactor: 4,
  sliceChunks: 65536,
  // Well below the kernel's own limit (20 % of memory), at which it puts writers to sleep.
  dirtyBytes: Math.min(4 * 1024 ** 3, Math.max(64 * 1024 ** 2, Math.floor(totalmem() / 16))),
  slowWriteMs: 2,
};

/** The defaults with some replaced; fails when a relation between them is broken. */
export function volumeLimits(changes: Partial<VolumeLimits> = {}): VolumeLimits {
  const limits = { ...defaultVolumeLimits, ...changes };
  if (limits.logReserveBytes < 4096) throw new RangeError("logReserveBytes must be 4096 at least");
  if (limits.logExtendBytes < 4096) throw new RangeError("logExtendBytes must be 4096 at least");
  if (limits.logHardFactor < 2) throw new RangeError("logHardFactor must be 2 at least");
  return limits;
}
