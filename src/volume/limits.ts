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
  /** Unsynced bytes of a layer at which a write-back is started, so that the kernel never throttles a writer. */
  writebackBytes: number;
  /** Beyond this many unsynced bytes writes go through the thread pool. */
  dirtyBytes: number;
  /** Punches up to this size run on the calling thread. */
  punchNowBytes: number;
}

export const defaultVolumeLimits: VolumeLimits = {
  logReserveBytes: 1024 * 1024,
  logExtendBytes: 1024 * 1024,
  checkpointLogBytes: 64 * 1024 * 1024,
  logHardFactor: 4,
  sliceChunks: 65536,
  writebackBytes: 256 * 1024 * 1024,
  dirtyBytes: 1024 * 1024 * 1024,
  punchNowBytes: 1024 * 1024,
};

/** Fails at load when a relation between limits is broken. */
export function checkVolumeLimits(limits: VolumeLimits): VolumeLimits {
  if (limits.logReserveBytes < 4096) throw new RangeError("logReserveBytes must be 4096 at least");
  if (limits.logExtendBytes < 4096) throw new RangeError("logExtendBytes must be 4096 at least");
  if (limits.logHardFactor < 2) throw new RangeError("logHardFactor must be 2 at least");
  if (limits.dirtyBytes < limits.writebackBytes) throw new RangeError("dirtyBytes must not be below writebackBytes");
  return limits;
}

checkVolumeLimits(defaultVolumeLimits);
