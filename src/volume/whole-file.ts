import { dirname } from "node:path";
import type { File } from "../base/file-system.ts";
import type { VolumeEnvironment } from "./types.ts";

/**
 * Makes a file that is complete or absent, whatever crash comes: temporary file, fsync, rename, fsync of the directory.
 * A failure removes the temporary file.
 * @param before what must be durable before the file gets its name
 */
export async function writeWhole<T>(
  env: VolumeEnvironment,
  path: string,
  write: (file: File) => Promise<T>,
  before?: Promise<unknown>,
): Promise<T> {
  const temporary = `${path}.tmp`;
  await env.fs.unlink(temporary);
  const file = await env.fs.open(temporary, "create");
  let result: T;
  try {
    result = await write(file);
    await file.datasync();
    await before;
  } catch (error) {
    await file.close();
    await env.fs.unlink(temporary);
    throw error;
  }
  await file.close();
  await env.fs.rename(temporary, path);
  await env.fs.syncDirectory(dirname(path));
  return result;
}
