import { AF_INET, AF_INET6, AF_UNIX } from "./posix.ts";

// struct sockaddr_* of Linux. The buffers are `allocUnsafeSlow`: their memory never moves, so system calls may use it.

/** `struct sockaddr_un`. A path that begins with a zero byte is a name in the abstract namespace. */
export function unixSocketAddress(path: string): Buffer {
  const bytes = Buffer.from(path, "utf8");
  const terminator = path.startsWith("\0") ? 0 : 1; // it would be a part of an abstract name
  const address = Buffer.allocUnsafeSlow(2 + bytes.length + terminator).fill(0);
  address.writeUInt16LE(AF_UNIX, 0);
  bytes.copy(address, 2);
  return address;
}

/** `struct sockaddr_in` or `struct sockaddr_in6`. @param host a numeric address */
export function internetSocketAddress(host: string, port: number): Buffer {
  if (!host.includes(":")) {
    const address = Buffer.allocUnsafeSlow(16).fill(0);
    address.writeUInt16LE(AF_INET, 0);
    address.writeUInt16BE(port, 2);
    host.split(".").forEach((octet, index) => address.writeUInt8(Number(octet), 4 + index));
    return address;
  }
  const address = Buffer.allocUnsafeSlow(28).fill(0);
  address.writeUInt16LE(AF_INET6, 0);
  address.writeUInt16BE(port, 2);
  ipv6Groups(host).forEach((group, index) => address.writeUInt16BE(group, 8 + 2 * index));
  return address;
}

/** The eight groups of an IPv6 address. A URL's host is the same address without an IPv4 tail. */
function ipv6Groups(host: string): number[] {
  const canonical = new URL(`http://[${host}]/`).hostname.slice(1, -1);
  const [head, tail] = canonical.split("::").map((part) => (part === "" ? [] : part.split(":")));
  const before = head.map((group) => Number.parseInt(group, 16));
  if (tail === undefined) return before;
  const after = tail.map((group) => Number.parseInt(group, 16));
  return [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
}

/** The family, and for internet sockets the port, of what getsockname(2) returned. */
export function readSocketAddress(address: Buffer): { family: number; port: number; host: string; path: string } {
  const family = address.readUInt16LE(0);
  let host = "";
  let port = 0;
  let path = "";
  if (family === AF_INET) {
    port = address.readUInt16BE(2);
    host = [...address.subarray(4, 8)].join(".");
  } else if (family === AF_INET6) {
    port = address.readUInt16BE(2);
    const groups = Array.from({ length: 8 }, (_, index) => address.readUInt16BE(8 + 2 * index).toString(16));
    host = new URL(`http://[${groups.join(":")}]/`).hostname.slice(1, -1);
  } else if (family === AF_UNIX) {
    const end = address.indexOf(0, 2);
    path = address.toString("utf8", 2, end < 0 ? address.length : end);
  }
  return { family, port, host, path };
}
