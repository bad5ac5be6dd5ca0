import { describeError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { poisonPath, runtimePoisonPath } from "./paths.ts";
import type { VolumeEnvironment } from "./types.ts";

/*
 * The poison mark: a sync failed, so what the page cache shows may not be on the disk, and the kernel says so only once.
 * It outlives restarts, in two places in case the failing disk takes no new file (durability rule 6).
 */

export async function markPoisoned(env: VolumeEnvironment, dir: string, id: string, reason: string): Promise<void> {
  for (const { path, parent } of places(env, dir, id)) {
    try {
      const text = IoBuffer.from(Buffer.from(`${reason}\n`));
      const file = await env.fs.open(path, "create");
      try {
        await file.write(text, 0, text.length, 0);
        await file.datasync();
      } finally {
        await file.close();
      }
      await env.fs.syncDirectory(parent);
    } catch (error) {
      env.log("error", `can't write the poison mark ${path}: ${describeError(error)}`);
    }
  }
}

/** The reason on the mark, or undefined when there is none. */
export async function readPoison(env: VolumeEnvironment, dir: string, id: string): Promise<string | undefined> {
  for (const { path } of places(env, dir, id)) {
    if (!(await env.fs.exists(path))) continue;
    const text = (await env.fs.readFile(path)).toString("utf8").trim();
    return text === "" ? "a sync failed" : text;
  }
  return undefined;
}

export async function clearPoison(env: VolumeEnvironment, dir: string, id: string): Promise<void> {
  for (const { path, parent } of places(env, dir, id)) {
    if (!(await env.fs.exists(path))) continue;
    await env.fs.unlink(path);
    await env.fs.syncDirectory(parent);
  }
}

/** The other file system first: it is not the one that fails. */
function places(env: VolumeEnvironment, dir: string, id: string): { path: string; parent: string }[] {
  const beside = { path: poisonPath(dir), parent: dir };
  const { runtimeDir } = env;
  return runtimeDir === undefined
    ? [beside]
    : [{ path: runtimePoisonPath(runtimeDir, id), parent: runtimeDir }, beside];
}
