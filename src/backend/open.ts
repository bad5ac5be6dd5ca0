import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { Clock } from "../base/clock.ts";
import { systemClock } from "../base/clock.ts";
import { SourceError } from "../base/errors.ts";
import type { Backend } from "./backend.ts";
import { HttpBackend, type HttpOptions } from "./http.ts";
import { parseTarget } from "./http-target.ts";
import { LocalFileBackend } from "./localfs.ts";
import { RetryBackend, type RetryOptions } from "./retry.ts";
import type { SourcePolicy } from "./source-guard.ts";

export interface OpenBackendOptions {
  clock?: Clock;
  /** Uniform in [0, 1): spreads retries. */
  random?: () => number;
  http?: HttpOptions;
  retry?: RetryOptions;
  /** What may be read, now and with every request to come; absent: anything. */
  policy?: SourcePolicy;
}

/**
 * The backend for a source as a user writes it: a path, `file://…`, `http://…` or `https://…`. Touches nothing yet.
 * @throws SourceError with code `source-unsupported` or `source-invalid`
 */
export function openBackend(source: string, options: OpenBackendOptions = {}): Backend {
  const { clock = systemClock, random = Math.random, policy } = options;
  if (schemeOf(source) === undefined || schemeOf(source) === "file") {
    return new LocalFileBackend(localPath(source), policy);
  }
  demandHttp(source);
  const http = new HttpBackend(source, { ...options.http, ...(policy === undefined ? {} : { policy }) });
  return new RetryBackend(http, { clock, random, ...options.retry });
}

/**
 * The one form in which a source is stored, compared and shown: an absolute path, or an address without credentials.
 * @throws SourceError with code `source-unsupported` or `source-invalid`
 */
export function canonicalSource(source: string): string {
  if (schemeOf(source) === undefined || schemeOf(source) === "file") return localPath(source);
  demandHttp(source);
  return parseTarget(source).url.href;
}

/** `http` of `http://…`; undefined for a path. */
function schemeOf(source: string): string | undefined {
  return /^([a-z][a-z0-9+.-]*):\/\//i.exec(source)?.[1]?.toLowerCase();
}

function localPath(source: string): string {
  if (source === "" || source.includes("\0")) {
    throw invalid("the source is empty or holds a NUL", "name a file, or an http(s) address");
  }
  if (schemeOf(source) === undefined) return resolve(source);
  try {
    return fileURLToPath(source);
  } catch (cause) {
    throw invalid(`${source} names no file on this machine`, "write it as file:///path or /path", cause);
  }
}

function demandHttp(source: string): void {
  const scheme = schemeOf(source);
  if (scheme === "http" || scheme === "https") return;
  throw new SourceError("source-unsupported", `this version reads files and http(s), not ${scheme}://`, {
    transient: false,
    hint: "name a path, or an address that begins with http:// or https://",
  });
}

function invalid(message: string, hint: string, cause?: unknown): SourceError {
  return new SourceError("source-invalid", message, { transient: false, hint, cause });
}
