import { SourceError } from "../base/errors.ts";

/**
 * The codes of sources' errors:
 *
 * | code                 | transient | what happened                                                                |
 * | -------------------- | --------- | ---------------------------------------------------------------------------- |
 * | source-unreachable   | yes       | no connection, or it broke                                                   |
 * | source-timeout       | yes       | no connection, no byte, or too few bytes in time                             |
 * | source-busy          | yes       | 408, 425, 429, 5xx                                                           |
 * | source-bad-answer    | yes       | the answer contradicts the request or itself                                 |
 * | source-io            | yes       | a local file cannot be read                                                  |
 * | source-changed       | no        | the pinned version is gone                                                   |
 * | source-not-found     | no        | 404, 410, no such file                                                       |
 * | source-denied        | no        | 401, 403, 407, no permission                                                 |
 * | source-no-ranges     | no        | a range was asked for, the whole object came                                 |
 * | source-no-size       | no        | nobody says how long the object is                                           |
 * | source-encoded       | no        | the bytes are compressed on the way                                          |
 * | source-redirect      | no        | redirects without end, or to where nobody should follow                      |
 * | source-status        | no        | any other status                                                             |
 * | source-tls           | no        | the certificate or the handshake is not acceptable                           |
 * | source-not-a-file    | no        | a directory, a pipe, …                                                       |
 * | source-invalid       | no        | the source as written is no path and no address                              |
 * | source-unsupported   | no        | its scheme is not one that this version reads                                |
 * | source-forbidden     | no        | the policy does not let it in (source-guard.ts)                              |
 * | source-credentials   | yes       | what the credentials refer to can't be read                                  |
 * | source-ambiguous     | no        | several blobs or platforms, any of which may be meant                        |
 * | source-wrong-bytes   | no        | the bytes do not have the digest that pins them                              |
 * | source-closed        | no        | the backend was closed meanwhile                                             |
 */

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
  return new SourceError("source-unreachable", message, {
    transient: true,
    hint: "check the address, and whether this host reaches it",
    cause,
  });
}

/** No byte for too long, or too few; bytes that came before are good. */
export function timedOut(message: string, about: { cause?: unknown; hint?: string } = {}): SourceError {
  return new SourceError("source-timeout", message, { transient: true, ...about });
}

export function backendClosed(): SourceError {
  return new SourceError("source-closed", "the source was closed while it was read", { transient: false });
}
