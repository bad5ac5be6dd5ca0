import { SourceError } from "../base/errors.ts";

/** 408, 425, 429 or 5xx: the source is there, but not now. */
export class SourceBusyError extends SourceError {
  /** What its Retry-After asked for; undefined when it did not say. */
  readonly retryAfterMs: number | undefined;

  constructor(message: string, retryAfterMs: number | undefined) {
    super("source-busy", message, { transient: true });
    this.retryAfterMs = retryAfterMs;
  }
}

/** The pinned object is gone for good, whatever is there now. */
export function sourceChanged(message: string): SourceError {
  return new SourceError("source-changed", message, {
    transient: false,
    hint: "bytes of two versions are never mixed: restore the old one, or create a new volume from the new one",
  });
}

/** The answer contradicts the request or itself. Bytes that came with it are not believed, not even as a beginning. */
export function badAnswer(message: string, cause?: unknown): SourceError {
  return new SourceError("source-bad-answer", message, { transient: true, cause });
}

/** The connection could not be made, or broke; bytes that came before are good. */
export function unreachable(message: string, cause?: unknown): SourceError {
  return new SourceError("source-unreachable", message, { transient: true, cause });
}

/** No byte for too long, or too few; bytes that came before are good. */
export function timedOut(message: string, cause?: unknown): SourceError {
  return new SourceError("source-timeout", message, { transient: true, cause });
}

export function backendClosed(where: string): SourceError {
  return new SourceError("source-closed", `${where} was closed`, { transient: false });
}
