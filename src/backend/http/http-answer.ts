import { SourceError } from "../../base/errors.ts";
import type { Identity } from "../backend.ts";
import { SourceBusyError, badAnswer, sourceChanged } from "../source-errors.ts";

/** Names are lower case; a header that came twice is an array. */
export type Headers = Record<string, string | string[] | undefined>;

export interface ResponseHead {
  status: number;
  headers: Headers;
}

/**
 * Last-Modified has a resolution of one second: a file that changed again within the second of its first change keeps
 * its date. A date counts only when the server's own clock was this far past it (RFC 9110 section 8.8.2.2).
 */
const lastModifiedSettleMs = 2000;

/** One value of a header, undefined when it is missing. Sent twice with different values, it means nothing: undefined. */
export function header(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  if (!Array.isArray(value)) return value;
  return value.every((one) => one === value[0]) ? value[0] : undefined;
}

/** Content-Range (RFC 9110 section 14.4): `bytes 0-99/1234`, `bytes 0-99/*`, or, with 416, an asterisk for the range. */
export interface ContentRange {
  /** -1 when there is no range */
  first: number;
  /** inclusive; -1 when there is no range */
  last: number;
  /** undefined: `*` */
  total: number | undefined;
}

export function parseContentRange(value: string | undefined): ContentRange | undefined {
  const match = /^bytes (?:(\d{1,16})-(\d{1,16})|\*)\/(?:(\d{1,16})|\*)$/i.exec(value ?? "");
  if (match === null) return undefined;
  const number = (text: string | undefined): number => (text === undefined ? -1 : Number(text));
  const range = { first: number(match[1]), last: number(match[2]), total: match[3] ? Number(match[3]) : undefined };
  const numbers = [range.first, range.last, range.total ?? 0];
  return numbers.every(Number.isSafeInteger) && range.first <= range.last ? range : undefined;
}

/** Content-Length, undefined when it is missing (chunked) or nonsense. */
export function contentLength(headers: Headers): number | undefined {
  const value = header(headers, "content-length");
  return value !== undefined && /^\d{1,15}$/.test(value) ? Number(value) : undefined;
}

/**
 * What pins the content, from an answer's validators:
 *
 * | the server sends                  | version                        | strong | checked                                |
 * | --------------------------------- | ------------------------------ | ------ | -------------------------------------- |
 * | a strong ETag                     | `etag:"x"`                     | yes    | If-Match, every answer                 |
 * | Last-Modified (settled)           | `last-modified:… [etag:W/"x"]` | yes    | every answer, and again after the last |
 * | Last-Modified of this very moment | the same                       | no     | byte of each read                      |
 * | a weak ETag only                  | `etag:W/"x"`                   | no     | the same                               |
 * | nothing                           | ``                             | no     | the size only                          |
 */
export function identityOf(headers: Headers, size: number): Identity {
  const etag = header(headers, "etag");
  if (etag !== undefined && isStrongEtag(etag)) return { size, version: `etag:${etag}`, strong: true };
  const modified = lastModified(headers);
  const parts: string[] = [];
  if (modified !== undefined) parts.push(`last-modified:${modified}`);
  if (etag !== undefined && etag !== "") parts.push(`etag:${etag}`);
  const date = Date.parse(header(headers, "date") ?? "");
  const strong = modified !== undefined && date - Date.parse(modified) >= lastModifiedSettleMs;
  return { size, version: parts.join(" "), strong };
}

/** The validators inside a version that `identityOf` made. */
export function pinsOf(version: string): { etag: string | undefined; lastModified: string | undefined } {
  const match = /^(?:last-modified:(.*? GMT))? ?(?:etag:(.*))?$/.exec(version);
  return { lastModified: match?.[1], etag: match?.[2] };
}

/** A digest or a strong ETag vouches for the bytes; any other pin needs a look after the last byte (durability rule 31). */
export function needsCheckAfterwards(identity: Identity): boolean {
  if (digestOf(identity) !== undefined) return false;
  const { etag } = pinsOf(identity.version);
  return identity.version !== "" && !(etag !== undefined && isStrongEtag(etag));
}

/** What pins an object that is called by the digest of its bytes: `sha256:…`. */
export function digestIdentity(digest: string, size: number): Identity {
  return { size, version: `digest:${digest}`, strong: true };
}

/** The digest in an identity; undefined when something else pins it. */
export function digestOf({ version }: Identity): string | undefined {
  return /^digest:((?:sha256:[0-9a-f]{64})|(?:sha512:[0-9a-f]{128}))$/.exec(version)?.[1];
}

/** The request headers that make a server refuse (412) to answer from another version. */
export function conditionsFor(identity: Identity): Record<string, string> {
  const pins = pinsOf(identity.version);
  if (pins.etag !== undefined && isStrongEtag(pins.etag)) return { "if-match": pins.etag };
  if (pins.lastModified !== undefined) return { "if-unmodified-since": pins.lastModified };
  return {};
}

/** @throws SourceError when the answer's validators are not those of the pinned identity */
export function demandSameVersion(where: string, headers: Headers, identity: Identity): void {
  const pins = pinsOf(identity.version);
  const pairs = [
    ["ETag", pins.etag, header(headers, "etag")],
    ["Last-Modified", pins.lastModified, header(headers, "last-modified")],
  ] as const;
  for (const [name, pinned, answered] of pairs) {
    if (pinned === undefined || pinned === answered) continue;
    if (answered === undefined) throw badAnswer(`${where} answered without the ${name} that pins it (${pinned})`);
    throw sourceChanged(`${where} has changed: its ${name} was ${pinned} and is now ${answered}`);
  }
}

/** @throws SourceError unless the answer is 206 with exactly the range asked for, of an object of the pinned size */
export function demandRange(
  where: string,
  head: ResponseHead,
  identity: Identity,
  offset: number,
  length: number,
): void {
  const { status, headers } = head;
  // 416 cannot be right for a range inside of the object, but it tells its size now.
  if (status !== 206 && status !== 416) throw ignoresRanges(where, status);
  if (status === 206) {
    demandPlain(where, headers);
    demandSameVersion(where, headers, identity);
  }
  const text = header(headers, "content-range");
  const range = parseContentRange(text);
  if (range?.total !== undefined && range.total !== identity.size) {
    throw sourceChanged(`${where} has changed: it had ${identity.size} bytes and now has ${range.total}`);
  }
  const last = offset + length - 1;
  if (status !== 206 || range?.total === undefined || range.first !== offset || range.last !== last) {
    const asked = `bytes ${offset}-${last}/${identity.size}`;
    throw badAnswer(`${where} was asked for ${asked} and answered ${status} with Content-Range ${text ?? "missing"}`);
  }
  demandLength(where, head.headers, length);
}

/** @throws SourceError when the answer announces another body length than `length`; chunked answers announce none */
export function demandLength(where: string, headers: Headers, length: number): void {
  const announced = contentLength(headers);
  if (announced !== undefined && announced !== length) {
    throw badAnswer(`${where} announced a body of ${announced} bytes where ${length} belong`);
  }
}

/** @throws SourceError when the bytes are compressed on the way: ranges of those are not ranges of the disk */
export function demandPlain(where: string, headers: Headers): void {
  const encoding = headers["content-encoding"];
  if (encoding === undefined || encoding === "" || encoding === "identity") return;
  throw new SourceError("source-encoded", `${where} sends the object with Content-Encoding ${String(encoding)}`, {
    transient: false,
    hint: "make the server send the file as it is (no Content-Encoding)",
  });
}

/** The error behind a status that is neither success nor redirect. */
export function statusError(where: string, head: ResponseHead): SourceError {
  const { status } = head;
  const message = `${where} answered ${status}`;
  if (status === 401 || status === 403 || status === 407) {
    const hint = "check the address and its credentials (`ullage help sources` says how they are given)";
    return new SourceError("source-denied", message, { transient: false, hint });
  }
  if (status === 404 || status === 410) {
    return new SourceError("source-not-found", message, { transient: false, hint: "check the address" });
  }
  if (status === 412) return sourceChanged(`${where} has changed: it no longer has the pinned version (412)`);
  if (status === 408 || status === 425 || status === 429 || status >= 500) {
    return new SourceBusyError(message, retryAfterMs(head.headers));
  }
  return new SourceError("source-status", message, { transient: false, hint: "check the address" });
}

export function ignoresRanges(where: string, status: number): SourceError {
  const code = status === 200 ? "source-no-ranges" : "source-status";
  return new SourceError(code, `${where} answered a range request with ${status} instead of 206`, {
    transient: false,
    hint:
      status === 200 ? "the server ignores Range: use --download to fetch the whole image first" : "check the address",
  });
}

function isStrongEtag(etag: string): boolean {
  return /^"[^"]*"$/.test(etag);
}

function lastModified(headers: Headers): string | undefined {
  const value = header(headers, "last-modified");
  return value !== undefined && value.endsWith(" GMT") && !Number.isNaN(Date.parse(value)) ? value : undefined;
}

/** Retry-After (RFC 9110 section 10.2.3) in milliseconds; a date is measured against the server's own clock. */
export function retryAfterMs(headers: Headers): number | undefined {
  const value = header(headers, "retry-after");
  if (value === undefined) return undefined;
  if (/^\d{1,9}$/.test(value)) return Number(value) * 1000;
  const wait = Date.parse(value) - Date.parse(header(headers, "date") ?? "");
  return Number.isNaN(wait) ? undefined : Math.max(0, wait);
}
