import { resolve } from "node:path";
import { refuseTcp } from "../api/api-listener.ts";
import type { ListenTarget } from "../daemon/nbd-listeners.ts";
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
 * @throws UllageError `listen-address`, `api-tcp`
 */
export function chooseAddresses(
  given: { api?: string[] | undefined; nbd?: string[] | undefined } & SocketOptions,
  dataDir: string,
  nbdDefaults: string[],
): ServerAddresses {
  const access: SocketAccess = {
    ...(given.socketMode === undefined ? {} : { mode: given.socketMode }),
    ...(given.socketGroup === undefined ? {} : { group: given.socketGroup }),
  };
  const passed = takeInheritedSockets(process.env);
  const choose = (fds: number[], named: string[] | undefined, defaults: string[]): ListenTarget[] => [
    ...fds.map((fd) => ({ kind: "fd" as const, fd })),
    ...(named ?? (fds.length > 0 ? [] : defaults)).map((text) => absoluteAddress(text, access)),
  ];
  const isApi = ({ name }: { name: string }): boolean => name.startsWith("api");
  const fdsFor = (api: boolean): number[] => passed.filter((socket) => isApi(socket) === api).map(({ fd }) => fd);
  const api = choose(fdsFor(true), given.api, [`unix:${dataDir}/api.sock`]);
  for (const target of api) if (target.kind !== "fd") refuseTcp(target);
  return { api, nbd: choose(fdsFor(false), given.nbd, nbdDefaults) };
}

function absoluteAddress(text: string, access: SocketAccess): ListenAddress {
  const address = parseListenAddress(text);
  if (address.kind !== "unix") return address;
  return { kind: "unix", path: resolve(address.path), access };
}
