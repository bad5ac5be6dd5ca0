/**
 * What the engine tells of its work in the background, for metrics: once per round, checkpoint or snapshot, never per request.
 * Nothing depends on who listens.
 */
export interface EngineObserver {
  /** A flush round of the journal has ended; flushes that joined it were answered with it. */
  roundEnded(volumeId: string, ms: number, succeeded: boolean): void;
  /** A checkpoint was written, or could not be. */
  checkpointEnded(volumeId: string, ms: number, succeeded: boolean): void;
  /** The write gate is open again: for `ms` new writes have waited for a snapshot, or for a change of size. */
  gateOpened(volumeId: string, ms: number): void;
}
