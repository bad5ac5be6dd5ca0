import { type AttachedDevice, loopDevicesOf, mountsOf, nbdDevicesOf } from "./block-devices.ts";
import { listMounts, type Mount } from "../base/mounts.ts";
import type { Place } from "./place.ts";
import { isAlive } from "./processes.ts";
import type { AttachmentState, AttachmentView, AttachRecord, HelperStatus, Via } from "./state.ts";

/** An attachment as it really is: its files say what should be there, the kernel what is. */
export interface Inspection {
  via: Via;
  record: AttachRecord | undefined;
  status: HelperStatus | undefined;
  helperAlive: boolean;
  nbdfuseAlive: boolean;
  fuseMounted: boolean;
  devices: AttachedDevice[];
  /** of the devices */
  mounts: Mount[];
}

export function inspect(place: Place): Inspection {
  const record = place.readRecord();
  const status = place.readStatus();
  const mounts = listMounts();
  const kernels = nbdDevicesOf(place.backend);
  const devices = [...kernels, ...loopDevicesOf(place.file)];
  return {
    via: record?.via ?? (kernels.length > 0 ? "kernel" : "fuse"),
    record,
    status,
    helperAlive: status !== undefined && isAlive(status.helper),
    nbdfuseAlive: status?.nbdfuse !== undefined && status.nbdfuse !== null && isAlive(status.nbdfuse),
    fuseMounted: mounts.some(({ path }) => path === place.fuse),
    devices,
    mounts: devices.flatMap((device) => mountsOf(device, mounts)),
  };
}

/** Nothing is left of it but files. */
export function isGone({ helperAlive, nbdfuseAlive, fuseMounted, devices }: Inspection): boolean {
  return !helperAlive && !nbdfuseAlive && !fuseMounted && devices.length === 0;
}

export function isReadOnly({ record, status }: Inspection): boolean {
  return status?.readOnly === true || record?.readOnly === true;
}

/** @returns undefined when nothing is left but files */
export function viewOf(place: Place, found: Inspection): AttachmentView | undefined {
  if (isGone(found)) return undefined;
  const { record, status } = found;
  const { state, reason } = stateOf(found);
  return {
    name: record?.name ?? place.name,
    exportName: record?.exportName ?? place.name,
    state,
    reason,
    via: found.via,
    device: found.devices[0]?.path ?? null,
    file: found.via === "fuse" ? place.file : null,
    mounts: found.mounts.map(({ path }) => path),
    size: found.devices[0]?.size ?? status?.size ?? 0,
    readOnly: isReadOnly(found),
    since: record?.since ?? status?.since ?? "",
    dataDirectory: record?.dataDirectory ?? "",
    helperPid: found.helperAlive ? status!.helper.pid : null,
  };
}

/** @returns what serves it, as a whole */
export function stateOf(found: Inspection): { state: AttachmentState; reason: string | null } {
  const { via, status, helperAlive, nbdfuseAlive, fuseMounted, devices } = found;
  if (!helperAlive && status?.state !== "closed") return { state: "broken", reason: "the helper process is gone" };
  if (via === "kernel" && (!helperAlive || devices.length === 0)) {
    return { state: "broken", reason: "the kernel's connection to the helper process is gone" };
  }
  if (via === "fuse" && (!helperAlive || !nbdfuseAlive || !fuseMounted)) {
    return { state: "broken", reason: "nbdfuse is gone" };
  }
  const { state, reason } = status!;
  if (state === "connected") return { state: "attached", reason: null };
  return state === "closed" ? { state: "broken", reason: "the helper process is ending" } : { state, reason };
}
