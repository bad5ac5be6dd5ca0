import { SourceError } from "../../base/errors.ts";

/** Where a request goes: an address without credentials, and the credentials that belong to its origin. */
export interface Target {
  url: URL;
  /** Value of the Authorization header, or undefined. Never shown, never sent to another origin. */
  authorization: string | undefined;
}

/** Splits an address into what may be shown and what may not; the fragment goes. @throws SourceError when it is none */
export function parseTarget(address: string): Target {
  const url = URL.parse(address);
  if (url === null) throw badAddress(withoutCredentials(address));
  if ((url.protocol !== "http:" && url.protocol !== "https:") || url.hostname === "") throw badAddress(url.host);
  const { username, password } = url;
  url.username = "";
  url.password = "";
  url.hash = "";
  if (username === "" && password === "") return { url, authorization: undefined };
  return { url, authorization: basic(decode(username), decode(password)) };
}

/** The value of an Authorization header (RFC 7617). */
export function basic(username: string, password: string): string {
  return `Basic ${Buffer.from(`${username}:${password}`, "utf8").toString("base64")}`;
}

/**
 * The target that a redirect answer names. Credentials stay with their origin; those in the Location itself are used.
 * @throws SourceError for an answer without a usable Location, and for https that would continue as plain http
 */
export function redirectedTarget(from: Target, location: string | undefined): Target {
  if (location === undefined) throw badRedirect(`${shown(from.url)} redirects without saying where to`);
  const address = URL.parse(location, from.url);
  if (address === null || !/^https?:$/.test(address.protocol)) {
    throw badRedirect(`${shown(from.url)} redirects to something that is no http address`);
  }
  const to = parseTarget(address.href);
  if (from.url.protocol === "https:" && to.url.protocol === "http:") {
    throw badRedirect(`${shown(from.url)} redirects from https to plain http (${shown(to.url)})`);
  }
  if (to.authorization === undefined && to.url.origin === from.url.origin) to.authorization = from.authorization;
  return to;
}

/** An address for messages: the query is left out, because that is where pre-signed addresses carry their secrets. */
export function shown(url: URL): string {
  return `${url.origin}${url.pathname}${url.search === "" ? "" : "?…"}`;
}

/** What a malformed address may be quoted as: everything before the last `@`, and behind the first `?`, is cut out. */
function withoutCredentials(address: string): string {
  return address.replace(/^([a-z]+:\/\/).*@/is, "$1").replace(/\?.*/s, "?…");
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function badAddress(text: string): SourceError {
  return new SourceError("source-invalid", `${text} is not an http address`, {
    transient: false,
    hint: "write it as http://host/path or https://host/path",
  });
}

function badRedirect(message: string): SourceError {
  return new SourceError("source-redirect", message, {
    transient: false,
    hint: "name the final address as the source",
  });
}
