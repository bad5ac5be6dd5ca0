import type { RequestOptions } from "node:http";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { UllageError } from "../base/errors.ts";
import { formatListenAddress, type ListenAddress, parseListenAddress } from "../export/listen-address.ts";

/** Where the system service listens. */
const systemSocket = "/var/lib/ullage/api.sock";

/** Where the daemon is, and what opens its API. */
export interface ApiServer {
  /** for people */
  name: string;
  kind: "unix" | "http" | "https";
  /** for `http.request` */
  target: Pick<RequestOptions, "socketPath" | "host" | "port">;
  /** to be sent with each request */
  headers: Record<string, string>;
}

/**
 * Finds the daemon: the given address, else $ULLAGE_API, else ./ullage-data/api.sock, else the system service's. Over TCP
 * its token is the first line of the given file, else $ULLAGE_TOKEN.
 * @throws UllageError `no-daemon`, `bad-api`, `token-file`
 */
export function findApiServer(given: string | undefined, tokenFile: string | undefined): ApiServer {
  const named = given ?? (process.env["ULLAGE_API"] || undefined);
  if (named === undefined) return unixServer(findSocket());
  if (/^https?:\/\//i.test(named)) return urlServer(named, tokenFile);
  const address = addressOf(named);
  return address.kind === "unix"
    ? unixServer(address.path)
    : urlServer(`http://${formatListenAddress(address)}`, tokenFile);
}

/** @throws UllageError `bad-api` */
function addressOf(text: string): ListenAddress {
  try {
    return parseListenAddress(text);
  } catch {
    throw badApi(text);
  }
}

function badApi(text: string): UllageError {
  return new UllageError("bad-api", `'${text}' is not where an API can be`, {
    hint: "give unix:PATH, HOST:PORT, http://HOST:PORT or https://HOST, without a path",
  });
}

function findSocket(): string {
  const candidates = [join(process.cwd(), "ullage-data", "api.sock"), systemSocket];
  const found = candidates.find((path) => existsSync(path));
  if (found !== undefined) return found;
  throw new UllageError("no-daemon", `no daemon found: neither ${candidates.join(" nor ")} is there`, {
    hint: "start one with `ullage serve`, or say where it is with --api unix:PATH or $ULLAGE_API",
  });
}

/** `localhost` keeps the Host header valid; the socket decides who answers. */
function unixServer(path: string): ApiServer {
  return { name: `unix:${path}`, kind: "unix", target: { socketPath: path, host: "localhost" }, headers: {} };
}

function urlServer(text: string, tokenFile: string | undefined): ApiServer {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || url.pathname !== "/" || url.search !== "" || url.username !== "" || url.hash !== "") {
    throw badApi(text);
  }
  const token = readToken(tokenFile);
  return {
    name: url.origin,
    kind: url.protocol === "https:" ? "https" : "http",
    target: {
      host: url.hostname.replace(/^\[(.*)\]$/, "$1"),
      port: url.port === "" ? undefined : Number(url.port),
    },
    headers: token === undefined ? {} : { authorization: `Bearer ${token}` },
  };
}

function readToken(file: string | undefined): string | undefined {
  const token = file === undefined ? process.env["ULLAGE_TOKEN"]?.trim() : firstLine(file);
  if (token === undefined || token === "") return undefined;
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new UllageError("token-file", `${file ?? "$ULLAGE_TOKEN"} holds no token`, {
    hint: "a token is one line, as `ullage token create` printed it",
  });
}

function firstLine(file: string): string {
  try {
    return readFileSync(file, "utf8").split("\n")[0].trim();
  } catch (cause) {
    throw new UllageError("token-file", `can't read the token in ${file}`, {
      cause,
      hint: "name the file that `ullage token create` was printed to",
    });
  }
}
