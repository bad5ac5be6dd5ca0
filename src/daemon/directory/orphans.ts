import { dirname, join } from "node:path";
import type { VolumeEnvironment } from "../../volume/types.ts";

/** Bytes; leaves room for the number of a copy. A character takes up to four. */
const longestName = 240;

/**
 * Moves what nothing refers to out of the way, to orphans/, where nothing reads it and nobody deletes it but people.
 * @param paths below the data directory
 * @returns where each is now, below the data directory; durable
 */
export async function moveToOrphans(
  { fs, dataDir }: Pick<VolumeEnvironment, "fs" | "dataDir">,
  paths: readonly string[],
): Promise<string[]> {
  const moved: string[] = [];
  for (const path of paths) {
    const name = path.replaceAll("/", "-");
    const plain = join("orphans", Buffer.byteLength(name) <= longestName ? name : name.slice(0, longestName / 4));
    let free = plain;
    for (let copy = 2; await fs.exists(join(dataDir, free)); copy++) free = `${plain}.${copy}`;
    await fs.rename(join(dataDir, path), join(dataDir, free));
    moved.push(free);
  }
  // First where they are, then where they are not any more.
  const changed = paths.length === 0 ? [] : ["orphans", ...new Set(paths.map((path) => dirname(path)))];
  for (const name of changed) await fs.syncDirectory(join(dataDir, name));
  return moved;
}
