import { readFileSync } from "node:fs";
import { open } from "node:fs/promises";
import type { Warning } from "../health/health.ts";

/** The mount that a directory lies on, from /proc/self/mountinfo (proc_pid_mountinfo(5)). */
export interface MountPoint {
  /** `ext4`, `fuse.sshfs`, `nfs4`, … */
  type: string;
  path: string;
  /** of the mount and of the file system: `rw`, `nobarrier`, `volatile`, … */
  options: string[];
}

/** @returns undefined when /proc does not tell */
export async function mountPointOf(directory: string): Promise<MountPoint | undefined> {
  const handle = await open(directory);
  try {
    const mountId = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${handle.fd}`, "latin1"))?.[1];
    const line = readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .find((candidate) => candidate.startsWith(`${mountId} `));
    return line === undefined ? undefined : parseMountLine(line);
  } catch {
    return undefined; // /proc is hidden: nothing is known, nothing is refused
  } finally {
    await handle.close();
  }
}

/** `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue` */
function parseMountLine(line: string): MountPoint {
  const [mount = "", fileSystem = ""] = line.split(" - ");
  const [, , , , path = "", mountOptions = ""] = mount.split(" ");
  const [type = "", , superOptions = ""] = fileSystem.split(" ");
  return { type, path, options: [...mountOptions.split(","), ...superOptions.split(",")] };
}

/** Why locks on this file system exclude nobody, or not for long (durability rule 20); undefined: they do exclude. */
export function lockWeakness(mount: MountPoint): string | undefined {
  const type = mount.type.split(".")[0];
  if (type === "9p" || type === "virtiofs" || type === "fuse" || type === "fuseblk") {
    return `locks on ${mount.type} are not seen by other hosts that mount it`;
  }
  if (type === "nfs" || type === "nfs4" || type === "cifs" || type === "smb3") {
    return `locks on ${mount.type} come from a lease that the server may take back`;
  }
  return undefined;
}

/** What makes a flush meaningless here (durability rule 33). */
export function flushWarnings(mount: MountPoint | undefined, preload: string | undefined): Warning[] {
  const warnings: Warning[] = [];
  const warn = (code: string, message: string): void => void warnings.push({ code, message });
  if (mount !== undefined) {
    const { type, path, options } = mount;
    if (type === "tmpfs" || type === "ramfs") {
      warn("data-in-memory", `the data directory lies on ${type} (${path}): everything is gone after a power cut`);
    }
    const lazy = options.find((option) => ["volatile", "nobarrier", "barrier=0", "barrier=none"].includes(option));
    if (lazy !== undefined) {
      warn("flush-meaningless", `${path} (${type}) is mounted with '${lazy}': flushed data may be lost in a power cut`);
    }
    if (options.includes("data=writeback")) {
      warn(
        "stale-after-power-loss",
        `${path} (${type}) is mounted with 'data=writeback': after a power cut, blocks that were trimmed and written again ` +
          "without a flush may hold what deleted files left there",
      );
    }
  }
  if (preload?.includes("eatmydata") === true) {
    warn("flush-meaningless", "libeatmydata is loaded: nothing is ever flushed to the disk");
  }
  return warnings;
}
