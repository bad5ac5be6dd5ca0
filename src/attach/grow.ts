import { existsSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import { formatSize } from "../base/units.ts";
import { inspect, viewOf } from "./inspection.ts";
import { resizeKernel } from "./kernel-nbd.ts";
import { exportAsItIsNow, probeExport } from "./nbd-client/probe.ts";
import { attachRoot, Place } from "./place.ts";
import type { AttachmentView } from "./state.ts";

/**
 * Makes the device of an attached volume as large as the volume is now, while it is in use. The helper comes first: it
 * takes no request behind the end that it knows of.
 * @returns undefined: it is not attached
 * @throws UllageError `attach-fixed-size` when nbdfuse has it, `attach-broken`, `attach-busy`, `nbd-refused`,
 *   `kernel-nbd-failed`
 */
export async function grow(name: string): Promise<AttachmentView | undefined> {
  const place = new Place(attachRoot(), name);
  if (!existsSync(place.path)) return undefined;
  const lock = place.lock();
  try {
    const found = inspect(place);
    const view = viewOf(place, found);
    if (view === undefined) return undefined;
    if (view.via === "fuse") {
      throw new UllageError(
        "attach-fixed-size",
        `'${name}' is attached through nbdfuse, which can't be told of a size`,
        {
          hint: `ullage detach ${name}, then attach it again`,
        },
      );
    }
    const [device] = found.devices;
    if (view.state !== "attached" || device === undefined) {
      throw new UllageError("attach-broken", `'${name}' can't grow now: ${view.reason ?? "it has no device"}`);
    }
    const { size } = await probeExport({ kind: "unix", path: place.socket }, exportAsItIsNow);
    if (size > device.size) await resizeKernel(device.name, place.backend, size);
    const after = viewOf(place, inspect(place))!;
    if (after.size >= size) return after;
    throw new UllageError(
      "kernel-nbd-failed",
      `${device.path} has ${formatSize(after.size)} and not ${formatSize(size)}`,
    );
  } finally {
    lock.release();
  }
}
