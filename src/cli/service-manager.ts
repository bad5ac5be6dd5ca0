import { AF_UNIX, errnoName, sendDatagram } from "../base/posix.ts";
import type { Log } from "../daemon/log.ts";
import { unixSocketAddress } from "../base/socket-address.ts";

/**
 * Tells the service manager how things stand, if it asked (sd_notify(3): a datagram to the socket that $NOTIFY_SOCKET
 * names): `READY=1` when every listener is open, `STOPPING=1` when a stop has begun. A failure is logged; systemd will
 * then take the start for a failed one, and say so.
 */
export function notifyServiceManager(state: "READY=1" | "STOPPING=1", log: Log, env = process.env): void {
  const path = env["NOTIFY_SOCKET"];
  if (path === undefined || path === "") return;
  const message = Buffer.allocUnsafeSlow(state.length);
  message.write(state);
  const failure = sendDatagram(AF_UNIX, unixSocketAddress(path.replace(/^@/, "\0")), message);
  if (failure !== 0) log("warn", `can't tell the service manager at ${path}: ${errnoName(failure)}`);
}
