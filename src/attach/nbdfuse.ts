import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { UllageError } from "../base/errors.ts";
import { listMounts } from "../base/mounts.ts";
import type { Place } from "./place.ts";
import { commandEnvironment, tryCommand } from "./run-command.ts";

const MOUNT_TIMEOUT_MS = 30_000;
const POLL_MS = 10;

/**
 * nbdfuse ends when its file is unmounted, and not by signals: a shutdown sends SIGTERM to everybody before it unmounts
 * file systems, and those above ours still have to be written then.
 */
const startIgnoringSignals = 'trap "" HUP INT QUIT TERM PIPE; exec nbdfuse "$@"';

/** Offers the NBD server on the place's socket as the place's file. Resolves when the file is there. */
export async function startNbdfuse(
  place: Place,
  readOnly: boolean,
  onMessage: (line: string) => void,
): Promise<ChildProcess> {
  mkdirSync(place.fuse, { recursive: true, mode: 0o700 });
  const options = ["-o", `fsname=ullage:${place.name}`, "-o", "subtype=ullage", ...(readOnly ? ["-r"] : [])];
  const uri = `nbd+unix:///?socket=${encodeURI(place.socket)}`;
  const child = spawn("sh", ["-c", startIgnoringSignals, "nbdfuse", ...options, place.file, uri], {
    cwd: "/",
    env: commandEnvironment,
    stdio: ["ignore", "ignore", "pipe"],
  });
  let said = "";
  child.stderr.on("data", (bytes: Buffer) => {
    const text = bytes.toString().trim();
    if (said.length < 4096) said += text;
    onMessage(`nbdfuse: ${text}`);
  });
  let ended = false;
  child.once("close", () => (ended = true));
  for (const deadline = performance.now() + MOUNT_TIMEOUT_MS; ; await sleep(POLL_MS)) {
    if (listMounts().some(({ path }) => path === place.fuse) && existsSync(place.file)) return child;
    if (!ended && performance.now() < deadline) continue;
    child.kill("SIGKILL");
    await unmountFuse(place);
    throw new UllageError("nbdfuse-failed", `nbdfuse did not start: ${said || "it does not mount its file"}`, {
      hint: "is FUSE usable here? `ls -l /dev/fuse`, `fusermount3 --version`",
    });
  }
}

/** @returns why it could not be unmounted; undefined: it is not mounted (any more) */
export async function unmountFuse(place: Place): Promise<string | undefined> {
  if (!listMounts().some(({ path }) => path === place.fuse)) return undefined;
  const { code, stderr } = await tryCommand("fusermount3", "-u", place.fuse);
  return code === 0 ? undefined : stderr;
}
