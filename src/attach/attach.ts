import { realpath, stat } from "node:fs/promises";
import { describeError, UllageError } from "../base/errors.ts";
import type { ListenAddress } from "../export/listen-address.ts";
import { makeFileSystem, mountDevice, type NewFileSystem } from "./file-system.ts";
import { inspect, viewOf } from "./inspection.ts";
import { listAttachments } from "./list.ts";
import { listMounts } from "../base/mounts.ts";
import { attachRoot, Place } from "./place.ts";
import { runCommand } from "./run-command.ts";
import { refuseSelfHosting } from "./self-hosting.ts";
import { startHelper } from "./start-helper.ts";
import type { AttachmentView, Via } from "./state.ts";
import { tearDown } from "./tear-down.ts";
import { chooseWay } from "./way.ts";

export interface AttachRequest {
  /** the volume's name, or that of another export: the attachment's name from here on */
  name: string;
  /** the same for the daemon, so that it finds it after a rename too */
  exportName: string;
  /** absolute; null: don't mount */
  mount: string | null;
  /** null: use what is there */
  mkfs: NewFileSystem | null;
  readOnly: boolean;
  /** null: the kernel's NBD client where it can be used, else nbdfuse */
  via: Via | null;
  /** How long requests wait for a daemon that is away. */
  timeoutMs: number;
  /** Where the daemon, on this machine, serves it, and what from. */
  address: ListenAddress;
  dataDirectory: string;
}

/**
 * Makes a volume a block device of this host (for whom may not: a file), and mounts it if asked to. What was begun is
 * taken back when a step fails. Asked again for what is there already, it says so.
 * @throws UllageError `attach-tools`, `attach-root`, `mount-point`, `self-hosted`, `mount-hides-data`, `attach-busy`,
 *   `already-attached`, `attach-broken`, `nbd-refused`, `nbd-unreachable`, `nbdfuse-failed`, `kernel-nbd-failed`,
 *   `not-empty`, `not-writable`, `no-file-system`, `mount-failed`
 */
export async function attach(request: AttachRequest): Promise<AttachmentView> {
  const mount = request.mount === null ? null : await mountPoint(request.mount);
  refuseSelfHosting(request.dataDirectory, mount);
  const place = new Place(attachRoot(), request.name);
  const lock = place.lock();
  try {
    const existing = current(place);
    refuseTwice(request);
    if (existing === undefined) await begin(place, { ...request, mount });
    else await complete(place, { ...request, mount }, existing);
    return current(place)!;
  } finally {
    lock.release();
  }
}

/**
 * A rename frees a name and leaves the attachment alone: neither may the volume be attached once more under its new name,
 * nor does its old one stand for whatever is called so now.
 * @throws UllageError `already-attached`
 */
function refuseTwice({ name, exportName, dataDirectory }: AttachRequest): void {
  for (const view of listAttachments()) {
    if (view.dataDirectory !== dataDirectory) continue;
    const [sameName, sameDisk] = [view.name === name, view.exportName === exportName];
    if (sameName === sameDisk) continue;
    const what = sameDisk
      ? `'${name}' is already attached, as '${view.name}': that was its name then`
      : `what is attached as '${name}' is another volume, which had that name before`;
    throw new UllageError("already-attached", what, { hint: `ullage detach ${view.name}, then attach it again` });
  }
}

function current(place: Place): AttachmentView | undefined {
  return viewOf(place, inspect(place));
}

async function begin(place: Place, request: AttachRequest): Promise<void> {
  const { name, exportName, dataDirectory, address, readOnly, timeoutMs } = request;
  place.clear(); // what a reboot or a kill has left
  try {
    const { via, withDevice } = await chooseWay(request);
    const since = new Date().toISOString();
    place.writeRecord({ name, exportName, dataDirectory, address, readOnly, timeoutMs, via, since });
    await startHelper(place);
    if (!withDevice) return;
    const { readOnly: unwritable, device } = current(place)!;
    await use(request, device ?? (await loopDevice(place.file, unwritable)), unwritable);
  } catch (error) {
    const losses = await tearDown(place).catch((failure: unknown) => [describeError(failure)]);
    if (losses.length === 0 || !(error instanceof UllageError)) throw error;
    throw new UllageError(error.code, `${error.message} (and it could not be taken back: ${losses.join("; ")})`, {
      hint: `ullage detach ${name}`,
      cause: error.cause,
    });
  }
}

function loopDevice(file: string, readOnly: boolean): Promise<string> {
  const options = ["--find", "--show", "--partscan", "--direct-io=on", ...(readOnly ? ["--read-only"] : [])];
  return runCommand("losetup", ...options, file);
}

/** It is attached: what was asked for must be the same, and a mount may still be missing. */
async function complete(place: Place, request: AttachRequest, existing: AttachmentView): Promise<void> {
  const { name } = request;
  const hint = `ullage detach ${name}, then attach it again`;
  if (existing.state === "broken") {
    throw new UllageError("attach-broken", `'${name}' is attached and broken: ${existing.reason}`, { hint });
  }
  const differs = difference(request, existing, place.readRecord()?.readOnly === true);
  if (differs !== undefined) {
    throw new UllageError("already-attached", `'${name}' is already attached ${differs}`, { hint });
  }
  if (existing.device !== null && existing.mounts.length === 0) await use(request, existing.device, existing.readOnly);
}

/** How what is there differs from what is asked for. */
function difference(request: AttachRequest, existing: AttachmentView, readOnly: boolean): string | undefined {
  const { mounts, dataDirectory } = existing;
  if (dataDirectory !== request.dataDirectory) return `from the daemon of ${dataDirectory}`;
  if (request.via !== null && request.via !== existing.via) return `through ${existing.via}`;
  if (readOnly !== request.readOnly) return readOnly ? "read-only" : "read-write";
  if (request.mount === null || mounts.length === 0 || mounts.includes(request.mount)) return undefined;
  return `and mounted at ${mounts.join(", ")}`;
}

/** Everything that can be refused is, before anything is written to the device. */
async function use({ name, mkfs, mount }: AttachRequest, device: string, readOnly: boolean): Promise<void> {
  if (mkfs !== null && readOnly)
    throw new UllageError("not-writable", `'${name}' is read-only: no ${mkfs} can be made`);
  const there = listMounts().findLast(({ path }) => path === mount);
  if (there !== undefined) {
    throw new UllageError("mount-point", `${there.source} is already mounted on ${mount}`, {
      hint: "unmount it first, or choose another directory",
    });
  }
  if (mkfs !== null) await makeFileSystem(device, mkfs);
  if (mount !== null) await mountDevice(device, mount, readOnly);
}

/** @returns the real path, as the kernel lists mounts @throws UllageError `mount-point` */
async function mountPoint(path: string): Promise<string> {
  const real = await realpath(path).catch((error: NodeJS.ErrnoException) => {
    throw new UllageError("mount-point", `nothing can be mounted on ${path}: ${error.code}`, {
      hint: `mkdir -p ${path}`,
    });
  });
  if ((await stat(real)).isDirectory()) return real;
  throw new UllageError("mount-point", `nothing can be mounted on ${path}: it is not a directory`);
}
