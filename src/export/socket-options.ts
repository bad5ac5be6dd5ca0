import {
  getSocketOption,
  IPPROTO_TCP,
  setSocketOption,
  SO_KEEPALIVE,
  SO_SNDBUF,
  SO_SNDBUFFORCE,
  SOL_SOCKET,
  TCP_KEEPCNT,
  TCP_KEEPIDLE,
  TCP_KEEPINTVL,
  TCP_NODELAY,
  TCP_USER_TIMEOUT,
} from "../base/posix.ts";

/** A unix socket holds what was sent until it is read: with the default of 208 KiB a 1 MiB reply takes five turns. */
export const SEND_BUFFER_BYTES = 2 * 1024 * 1024;

/** A silent peer is probed after this, */
const KEEPALIVE_IDLE_S = 30;
const KEEPALIVE_INTERVAL_S = 10;
const KEEPALIVE_PROBES = 3;
/** and one that does not acknowledge what we send is given up after this (durability rule 25). */
const USER_TIMEOUT_MS = 60_000;

/** @returns the send buffer that the kernel granted, in bytes (it counts its own overhead and doubles the request) */
export function tuneUnixSocket(fd: number): number {
  // Beyond net.core.wmem_max only a process with CAP_NET_ADMIN may go.
  if (setSocketOption(fd, SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES) !== 0) {
    setSocketOption(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER_BYTES);
  }
  return getSocketOption(fd, SOL_SOCKET, SO_SNDBUF);
}

/** The send buffer is left to the kernel, which fits it to the path. */
export function tuneTcpSocket(fd: number): void {
  setSocketOption(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  setSocketOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
  setSocketOption(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
  setSocketOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
}
