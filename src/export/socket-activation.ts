import { setCloseOnExec } from "../base/posix.ts";

const FIRST_FD = 3;

/** A listening socket that the process was started with (systemd's sd_listen_fds(3) protocol). */
export interface InheritedSocket {
  fd: number;
  /** From LISTEN_FDNAMES; "" when the starter gave none. */
  name: string;
}

/**
 * The sockets handed to this very process; none when the variables were meant for another. The variables are removed,
 * and the descriptors are made close-on-exec, so that no child takes them for its own.
 */
export function takeInheritedSockets(env: NodeJS.ProcessEnv): InheritedSocket[] {
  const { LISTEN_FDS: count, LISTEN_PID: pid, LISTEN_FDNAMES: names } = env;
  delete env["LISTEN_FDS"];
  delete env["LISTEN_PID"];
  delete env["LISTEN_FDNAMES"];
  if (pid !== String(process.pid) || count === undefined || !/^[0-9]{1,4}$/.test(count)) return [];
  const listed = (names ?? "").split(":");
  return Array.from({ length: Number(count) }, (_, index) => {
    const fd = FIRST_FD + index;
    setCloseOnExec(fd);
    return { fd, name: listed[index] ?? "" };
  });
}
