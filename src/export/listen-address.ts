import net from "node:net";
import { UllageError } from "../base/errors.ts";

/** Where a server listens: `HOST:PORT`, `[::1]:PORT` or `unix:PATH`. */
export type ListenAddress =
  { kind: "tcp"; host: string; port: number } | { kind: "unix"; path: string; access?: SocketAccess };

/** Who may connect to a unix socket. */
export interface SocketAccess {
  /** Permissions; default: 0600. */
  mode?: number;
  /** Number of the group; default: the process's. */
  group?: number;
}

/** `sun_path` of a socket address, with its terminating zero byte. */
const MAX_UNIX_PATH_BYTES = 107;

/** @throws UllageError `listen-address` */
export function parseListenAddress(text: string): ListenAddress {
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    if (path === "") throw addressError(text, "the path is missing");
    const bytes = Buffer.byteLength(path);
    if (bytes > MAX_UNIX_PATH_BYTES) {
      throw addressError(text, `a socket's path has at most ${MAX_UNIX_PATH_BYTES} bytes, this one ${bytes}`);
    }
    if (path.includes("\0")) throw addressError(text, "the path has a zero byte");
    return { kind: "unix", path };
  }
  const match = /^(?:\[(?<v6>[^\]]+)\]|(?<host>[^:[\]]+)):(?<port>[0-9]{1,5})$/.exec(text);
  if (match === null) throw addressError(text, "it is not HOST:PORT, [IPV6]:PORT or unix:PATH");
  const { v6, host, port: digits } = match.groups!;
  const port = Number(digits);
  if (port > 65535) throw addressError(text, `port ${port} is above 65535`);
  if (v6 !== undefined && !net.isIPv6(v6)) throw addressError(text, `${v6} is not an IPv6 address`);
  return { kind: "tcp", host: v6 ?? host, port };
}

/** The inverse of `parseListenAddress`. */
export function formatListenAddress(address: ListenAddress): string {
  if (address.kind === "unix") return `unix:${address.path}`;
  return address.host.includes(":") ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Whether only processes on this machine can connect. */
export function isLocalAddress(address: ListenAddress): boolean {
  return address.kind === "unix" || isLoopback(address.host);
}

/** 127.0.0.0/8, ::1, the same as an IPv4-mapped address, and the name `localhost`. */
export function isLoopback(host: string): boolean {
  const plain = host.toLowerCase().replace(/^::ffff:(?=\d+\.)/, "");
  return plain === "localhost" || plain === "::1" || (net.isIPv4(plain) && plain.startsWith("127."));
}

function addressError(text: string, why: string): UllageError {
  return new UllageError("listen-address", `can't listen on "${text}": ${why}`, {
    hint: "give 127.0.0.1:10809, [::1]:10809 or unix:/run/ullage/nbd.sock",
  });
}
