import { existsSync } from "node:fs";
import { UllageError } from "../base/errors.ts";
import { inspect, viewOf } from "./inspection.ts";
import { attachRoot, Place } from "./place.ts";
import type { AttachmentView } from "./state.ts";
import { tearDown } from "./tear-down.ts";

/**
 * Takes a volume away from this host: unmounts it, removes the device, ends nbdfuse and the helper. Works on whatever is
 * left of an attachment.
 * @param onWait it waits for the daemon: what is still to be written needs it
 * @returns what was attached; undefined: nothing was
 * @throws UllageError `attach-in-use` with who uses it, and then nothing was changed; `detach-lossy` when it is detached
 *   and writes may be missing; `attach-busy`
 */
export async function detach(
  name: string,
  onWait: (view: AttachmentView) => void,
): Promise<AttachmentView | undefined> {
  const place = new Place(attachRoot(), name);
  if (!existsSync(place.path)) return undefined;
  const lock = place.lock();
  try {
    const view = viewOf(place, inspect(place));
    if (view === undefined) {
      place.remove();
      return undefined;
    }
    if (view.state === "reconnecting") onWait(view);
    const losses = await tearDown(place);
    if (losses.length === 0) return view;
    throw new UllageError("detach-lossy", `'${name}' is detached, but ${losses.join("; ")}`, {
      hint: "check the file system (fsck) at the next attach, and the daemon's log",
    });
  } finally {
    lock.release();
  }
}
