import { SourceError } from "../../base/errors.ts";

/** An export of an NBD server, as an NBD URI names it (the "NBD Uniform Resource Indicator" specification, and libnbd's own parameters). */
export interface NbdAddress {
  /** The canonical form. It holds no secret: a key's file and its owner are named, not the key. */
  url: string;
  /** The same for people: without parameters. */
  shown: string;
  place: { kind: "tcp"; host: string; port: number } | { kind: "unix"; path: string };
  exportName: string;
  /** Absent: no TLS. */
  tls: NbdTls | undefined;
}

export interface NbdTls {
  /** A directory with ca-cert.pem, client-cert.pem, client-key.pem, ca-crl.pem, any of them; absent: the system's authorities. */
  certificates: string | undefined;
  /** Lines of `identity:hexadecimal key`. */
  pskFile: string | undefined;
  /** Whose key it is. */
  username: string | undefined;
  verifyPeer: boolean;
  /** What the server's certificate must be for, if not the host. */
  hostname: string | undefined;
}

const defaultPort = 10809;
const schemes = new Set(["nbd", "nbds", "nbd+unix", "nbds+unix"]);
/** `sun_path` of a socket address, with its terminating zero byte. */
const maxSocketBytes = 107;
/** "Strings longer than this MUST NOT be used": of export names. */
const maxNameBytes = 4096;

export function isNbd(scheme: string): boolean {
  return schemes.has(scheme);
}

/** @throws SourceError `source-invalid` */
export function parseNbdSource(source: string): NbdAddress {
  // A user without a host, which is what a socket's address has, is beyond the parser.
  const user = /^(nbds?\+unix:\/\/)([^/?#@]+)@(?=[/?#]|$)/i.exec(source);
  const url = URL.parse(user === null ? source : user[1] + source.slice(user[0].length));
  const scheme = url?.protocol.slice(0, -1) ?? "";
  if (url === null || !isNbd(scheme) || source.includes("\0")) throw invalid("the address is no NBD URI");
  if (url.password !== "" || user?.[2].includes(":") === true)
    throw invalid("an NBD URI has no password", "name a key's file: tls-psk-file=FILE");
  if (url.hash !== "") throw invalid("an NBD URI has no #fragment", "write # in a name as %23");
  const isTls = scheme.startsWith("nbds");
  const parameters = parametersOf(url, isTls, scheme.endsWith("+unix"));
  const place = scheme.endsWith("+unix") ? socketOf(url, parameters) : hostOf(url);
  const exportName = decoded(url.pathname.replace(/^\//, ""));
  if (Buffer.byteLength(exportName) > maxNameBytes) throw invalid("the export's name is too long");
  const userText = user?.[2] ?? url.username;
  const username = userText === "" ? undefined : decoded(userText);
  if (username !== undefined && !isTls) throw invalid("a user makes no sense without TLS", "write nbds://");
  const tls = isTls ? tlsOf(parameters, username) : undefined;

  const who = username === undefined ? "" : `${encodeURIComponent(username)}@`;
  const host = place.kind === "tcp" ? hostText(place) : "";
  const shown = `${scheme}://${host}/${encodePath(exportName)}`;
  const query = [...parameters].toSorted(([a], [b]) => (a < b ? -1 : 1));
  const tail = query.map(([name, value]) => `${name}=${encodePath(value)}`).join("&");
  const canonical = `${scheme}://${who}${host}/${encodePath(exportName)}${tail === "" ? "" : `?${tail}`}`;
  return { url: canonical, shown: place.kind === "unix" ? `${shown} on ${place.path}` : shown, place, exportName, tls };
}

function parametersOf(url: URL, isTls: boolean, isUnix: boolean): Map<string, string> {
  const tlsNames = ["tls-certificates", "tls-psk-file", "tls-verify-peer", "tls-hostname"];
  const known = new Set([...(isUnix ? ["socket"] : []), ...(isTls ? tlsNames : [])]);
  const parameters = new Map<string, string>();
  for (const part of url.search.slice(1).split("&")) {
    if (part === "") continue;
    const [name, ...rest] = part.split("=");
    const key = decoded(name);
    if (!known.has(key)) {
      const hint = `here an NBD URI takes ${[...known].join(", ") || "no parameters"}${isTls ? "" : "; TLS takes nbds://"}`;
      throw invalid(`the NBD URI has an unknown parameter '${key}'`, hint);
    }
    if (parameters.has(key)) throw invalid(`the NBD URI has '${key}' twice`);
    parameters.set(key, decoded(rest.join("=")));
  }
  return parameters;
}

function socketOf(url: URL, parameters: Map<string, string>): NbdAddress["place"] {
  if (url.hostname !== "" || url.port !== "")
    throw invalid("a unix socket has no host", "write nbd+unix:///EXPORT?socket=PATH");
  const path = parameters.get("socket") ?? "";
  if (!path.startsWith("/") || path.includes("\0")) {
    throw invalid("the NBD URI names no socket", "write nbd+unix:///EXPORT?socket=/absolute/path");
  }
  if (Buffer.byteLength(path) > maxSocketBytes) throw invalid(`a socket's path has at most ${maxSocketBytes} bytes`);
  return { kind: "unix", path };
}

/** As the parser for http addresses spells hosts: in lower case, xn--, and numbers as what they are. */
function hostOf(url: URL): NbdAddress["place"] {
  const host = URL.parse(`http://${url.hostname}/`)?.hostname ?? "";
  if (host === "")
    throw invalid("the NBD URI names no host", "write nbd://HOST[:PORT]/EXPORT, or nbd+unix:///EXPORT?socket=PATH");
  const port = url.port === "" ? defaultPort : Number(url.port);
  return { kind: "tcp", host: host.replace(/^\[|\]$/g, ""), port };
}

function hostText({ host, port }: { host: string; port: number }): string {
  const name = host.includes(":") ? `[${host}]` : host;
  return port === defaultPort ? name : `${name}:${port}`;
}

function tlsOf(parameters: Map<string, string>, username: string | undefined): NbdTls {
  const certificates = parameters.get("tls-certificates");
  const pskFile = parameters.get("tls-psk-file");
  if (certificates !== undefined && pskFile !== undefined) {
    throw invalid("the NBD URI names both certificates and a pre-shared key", "use either");
  }
  for (const path of [certificates, pskFile]) {
    if (path?.startsWith("/") === false) throw invalid(`${path} is no absolute path`);
  }
  const verify = parameters.get("tls-verify-peer")?.toLowerCase() ?? "true";
  if (!/^(true|false|1|0|yes|no|on|off)$/.test(verify)) throw invalid("tls-verify-peer is neither true nor false");
  const verifyPeer = /^(true|1|yes|on)$/.test(verify);
  return { certificates, pskFile, username, verifyPeer, hostname: parameters.get("tls-hostname") };
}

function encodePath(text: string): string {
  return encodeURIComponent(text).replaceAll("%2F", "/");
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (cause) {
    throw invalid("the NBD URI has a broken %-escape", "write % as %25", cause);
  }
}

function invalid(message: string, hint = "write nbd://HOST[:PORT]/EXPORT", cause?: unknown): SourceError {
  return new SourceError("source-invalid", message, { transient: false, hint, cause });
}
