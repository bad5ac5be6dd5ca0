import { existsSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import type { NewFileSystem } from "./file-system.ts";
import { kernelNbdLacks } from "./kernel-nbd.ts";
import { commandExists } from "./run-command.ts";
import type { Via } from "./state.ts";

/** What is asked of this machine. */
export interface Wish {
  /** null: the kernel's NBD client where it can be used, else nbdfuse */
  via: Via | null;
  mount: string | null;
  mkfs: NewFileSystem | null;
}

/** How a volume gets here. */
export interface Way {
  via: Via;
  /** false: it becomes a file */
  withDevice: boolean;
}

/**
 * Looks at what this machine has before anything is done.
 * @throws UllageError `attach-tools`, `attach-root`
 */
export async function chooseWay(wish: Wish): Promise<Way> {
  if (wish.mkfs !== null) requireCommands(mkfsPackages[wish.mkfs]);
  if (wish.via !== "fuse") {
    const lacking = await kernelNbdLacks();
    if (lacking === undefined) return { via: "kernel", withDevice: true };
    if (wish.via === "kernel") {
      throw new UllageError("attach-tools", `the kernel's NBD client can't be used: ${lacking}`, {
        hint: "leave --via away, and nbdfuse does it",
      });
    }
  }
  requireFuse();
  const lacking = process.getuid?.() !== 0 ? "root" : existsSync("/dev/loop-control") ? undefined : "loop devices";
  if (lacking === undefined) return { via: "fuse", withDevice: true };
  if (wish.mount === null && wish.mkfs === null) return { via: "fuse", withDevice: false };
  throw new UllageError("attach-root", `${wish.mount === null ? "--mkfs" : "--mount"} needs ${lacking}`, {
    hint: "without it the volume becomes a file, which needs neither root nor loop devices",
  });
}

function requireFuse(): void {
  if (!existsSync("/dev/fuse")) {
    throw new UllageError("attach-tools", "there is no FUSE here: /dev/fuse is missing", {
      hint: "modprobe fuse; a container needs --device /dev/fuse and CAP_SYS_ADMIN",
    });
  }
  requireCommands({ nbdfuse: "libnbd-bin", fusermount3: "fuse3" });
}

function requireCommands(packages: Record<string, string>): void {
  for (const [command, name] of Object.entries(packages)) {
    if (commandExists(command)) continue;
    throw new UllageError("attach-tools", `${command} is missing`, { hint: `apt install ${name}` });
  }
}

const mkfsPackages = {
  ext4: { "mkfs.ext4": "e2fsprogs" },
  xfs: { "mkfs.xfs": "xfsprogs" },
} satisfies Record<NewFileSystem, Record<string, string>>;
