import { resolve } from "node:path";
import type { ListenTarget } from "../daemon/exports/nbd-listeners.ts";
import { parseListenAddress, type ListenAddress, type SocketAccess } from "../export/listen-address.ts";
import { takeInheritedSockets } from "../export/socket-activation.ts";
import type { ServerAddresses } from "./server.ts";

/** For every unix socket that is opened here; those that were passed have their own already. */
export interface SocketOptions {
  socketMode?: number;
  /** Its number. */
  socketGroup?: number;
}

/**
 * Where to listen: on what was given and what the service manager passed (sockets whose name begins with `api` are for
 * the API, all others for NBD); when there is neither, on the defaults.
 * @throws UllageError `listen-address`
 */
export function chooseAddresses(
  given: { api?: string[] | undefined; nbd?: string[] | undefined } & SocketOptions,
  defaults: { api: string[]; nbd: string[] },
): ServerAddresses {
  const access = socketAccess(given);
  const passed = takeInheritedSockets(process.env);
  const choose = (fds: number[], named: string[] | undefined, otherwise: string[]): ListenTarget[] => [
    ...fds.map((fd) => ({ kind: "fd" as const, fd })),
    ...(named ?? (fds.length > 0 ? [] : otherwise)).map((text) => absoluteAddress(text, access)),
  ];
  const isApi = ({ name }: { name: string }): boolean => name.startsWith("api");
  const fdsFor = (api: boolean): number[] => passed.filter((socket) => isApi(socket) === api).map(({ fd }) => fd);
  return {
    api: choose(fdsFor(true), given.api, defaults.api),
    nbd: choose(fdsFor(false), given.nbd, defaults.nbd),
  };
}

export function socketAccess({ socketMode, socketGroup }: SocketOptions): SocketAccess {
  return {
    ...(socketMode === undefined ? {} : { mode: socketMode }),
    ...(socketGroup === undefined ? {} : { group: socketGroup }),
  };
}

function absoluteAddress(text: string, access: SocketAccess): ListenAddress {
  const address = parseListenAddress(text);
  if (address.kind !== "unix") return address;
  return { kind: "unix", path: resolve(address.path), access };
}
