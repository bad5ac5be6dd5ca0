import { mkdir } from "node:fs/promises";
import { join } from "node:path";

/**
 * A directory on another disk than the data, that lasts until the next boot: second place for marks that must not get
 * lost when the data's disk takes nothing any more. @returns undefined when there is none
 */
export async function runtimeDirectory(env: NodeJS.ProcessEnv = process.env): Promise<string | undefined> {
  const user = env["XDG_RUNTIME_DIR"];
  const path = env["RUNTIME_DIRECTORY"] ?? (user === undefined ? "/run/ullage" : join(user, "ullage"));
  try {
    await mkdir(path, { recursive: true, mode: 0o700 });
    return path;
  } catch {
    return undefined;
  }
}
