import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { UllageError } from "../base/errors.ts";
import { backingFile, nbdBackend } from "./block-devices.ts";
import { listMounts, type Mount } from "../base/mounts.ts";

/** Loop devices over files on loop devices …: deeper than anybody stacks them. */
const MAX_DEPTH = 16;

/**
 * Durability rule 28: a daemon whose data lies on a disk that comes from Ullage would, when memory is short, wait for
 * write-back that has to come through it. And a mount over the data would hide it.
 * @throws UllageError `self-hosted`, `mount-hides-data`
 */
export function refuseSelfHosting(dataDirectory: string, mount: string | null): void {
  const served = servedBy(dataDirectory, listMounts(), 0);
  if (served !== undefined) {
    throw new UllageError(
      "self-hosted",
      `the daemon's data directory ${dataDirectory} lies on ${served}, a disk of Ullage's own`,
      {
        hint: "keep it on a disk of the machine: a server must not have to wait for itself",
      },
    );
  }
  if (mount === null || !`${dataDirectory}/`.startsWith(mount === "/" ? "/" : `${mount}/`)) return;
  throw new UllageError("mount-hides-data", `a mount on ${mount} would hide the daemon's data in ${dataDirectory}`, {
    hint: "mount it elsewhere",
  });
}

/** The attached disk (`ullage:web1`) that a path lies on, however many devices are in between. */
function servedBy(path: string, mounts: readonly Mount[], depth: number): string | undefined {
  if (depth > MAX_DEPTH) return undefined;
  const mount = mountOf(path, mounts);
  if (mount === undefined) return undefined;
  if (mount.type === "fuse.ullage") return mount.source;
  const upper = mount.options.find((option) => option.startsWith("upperdir="))?.slice("upperdir=".length);
  if (upper !== undefined && existsSync(upper)) return servedBy(upper, mounts, depth + 1);
  const device = blockDeviceOf(mount);
  return device === undefined ? undefined : deviceServedBy(device, mounts, depth);
}

/** @param device its directory in /sys */
function deviceServedBy(device: string, mounts: readonly Mount[], depth: number): string | undefined {
  if (depth > MAX_DEPTH) return undefined;
  if (existsSync(join(device, "partition"))) return deviceServedBy(dirname(device), mounts, depth + 1);
  const name = device.slice(device.lastIndexOf("/") + 1);
  const backend = nbdBackend(name);
  if (backend?.startsWith("ullage:") === true) return backend.split(" ")[0];
  const behind = backingFile(name);
  if (behind !== undefined) return servedBy(behind, mounts, depth + 1);
  const slaves = join(device, "slaves");
  if (!existsSync(slaves)) return undefined;
  for (const slave of readdirSync(slaves)) {
    const served = deviceServedBy(realpathSync(join(slaves, slave)), mounts, depth + 1);
    if (served !== undefined) return served;
  }
  return undefined;
}

/** The last one mounted on the longest of the paths above. */
function mountOf(path: string, mounts: readonly Mount[]): Mount | undefined {
  let real: string;
  try {
    real = realpathSync(path);
  } catch {
    real = path; // it may not be ours to look at
  }
  const above = mounts.filter(
    (mount) => mount.path === "/" || real === mount.path || real.startsWith(`${mount.path}/`),
  );
  return above.reduce<Mount | undefined>(
    (best, mount) => (best === undefined || mount.path.length >= best.path.length ? mount : best),
    undefined,
  );
}

/** btrfs and the like have a number that belongs to no device: then the source tells. */
function blockDeviceOf({ device, source }: Mount): string | undefined {
  for (const number of [device, deviceNumber(source)]) {
    const path = `/sys/dev/block/${number}`;
    if (number !== undefined && existsSync(path)) return realpathSync(path);
  }
  return undefined;
}

function deviceNumber(path: string): string | undefined {
  if (!path.startsWith("/dev/")) return undefined;
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || !stat.isBlockDevice()) return undefined;
  const name = realpathSync(path).slice("/dev/".length);
  try {
    return readFileSync(`/sys/class/block/${name}/dev`, "utf8").trim();
  } catch {
    return undefined;
  }
}
