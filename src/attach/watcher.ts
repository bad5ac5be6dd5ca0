import { spawn } from "node:child_process";
import { dirname } from "node:path";
import type { Place } from "./place.ts";
import { programBeside } from "./run-command.ts";

/**
 * A shell that waits for the end of the helper, and nothing else. When the helper ends without having said that it is done,
 * it was killed: then what it had not answered hangs in the kernel for ever, and with it whoever waits, unless somebody
 * disconnects the device. That is what the shell turns into (watcher-main).
 *
 * Its name begins with `@`: systemd kills such a process of root last, after the file systems are unmounted, for which it
 * must still be there.
 */
const waitForEnd = 'trap "" HUP INT QUIT TERM PIPE; read -r done && exit; exec "$@"';

/** @returns ends it: for when nothing is left to watch over */
export function startWatcher(place: Place): () => Promise<void> {
  const program = [process.execPath, programBeside("watcher-main", import.meta.url), dirname(place.path), place.name];
  const { stdin } = spawn("/bin/sh", ["-c", waitForEnd, "sh", ...program], {
    argv0: "@ullage-attach",
    cwd: "/",
    detached: true,
    stdio: ["pipe", "ignore", "inherit"],
  });
  stdin.on("error", () => undefined); // somebody has killed it
  return () => new Promise((resolve) => stdin.end("done\n", () => resolve()));
}
