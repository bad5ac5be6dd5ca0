import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { SourceError } from "../base/errors.ts";
import { parseTarget } from "./http/http-target.ts";
import { isNbd, parseNbdSource } from "./nbd/nbd-address.ts";
import { canonicalStoreSource } from "./object-store/object-store.ts";
import { canonicalRegistrySource } from "./registry/registry.ts";

/**
 * The one form in which a source is stored, compared and shown: an absolute path, or an address without credentials.
 * @throws SourceError with code `source-unsupported` or `source-invalid`
 */
export function canonicalSource(source: string): string {
  const scheme = schemeOf(source);
  if (scheme === undefined || scheme === "file") return localPath(source);
  if (scheme === "s3" || scheme === "oss") return canonicalStoreSource(source, scheme);
  if (scheme === "oci") return canonicalRegistrySource(source);
  if (scheme === "http" || scheme === "https") return parseTarget(source).url.href;
  if (isNbd(scheme)) return parseNbdSource(source).url;
  throw new SourceError(
    "source-unsupported",
    `this version reads files, http(s), s3, oss, oci and nbd(s), not ${scheme}://`,
    {
      transient: false,
      hint: "`ullage help sources` lists what a source can be",
    },
  );
}

/** `http` of `http://…`; undefined for a path. */
export function schemeOf(source: string): string | undefined {
  return /^([a-z][a-z0-9+.-]*):\/\//i.exec(source)?.[1]?.toLowerCase();
}

/** Whether a source can be asked for its holes: an NBD export, a file of this host. @param url in its canonical form */
export function tellsHoles(url: string): boolean {
  const scheme = schemeOf(url);
  return scheme === undefined || isNbd(scheme);
}

function localPath(source: string): string {
  if (source === "" || source.includes("\0")) {
    throw invalid("the source is empty or holds a NUL", "name a file, or an address");
  }
  if (schemeOf(source) === undefined) {
    const [, scheme] = /^(file|https?|s3|oss|oci|nbds?(?:\+unix)?):/i.exec(source) ?? [];
    if (scheme === undefined) return resolve(source);
    throw invalid(
      `${source} is neither an address nor a path`,
      `write ${scheme}://…; a file of that name as ./${source}`,
    );
  }
  try {
    return fileURLToPath(source);
  } catch (cause) {
    throw invalid(`${source} names no file on this machine`, "write it as file:///path or /path", cause);
  }
}

function invalid(message: string, hint: string, cause?: unknown): SourceError {
  return new SourceError("source-invalid", message, { transient: false, hint, cause });
}
