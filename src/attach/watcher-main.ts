import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { UllageError } from "../base/errors.ts";
import { inspect } from "./inspection.ts";
import { disconnectKernel } from "./kernel-nbd.ts";
import { Place } from "./place.ts";

/*
 * `watcher-main ROOT NAME`: what the watcher turns into when the helper of a place was killed (watcher.ts). Disconnects the
 * place's device, so that what waits for it fails.
 */

/** An `attach` that finds the attachment broken is short; a `detach` disconnects by itself. */
const ATTEMPTS = 60;
const PAUSE_MS = 1_000;

const [root = "", name = ""] = process.argv.slice(2);
const place = new Place(root, name);
for (let attempt = 0; attempt < ATTEMPTS && existsSync(place.path); attempt++) {
  try {
    const lock = place.lock();
    const { helperAlive, devices } = inspect(place);
    for (const device of helperAlive ? [] : devices) {
      if (device.name.startsWith("nbd")) await disconnectKernel(device.name);
    }
    lock.release();
    break;
  } catch (error) {
    if (!(error instanceof UllageError && error.code === "attach-busy")) throw error;
    await sleep(PAUSE_MS);
  }
}
