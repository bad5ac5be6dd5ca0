/**
 * What the engine tells of its work in the background, for metrics: once per round or checkpoint, never per request.
 * Nothing depends on who listens.
 */
export interface EngineObserver {
  /** A flush round of the journal has ended; flushes that joined it were answered with it. */
  roundEnded(volumeId: string, ms: number, succeeded: boolean): void;
  /** A checkpoint was written, or could not be. */
  checkpointEnded(volumeId: string, ms: number, succeeded: boolean): void;
}
