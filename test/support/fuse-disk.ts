import assert from "node:assert/strict";
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { startNbdkit } from "./nbd-source.ts";
import type { ToolName } from "./tools.ts";

export const fuseTools: readonly ToolName[] = ["fuse", "root", "nbdfuse", "nbdkit", "fusermount3"];

/** A file on a FUSE file system whose program can be stopped, as a file server that hangs is. */
export interface FuseDisk {
  path: string;
  /** The process behind it. */
  pid: number;
  /** Nothing is answered any more when it resolves. */
  hang(): Promise<void>;
  /** What was asked meanwhile is answered, and what comes. */
  answer(): void;
}

/** @param image the file that is served @param filters arguments of nbdkit, in front of and behind the plug-in's name */
export async function mountFuseDisk(
  t: TestContext,
  image: string,
  filters: { before?: string[]; behind?: string[] } = {},
): Promise<FuseDisk> {
  const folder = join(await temporaryDirectory(t), "mounted");
  await mkdir(folder);
  const server = await startNbdkit(t, "-r", ...(filters.before ?? []), "file", image, ...(filters.behind ?? []));
  const path = join(folder, "disk");
  const mounted = spawn("nbdfuse", ["-r", path, server.uri()], { stdio: "ignore" });
  atEnd(t, () => unmount(mounted, folder));
  for (let n = 0; !existsSync(path); n++) {
    assert.ok(n < 500, "nbdfuse does not come up");
    await sleep(20);
  }
  return {
    path,
    pid: mounted.pid!,
    hang: () => stop(mounted),
    answer: () => void mounted.kill("SIGCONT"),
  };
}

/** Each of its threads answers what it is asked until it has met the signal itself, which takes a while on a busy machine. */
async function stop(mounted: ChildProcess): Promise<void> {
  mounted.kill("SIGSTOP");
  const tasks = `/proc/${mounted.pid}/task`;
  const stopped = (task: string): boolean => /^State:\tT/m.test(readFileSync(join(tasks, task, "status"), "latin1"));
  for (let n = 0; !readdirSync(tasks).every(stopped); n++) {
    assert.ok(n < 10_000, "nbdfuse does not stop");
    await sleep(1);
  }
}

async function unmount(mounted: ChildProcess, folder: string): Promise<void> {
  mounted.kill("SIGCONT");
  const ended = once(mounted, "exit");
  execFileSync("fusermount3", ["-u", "-z", folder]);
  const timer = setTimeout(() => mounted.kill("SIGKILL"), 10_000);
  await ended;
  clearTimeout(timer);
}
