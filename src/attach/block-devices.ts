import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Mount } from "../base/mounts.ts";

const blockDevices = "/sys/class/block";
const SECTOR_BYTES = 512;

/** A block device over an attached volume, as the kernel knows it. */
export interface AttachedDevice {
  /** `loop3`, `nbd0` */
  name: string;
  /** `/dev/loop3` */
  path: string;
  /** bytes */
  size: number;
  /** Itself and its partitions: `/dev/loop3p1` → `259:0` */
  numbers: ReadonlyMap<string, string>;
}

/** The file behind a loop device; undefined when it is none, or free. */
export function backingFile(name: string): string | undefined {
  return readText(join(blockDevices, name, "loop/backing_file"))?.replace(/ \(deleted\)$/, "");
}

/** What the kernel's NBD client was told that stands behind a device; undefined when it is none, or free. */
export function nbdBackend(name: string): string | undefined {
  return readText(join(blockDevices, name, "backend"));
}

/** Loop devices over the file. */
export function loopDevicesOf(file: string): AttachedDevice[] {
  return devices(/^loop\d+$/, (name) => backingFile(name) === file);
}

/** Devices of the kernel's NBD client with that backend. */
export function nbdDevicesOf(backend: string): AttachedDevice[] {
  return devices(/^nbd\d+$/, (name) => nbdBackend(name) === backend);
}

function devices(pattern: RegExp, matches: (name: string) => boolean): AttachedDevice[] {
  if (!existsSync(blockDevices)) return [];
  const names = readdirSync(blockDevices).filter((name) => pattern.test(name) && matches(name));
  return names.map((name) => {
    const parts = readdirSync(join(blockDevices, name)).filter((entry) => entry.startsWith(`${name}p`));
    const numbers = [name, ...parts].flatMap((part): [string, string][] => {
      const number = readText(join(blockDevices, part, "dev"));
      return number === undefined ? [] : [[`/dev/${part}`, number]];
    });
    const size = Number(readText(join(blockDevices, name, "size")) ?? 0) * SECTOR_BYTES;
    return { name, path: `/dev/${name}`, size, numbers: new Map(numbers) };
  });
}

/** Mounts of the device or of its partitions. */
export function mountsOf(device: AttachedDevice, mounts: readonly Mount[]): Mount[] {
  const numbers = [...device.numbers.values()];
  return mounts.filter((mount) => numbers.includes(mount.device) || device.numbers.has(mount.source));
}

/** What the kernel itself does with the device: swap, device mapper, md. */
export function kernelUsersOf(device: AttachedDevice): string[] {
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
