import { setIoFlusher } from "../base/posix.ts";
import { errorMessage, Helper } from "./helper.ts";
import { Place } from "./place.ts";
import type { HelperMessage } from "./state.ts";

/*
 * The helper process: `helper-main ROOT NAME`, started by `attach`, which has written the record and listens on the IPC
 * channel until the file is there. After that nothing ties the helper to whoever started it.
 *
 * Signals that ask for an end are not heeded: the end comes when the file is unmounted (`ullage detach`). At a shutdown of
 * the machine they come before the file systems are unmounted, which still need us.
 */
setIoFlusher(); // durability rule 28; before the first thread is started
process.stderr.on("error", () => undefined); // the log's disk is full: no reason to end
for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) process.on(signal, () => undefined);

const [root = "", name = ""] = process.argv.slice(2);
process.title = `ullage attach ${name}`;
const place = new Place(root, name);
let ready = false;

/** Resolves when the message is on its way. */
function tell(message: HelperMessage): Promise<void> {
  return new Promise((resolve) => {
    if (process.connected && process.send !== undefined) process.send(message, undefined, undefined, () => resolve());
    else resolve();
  });
}

// Whoever started us is gone before it heard that we are ready: nobody would know of us.
process.on("disconnect", () => {
  if (!ready) process.kill(process.pid, "SIGKILL");
});

try {
  const record = place.readRecord();
  if (record === undefined) throw new Error(`${place.path} has no record`);
  await new Helper(place, record).run(() => {
    ready = true;
    void tell({ ready: true }).then(() => {
      if (process.connected) process.disconnect?.();
    });
  });
  process.exit(0);
} catch (error) {
  if (!ready) await tell(errorMessage(error));
  process.stderr.write(`${String(error instanceof Error ? error.stack : error)}\n`);
  process.exit(1);
}
