import { join } from "node:path";
import type { FileSystem } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";

/**
 * Replaces or creates a small file as a whole: when it resolves, the new content is durable; after a crash at any
 * moment either the old content is there or the new.
 */
export async function replaceFile(fs: FileSystem, dir: string, name: string, content: Uint8Array): Promise<void> {
  const temporary = join(dir, `${name}.tmp`);
  await fs.unlink(temporary); // of a crashed predecessor
  const file = await fs.open(temporary, "create");
  try {
    if (content.length > 0) await file.write(IoBuffer.from(content), 0, content.length, 0);
    await file.datasync();
  } finally {
    await file.close();
  }
  await fs.rename(temporary, join(dir, name));
  await fs.syncDirectory(dir);
}

/**
 * Writes over a small file that has as many bytes, durably, and takes no space for it. A crash in the middle leaves a mix.
 * @returns false when there is no such file
 */
export async function overwriteFile(fs: FileSystem, path: string, content: Uint8Array): Promise<boolean> {
  if (!(await fs.exists(path))) return false;
  const file = await fs.open(path, "write");
  try {
    await file.write(IoBuffer.from(content), 0, content.length, 0);
    await file.datasync();
  } finally {
    await file.close();
  }
  return true;
}
