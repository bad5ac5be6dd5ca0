import { existsSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import type { ListenerView } from "../daemon/views.ts";
import { isLocalAddress, type ListenAddress, parseListenAddress } from "../export/listen-address.ts";

/**
 * Where a daemon on this machine serves NBD: its unix socket if it has one, since that survives as long as its directory.
 * @throws UllageError `attach-no-nbd`
 */
export function nbdAddressOf(listeners: readonly ListenerView[]): ListenAddress {
  const nbd = listeners.filter(({ protocol }) => protocol === "nbd");
  if (nbd.some(({ uri }) => uri?.startsWith("nbds") === true)) {
    throw new UllageError("attach-no-nbd", "the daemon requires TLS for NBD, which attach does not speak", {
      hint: "run it with --tls on: clients may then choose, and attach connects on this machine only",
    });
  }
  const addresses = nbd.map(({ address }) => parseListenAddress(address));
  const unix = addresses.find((address) => address.kind === "unix" && existsSync(address.path));
  const local = unix ?? addresses.find((address) => address.kind === "tcp" && isLocalAddress(address));
  if (local !== undefined) return local;
  const where = nbd.map(({ address }) => address).join(", ") || "nowhere";
  throw new UllageError("attach-no-nbd", `the daemon serves NBD on ${where}, which this machine can't reach locally`, {
    hint: "attach works on the daemon's own machine: give `ullage serve` --nbd unix:PATH, or use nbdfuse or nbd-client elsewhere",
  });
}
