import { withoutSecrets } from "./without-secrets.ts";

/**
 * Every error that Ullage raises on purpose. `code` is stable (scripts and the API match on it), the message is lower
 * case and carries the values, `hint` says what to do next, `cause` chains what was underneath. Errors are shown and
 * logged: what is secret in an address is left out of them, wherever they come from.
 */
export class UllageError extends Error {
  readonly code: string;
  /** What the user can do next, as a sentence without a full stop; shown behind the message. */
  readonly hint: string | undefined;

  constructor(code: string, message: string, options: { hint?: string; cause?: unknown } = {}) {
    super(withoutSecrets(message), options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.hint = options.hint === undefined ? undefined : withoutSecrets(options.hint);
  }
}

/** A system call on one of our own files failed. `errno` is the symbolic name: `EIO`, `ENOSPC`, `EROFS`, … */
export class IoError extends UllageError {
  readonly errno: string;

  constructor(errno: string, message: string, cause?: unknown, hint?: string) {
    super(`io-${errno.toLowerCase()}`, message, hint === undefined ? { cause } : { cause, hint });
    this.errno = errno;
  }
}

/** Bytes on disk are not what was written: a checksum, a length or a reference is wrong. Never repaired silently. */
export class CorruptionError extends UllageError {
  constructor(message: string, hint = "run `ullage check DATA` to see the damage, then `ullage repair DATA`") {
    super("corrupt", message, { hint });
  }
}

/** A remote source failed: unreachable, wrong answer, changed. Answers EIO to the request that needed it, no more. */
export class SourceError extends UllageError {
  /** True when the same request may succeed later (time-out, 5xx, reset); false when it never will (404, changed). */
  readonly transient: boolean;

  constructor(code: string, message: string, options: { transient: boolean; hint?: string; cause?: unknown }) {
    super(code, message, options);
    this.transient = options.transient;
  }
}

/** The symbolic errno behind an error, for protocols that answer with one; anything unknown is `EIO`. */
export function errnoOf(error: unknown): string {
  if (error instanceof IoError) return error.errno;
  return "EIO";
}

/** The message of anything thrown, with the chain of causes: `a: b: c`; what a message says its cause does not repeat. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return withoutSecrets(String(error));
  const message = withoutSecrets(error.message);
  if (error.cause === undefined) return message;
  const why = withoutPath(describeError(error.cause), error.cause, message);
  const code = /: (E[A-Z0-9]+)$/.exec(message)?.[1];
  return `${message}: ${code !== undefined && why.startsWith(`${code}: `) ? why.slice(code.length + 2) : why}`;
}

/** `ENOENT: no such file or directory, open '/x'` without the call, below a message that names the file. */
function withoutPath(why: string, cause: unknown, message: string): string {
  const { path, syscall } = cause as NodeJS.ErrnoException;
  return path !== undefined && message.includes(path) ? why.replace(`, ${syscall} '${path}'`, "") : why;
}
