import { isAbsolute, resolve } from "node:path";
import { refuseTcp } from "../api/api-listener.ts";
import type { ListenTarget } from "../daemon/nbd-listeners.ts";
import { parseListenAddress, type ListenAddress } from "../export/listen-address.ts";
import { takeInheritedSockets } from "../export/socket-activation.ts";
import type { ServerAddresses } from "./server.ts";

/**
 * Where to listen: on what was given and what the service manager passed (sockets whose name begins with `api` are for
 * the API, all others for NBD); when there is neither, on the defaults.
 * @throws UllageError `listen-address`, `api-tcp`
 */
export function chooseAddresses(
  given: { api?: string[] | undefined; nbd?: string[] | undefined },
  dataDir: string,
  nbdDefaults: string[],
): ServerAddresses {
  const passed = takeInheritedSockets(process.env);
  const choose = (fds: number[], named: string[] | undefined, defaults: string[]): ListenTarget[] => [
    ...fds.map((fd) => ({ kind: "fd" as const, fd })),
    ...(named ?? (fds.length > 0 ? [] : defaults)).map(absoluteAddress),
  ];
  const isApi = ({ name }: { name: string }): boolean => name.startsWith("api");
  const fdsFor = (api: boolean): number[] => passed.filter((socket) => isApi(socket) === api).map(({ fd }) => fd);
  const api = choose(fdsFor(true), given.api, [`unix:${dataDir}/api.sock`]);
  for (const target of api) if (target.kind !== "fd") refuseTcp(target);
  return { api, nbd: choose(fdsFor(false), given.nbd, nbdDefaults) };
}

function absoluteAddress(text: string): ListenAddress {
  const address = parseListenAddress(text);
  if (address.kind !== "unix" || isAbsolute(address.path)) return address;
  return { kind: "unix", path: resolve(address.path) };
}
