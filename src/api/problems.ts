import { STATUS_CODES } from "node:http";
import { CorruptionError, IoError, SourceError, UllageError, describeError } from "../base/errors.ts";

/** A problem document (RFC 9457), with the error's stable code and what to do next. */
export interface Problem {
  type: "about:blank";
  title: string;
  status: number;
  detail: string;
  code: string;
  hint?: string;
}

export const problemContentType = "application/problem+json";

/** Errors that say what was wrong with the request, or why it can't be done now. docs/API.md has all codes. */
const statusOf: Record<string, number> = {
  "bad-request": 400,
  "bad-name": 400,
  "bad-size": 400,
  "bad-cursor": 400,
  "transfer-cut": 400,
  "transfer-damaged": 400,
  "bad-trace": 400,
  "source-forbidden": 403,
  "no-token": 401,
  "bad-token": 401,
  "expired-token": 401,
  forbidden: 403,
  "foreign-origin": 403,
  "not-found": 404,
  "too-slow-request": 408,
  "name-taken": 409,
  "own-name": 409,
  "export-limit": 409,
  "in-use": 409,
  creating: 409,
  "has-snapshots": 409,
  "base-missing": 409,
  shrinks: 409,
  "not-empty": 409,
  "not-ok": 409,
  poisoned: 409,
  "no-source": 409,
  "not-cached": 409,
  "cache-elsewhere": 409,
  "not-supported": 409,
  "loss-not-accepted": 409,
  "token-limit": 409,
  "secret-told": 409,
  "cut-off": 409,
  "no-such-range": 416,
  "wrong-host": 421,
  "request-key-reused": 422,
  "too-large": 422,
  "rate-limited": 429,
  "catalog-read-only": 503,
  "catalog-busy": 503,
  "reclaim-busy": 503,
  "catalog-closed": 503,
  stopping: 503,
  "volume-closed": 503,
  "too-many-jobs": 503,
  "too-many-streams": 503,
};

export function problemOf(error: unknown): Problem {
  if (error instanceof UllageError) return problem(statusFor(error), error.code, describeError(error), error.hint);
  const { statusCode, code = "", message } = error as Error & { statusCode?: number; code?: string };
  if (statusCode === undefined || statusCode >= 500)
    return problem(500, "internal", describeError(error), "this is a defect of Ullage: please report it with the log");
  return frameworkProblem(statusCode, code, message);
}

/** What the HTTP framework refuses by itself. Its messages are sentences. */
function frameworkProblem(status: number, code: string, message: string): Problem {
  const detail = `${message[0]?.toLowerCase() ?? ""}${message.slice(1)}`;
  if (status === 413) return problem(413, "too-large-request", "the body is too long", "/docs says what belongs in it");
  if (status === 414) return problem(414, "too-long-path", "a part of the path is too long", "no name is that long");
  if (status === 415) {
    const hint = "send JSON, with the header `Content-Type: application/json`";
    return problem(415, "not-json", "the body is no JSON", hint);
  }
  if (code === "FST_ERR_BAD_URL") {
    return problem(400, "bad-request", detail, "write '%' as %25, and other characters as %XX of their UTF-8 bytes");
  }
  if (code === "FST_ERR_VALIDATION") return problem(400, "bad-request", message, "/docs says what it takes");
  return problem(status, "bad-request", detail, "send JSON as /docs describes it");
}

function statusFor(error: UllageError): number {
  const status = statusOf[error.code];
  if (status !== undefined) return status;
  if (error instanceof SourceError) return error.transient ? 504 : 422;
  if (error instanceof IoError) return error.errno === "ENOSPC" || error.errno === "EDQUOT" ? 507 : 500;
  if (error instanceof CorruptionError) return 500;
  return 422;
}

export function problem(status: number, code: string, detail: string, hint?: string): Problem {
  return {
    type: "about:blank",
    title: STATUS_CODES[status] ?? "Error",
    status,
    detail,
    code,
    ...(hint === undefined ? {} : { hint }),
  };
}
