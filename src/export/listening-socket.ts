import { lookup } from "node:dns/promises";
import { chmodSync, closeSync, fchmodSync, lchownSync, lstatSync, unlinkSync } from "node:fs";
import net from "node:net";
import { UllageError } from "../base/errors.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  bind,
  errno,
  errnoName,
  getSocketOption,
  listen,
  setNonBlocking,
  setSocketOption,
  SO_ACCEPTCONN,
  SO_REUSEADDR,
  socketName,
  SOL_SOCKET,
  streamSocket,
} from "../base/posix.ts";
import { formatListenAddress, type ListenAddress } from "./listen-address.ts";
import { internetSocketAddress, readSocketAddress, unixSocketAddress } from "../base/socket-address.ts";

const BACKLOG = 511;

/** A socket that listens. `address` is what it is bound to: the port that was chosen for 0 included. */
export interface ListeningSocket {
  readonly fd: number;
  readonly address: ListenAddress;
  /** Closes it, and removes the socket file that was made for it. */
  close(): void;
}

/**
 * Opens a listening socket, not accepting yet. A unix socket has mode 0600 from birth, and the access that its address
 * asks for before anybody can connect; a file that nobody listens behind is replaced.
 * @throws UllageError `listen` when the address is in use or can't be bound
 */
export async function openListeningSocket(address: ListenAddress): Promise<ListeningSocket> {
  return address.kind === "unix" ? openUnix(address) : openTcp(address);
}

/**
 * Takes over a listening socket that was opened for us, e.g. by socket activation. Its file is not ours to remove.
 * @throws UllageError `listen` when it is no listening stream socket
 */
export function adoptListeningSocket(fd: number): ListeningSocket {
  const name = socketName(fd);
  if (name === undefined || getSocketOption(fd, SOL_SOCKET, SO_ACCEPTCONN) === 0) {
    throw new UllageError("listen", `descriptor ${fd} is not a listening socket`, {
      hint: "pass stream sockets that listen (ListenStream= in a systemd socket unit)",
    });
  }
  const { family, host, port, path } = readSocketAddress(name);
  if (family !== AF_UNIX && family !== AF_INET && family !== AF_INET6) {
    throw new UllageError("listen", `descriptor ${fd} is a socket of the unknown family ${family}`);
  }
  setNonBlocking(fd);
  const address: ListenAddress = family === AF_UNIX ? { kind: "unix", path } : { kind: "tcp", host, port };
  return { fd, address, close: () => closeSync(fd) };
}

async function openTcp(address: ListenAddress & { kind: "tcp" }): Promise<ListeningSocket> {
  let host: string;
  try {
    host = (await lookup(address.host)).address;
  } catch (cause) {
    throw new UllageError("listen", `can't listen on ${formatListenAddress(address)}: ${address.host} is unknown`, {
      cause,
    });
  }
  const fd = newSocket(host.includes(":") ? AF_INET6 : AF_INET, address);
  setSocketOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (bind(fd, internetSocketAddress(host, address.port)) !== 0 || listen(fd, BACKLOG) !== 0) {
    throw failed(fd, address, errno());
  }
  const { port } = readSocketAddress(socketName(fd)!);
  return { fd, address: { kind: "tcp", host, port }, close: () => closeSync(fd) };
}

async function openUnix(address: ListenAddress & { kind: "unix" }): Promise<ListeningSocket> {
  await removeStale(address);
  const fd = newSocket(AF_UNIX, address);
  // bind(2) gives the file the socket's own mode: nobody else can connect even for an instant.
  fchmodSync(fd, 0o600);
  if (bind(fd, unixSocketAddress(address.path)) !== 0) throw failed(fd, address, errno());
  giveAccess(fd, address);
  if (listen(fd, BACKLOG) !== 0) {
    const code = errno();
    unlinkSync(address.path);
    throw failed(fd, address, code);
  }
  const { ino } = lstatSync(address.path);
  return {
    fd,
    address,
    close() {
      if (lstatSync(address.path, { throwIfNoEntry: false })?.ino === ino) unlinkSync(address.path);
      closeSync(fd);
    },
  };
}

/** The group comes first: with the new mode, the old group must not get in. */
function giveAccess(fd: number, address: ListenAddress & { kind: "unix" }): void {
  const { mode, group } = address.access ?? {};
  try {
    if (group !== undefined) lchownSync(address.path, -1, group);
    if (mode !== undefined) chmodSync(address.path, mode);
  } catch (cause) {
    unlinkSync(address.path);
    closeSync(fd);
    throw new UllageError("listen", `can't give ${formatListenAddress(address)} to group ${group}`, {
      cause,
      hint: "the daemon's user must be a member of socketGroup",
    });
  }
}

/** Removes a socket file that no process listens behind. Anything else in its place is left, and bind(2) will say so. */
async function removeStale(address: ListenAddress & { kind: "unix" }): Promise<void> {
  const before = lstatSync(address.path, { throwIfNoEntry: false });
  if (before === undefined) return;
  if (!before.isSocket()) {
    throw new UllageError(
      "listen",
      `can't listen on ${formatListenAddress(address)}: a file that is no socket is there`,
      {
        hint: "move it away, or choose another path",
      },
    );
  }
  const refused = await new Promise<boolean>((resolve) => {
    const probe = net.connect(address.path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(false);
    });
    probe.once("error", (error: NodeJS.ErrnoException) => resolve(error.code === "ECONNREFUSED"));
  });
  if (!refused) throw inUse(address);
  // Only the very file that refused: somebody may have started meanwhile.
  if (lstatSync(address.path, { throwIfNoEntry: false })?.ino === before.ino) unlinkSync(address.path);
}

function newSocket(family: number, address: ListenAddress): number {
  const fd = streamSocket(family);
  if (fd < 0) throw failed(-1, address, errno());
  return fd;
}

const hints: Partial<Record<string, string>> = {
  EACCES: "ports below 1024 and other users' directories need privileges",
  EADDRNOTAVAIL: "no interface of this machine has that address: `ip address` lists those that there are",
  ENOENT: "the socket's directory has to be there",
};

function failed(fd: number, address: ListenAddress, code: number): UllageError {
  if (fd >= 0) closeSync(fd);
  const name = errnoName(code);
  if (name === "EADDRINUSE") return inUse(address);
  const hint = hints[name];
  const message = `can't listen on ${formatListenAddress(address)}: ${name}`;
  return new UllageError("listen", message, hint === undefined ? {} : { hint });
}

function inUse(address: ListenAddress): UllageError {
  return new UllageError("listen-in-use", `can't listen on ${formatListenAddress(address)}: it is in use`, {
    hint: "stop the other server, or choose another address",
  });
}
