import { readdirSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import { runCommand, tryCommand } from "./run-command.ts";

export type NewFileSystem = "ext4" | "xfs";

/** What lies on a device, by its first and last bytes (blkid --probe). */
export interface DeviceContent {
  /** `ext4`, `LVM2_member`, …; "": nothing that is known */
  type: string;
  /** `dos`, `gpt`; "": no partition table */
  partitions: string;
}

/** @throws UllageError `blkid-failed` when the device can't be read, or looks like several things at once */
export async function contentOf(device: string): Promise<DeviceContent> {
  const { code, stdout, stderr } = await tryCommand("blkid", "--probe", "--output", "export", device);
  const nothingFound = 2;
  if (code !== 0 && (code !== nothingFound || stderr !== "")) {
    const ambivalent = code === 8 ? "it looks like several things at once" : stderr || `blkid ended with ${code}`;
    throw new UllageError("blkid-failed", `what lies on ${device} can't be told: ${ambivalent}`);
  }
  const value = (key: string): string => new RegExp(`^${key}=(.*)$`, "m").exec(stdout)?.[1] ?? "";
  return { type: value("TYPE"), partitions: value("PTTYPE") };
}

/**
 * Makes a file system where there is nothing at all; leaves one of the same kind alone.
 * @throws UllageError `not-empty` when there is something else
 */
export async function makeFileSystem(device: string, kind: NewFileSystem): Promise<void> {
  const { type, partitions } = await contentOf(device);
  if (type === kind) return;
  const found = type || (partitions === "" ? "" : `a ${partitions} partition table`);
  if (found !== "") {
    throw new UllageError("not-empty", `${device} has ${found} on it: no ${kind} is made over it`, {
      hint: "leave --mkfs away to use what is there",
    });
  }
  await runCommand(`mkfs.${kind}`, "-q", device);
}

/** @throws UllageError `no-file-system`, `mount-failed` */
export async function mountDevice(device: string, directory: string, readOnly: boolean): Promise<void> {
  const { type, partitions } = await contentOf(device);
  if (type === "") throw noFileSystem(device, partitions);
  // A clone has the UUID of what it was cloned from, which XFS otherwise mounts only once.
  const options = [...(readOnly ? ["ro"] : []), ...(type === "xfs" ? ["nouuid"] : [])];
  const { code, stderr } = await tryCommand("mount", ...options.flatMap((option) => ["-o", option]), device, directory);
  if (code === 0) return;
  const skip = { ext4: "noload", ext3: "noload", xfs: "norecovery,nouuid" }[type];
  const hint =
    readOnly && skip !== undefined
      ? `its journal may have to be replayed, which can't be on a read-only device: attach without --mount, then \`mount -o ro,${skip} DEVICE ${directory}\``
      : undefined;
  throw new UllageError(
    "mount-failed",
    `the ${type} on ${device} can't be mounted: ${stderr.replace(/\s*\n\s*/g, "; ")}`,
    hint === undefined ? {} : { hint },
  );
}

function noFileSystem(device: string, partitions: string): UllageError {
  if (partitions === "") {
    return new UllageError("no-file-system", `there is no file system on ${device}`, {
      hint: "give --mkfs ext4 or --mkfs xfs to make one",
    });
  }
  const name = device.slice("/dev/".length);
  const parts = readdirSync(`/sys/class/block/${name}`).filter((entry) => entry.startsWith(`${name}p`));
  return new UllageError("no-file-system", `${device} has a partition table (${partitions}), no file system`, {
    hint:
      parts.length === 0
        ? "attach without --mount and look at it with fdisk -l"
        : `attach without --mount, then mount one of its partitions: ${parts.map((part) => `/dev/${part}`).join(", ")}`,
  });
}
