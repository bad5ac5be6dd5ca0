import { fork } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { dirname } from "node:path";
import { UllageError } from "../base/errors.ts";
import type { Place } from "./place.ts";
import { commandEnvironment, programBeside } from "./run-command.ts";
import type { HelperMessage } from "./state.ts";

/**
 * Starts the helper of a place in a session of its own and resolves when the file is there.
 * @throws UllageError as the helper met it
 */
export async function startHelper(place: Place): Promise<void> {
  const log = openSync(place.log, "a", 0o600);
  const helper = fork(programBeside("helper-main", import.meta.url), [dirname(place.path), place.name], {
    cwd: "/",
    env: commandEnvironment,
    detached: true,
    stdio: ["ignore", log, log, "ipc"],
  });
  closeSync(log);
  const message = await new Promise<HelperMessage>((resolve, reject) => {
    helper.once("message", (value) => resolve(value as HelperMessage));
    helper.once("error", reject);
    helper.once("exit", (code, signal) =>
      reject(
        new UllageError("helper-failed", `the helper process ended with ${signal ?? code}`, {
          hint: `its log is ${place.log}`,
        }),
      ),
    );
  });
  if (!("ready" in message)) {
    const { code, message: text, hint } = message;
    throw new UllageError(code, text, hint === undefined ? {} : { hint });
  }
  if (helper.connected) helper.disconnect();
  helper.unref();
}
