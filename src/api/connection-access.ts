import type { Socket } from "node:net";

/** What a listener demands of those who connect to it. */
export type Access = { kind: "unix" } | { kind: "tcp"; auth: ApiAuth };

/** `off`: whoever can connect may do everything; for loopback only. */
export type ApiAuth = "token" | "off";

const accesses = new WeakMap<Socket, Access>();

/** Called by a listener for each connection, before its first request is read. */
export function noteAccess(socket: Socket, access: Access): void {
  accesses.set(socket, access);
}

/** A connection that no listener of ours announced is taken for the least trusted kind. */
export function accessOf(socket: Socket): Access {
  return accesses.get(socket) ?? { kind: "tcp", auth: "token" };
}
