import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { kill } from "node:process";
import type { TestContext } from "node:test";
import { listMounts } from "../../src/base/mounts.ts";
import { loopDevicesOf } from "../../src/attach/block-devices.ts";
import { Place } from "../../src/attach/place.ts";
import { isAlive } from "../../src/attach/processes.ts";
import type { AttachmentView } from "../../src/attach/state.ts";
import { launchDaemon, type Daemon, type Result } from "../cli/support.ts";
import { atEnd, temporaryDirectory } from "../daemon/support.ts";
import { run as runProgram } from "../nbd/support.ts";

/** What attaching with a device and a file system takes. */
export const devices = ["root", "fuse", "loop", "nbdfuse", "fusermount3", "losetup", "mount", "mkfs.ext4"] as const;

/** @returns what it printed */
export function succeeded(result: Result): string {
  assert.equal(result.code, 0, result.stderr);
  return result.stdout;
}

export function failed(result: Result, message: RegExp): void {
  assert.equal(result.code, 1, `${result.stdout}${result.stderr}`);
  assert.match(result.stderr, message);
}

export async function attachments(daemon: Daemon): Promise<AttachmentView[]> {
  return (await daemon.json<{ attachments: AttachmentView[] }>(["attach"])).attachments;
}

export async function stateOf(daemon: Daemon, name: string): Promise<AttachmentView> {
  return (await attachments(daemon)).find((view) => view.name === name)!;
}

export interface AttachWorld {
  daemon: Daemon;
  /** An empty directory to mount on. */
  mount: string;
  /** Where the state of attachments is kept. */
  root: string;
  /** Ends the daemon with the signal, if it still runs, and starts another one on the same data. */
  restart: (daemon: Daemon, signal: NodeJS.Signals) => Promise<Daemon>;
  /** Runs a command as a user without privileges, whose state is kept elsewhere. */
  asNobody: (args: string[]) => Promise<Result>;
}

/** What the kernel's NBD client does is proven in a guest (test/vm), which has one; some hosts of these tests do too. */
function throughNbdfuse(daemon: Daemon): Daemon {
  const way = (args: string[]): string[] => {
    const makes = args[0] === "attach" && args.length > 1 && !args.includes("--via") && !args.includes("--grow");
    return makes ? [...args, "--via", "fuse"] : args;
  };
  return { ...daemon, cli: (args) => daemon.cli(way(args)), json: (args) => daemon.json(way(args)) };
}

/** A daemon and a place for attachments. Whatever is attached at the end of the test is taken away by force. */
export async function attachWorld(t: TestContext): Promise<AttachWorld> {
  const base = await temporaryDirectory(t);
  chmodSync(base, 0o755);
  const [mount, root, nobodys] = ["mnt", "run", "nobody"].map((name) => join(base, name));
  for (const path of [mount, root, nobodys]) mkdirSync(path);
  chmodSync(nobodys, 0o777);
  process.env["ULLAGE_ATTACH"] = root;
  const dataDir = join(base, "data");
  const api = ["--api", `unix:${dataDir}/api.sock`];
  const launch = async (): Promise<Daemon> => throughNbdfuse(await launchDaemon(t, dataDir, api));
  const daemon = await launch();
  atEnd(t, async () => {
    for (const place of [root, nobodys]) clear(place);
  });
  return {
    daemon,
    mount,
    root,
    async restart(running, signal) {
      await running.stop(signal);
      return launch();
    },
    async asNobody(args) {
      const user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
      const environment = [`ULLAGE_ATTACH=${nobodys}`, `ULLAGE_API=unix:${dataDir}/api.sock`, "HOME=/nonexistent"];
      const ullage = join(import.meta.dirname, "../../bin/ullage");
      return runProgram("setpriv", [...user, "env", ...environment, "sh", ullage, ...args]);
    },
  };
}

/** What a failed test has left: from the top down, and without asking. */
function clear(root: string): void {
  const force = (command: string, ...args: string[]): void => {
    spawnSync(command, args, { stdio: "ignore", timeout: 60_000 });
  };
  for (const entry of existsSync(root) ? readdirSync(root) : []) {
    const fuse = join(root, entry, "fuse");
    for (const device of loopDevicesOf(join(fuse, "disk"))) {
      for (const { path, source } of listMounts().toReversed()) {
        if (device.numbers.has(source)) force("umount", "--lazy", path);
      }
      force("losetup", "--detach", device.path);
    }
    force("umount", "--lazy", fuse);
    const status = new Place(root, entry).readStatus();
    for (const process of [status?.nbdfuse, status?.helper]) {
      if (process !== undefined && process !== null && isAlive(process)) kill(process.pid, "SIGKILL");
    }
  }
}
