import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Mount } from "./mounts.ts";

const blockDevices = "/sys/class/block";

/** A loop device with a file behind it, as the kernel knows it. */
export interface LoopDevice {
  /** `/dev/loop3` */
  path: string;
  /** Itself and its partitions: `/dev/loop3p1` → `259:0` */
  numbers: ReadonlyMap<string, string>;
}

/** The file behind a loop device; undefined when it is none, or free. */
export function backingFile(name: string): string | undefined {
  return readText(join(blockDevices, name, "loop/backing_file"))?.replace(/ \(deleted\)$/, "");
}

/** Loop devices over the file. */
export function loopDevicesOf(file: string): LoopDevice[] {
  const names = readdirSync(blockDevices).filter((name) => /^loop\d+$/.test(name) && backingFile(name) === file);
  return names.map((name) => {
    const parts = readdirSync(join(blockDevices, name)).filter((entry) => entry.startsWith(`${name}p`));
    const numbers = [name, ...parts].map((part) => [`/dev/${part}`, readText(join(blockDevices, part, "dev")) ?? ""]);
    return { path: `/dev/${name}`, numbers: new Map(numbers as [string, string][]) };
  });
}

/** Mounts of the device or of its partitions. */
export function mountsOf(device: LoopDevice, mounts: readonly Mount[]): Mount[] {
  const numbers = [...device.numbers.values()];
  return mounts.filter((mount) => numbers.includes(mount.device) || device.numbers.has(mount.source));
}

/** What the kernel itself does with the device: swap, device mapper, md. */
export function kernelUsersOf(device: LoopDevice): string[] {
  const swaps = readText("/proc/swaps") ?? "";
  const users: string[] = [];
  for (const path of device.numbers.keys()) {
    const holders = join(blockDevices, path.slice("/dev/".length), "holders");
    if (existsSync(holders)) users.push(...readdirSync(holders).map((name) => `/dev/${name}`));
    if (new RegExp(`^${path}\\s`, "m").test(swaps)) users.push(`swap on ${path}`);
  }
  return users;
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8").trim();
  } catch {
    return undefined;
  }
}
