import { join } from "node:path";
import type { FileSystem } from "../base/file-system.ts";
import type { FoundData } from "./blob-files.ts";
import type { BlobMeta } from "./blob-meta.ts";
import { replaceFile } from "./durable-file.ts";
import { decodeRangeMap, encodeRangeMap, rangeMapInode } from "./range-map-file.ts";

/*
 * A data directory that was copied or restored as a whole (cp -a, rsync, tar, while nothing ran) has new inode numbers,
 * and so its range maps are not believed: which bytes of a copy are there is anybody's guess. Where the source is gone,
 * the copy may be all there is. Then an operator who knows that it is complete can say so, through `repair`.
 */

/** @returns the bits of a map that fits this blob in everything but the data file's inode number */
export async function adoptableBits(
  fs: FileSystem,
  dir: string,
  meta: BlobMeta,
  found: FoundData,
): Promise<Uint8Array | undefined> {
  if (found.data === undefined || found.problem !== undefined) return undefined;
  for (const name of ["map", "map.rejected"]) {
    const path = join(dir, name);
    if (!(await fs.exists(path))) continue;
    const file = await fs.readFile(path);
    const inode = rangeMapInode(file);
    if (inode === undefined || inode === found.data.binding().inode) continue;
    const map = decodeRangeMap(file, path, meta, inode);
    if ("bits" in map) return map.bits;
  }
  return undefined;
}

/** Takes the bits for the data file that is there now. Durable when it resolves. */
export async function adoptMap(fs: FileSystem, dir: string, meta: BlobMeta, bits: Uint8Array): Promise<void> {
  const data = await fs.open(join(dir, "data"), "write");
  try {
    await data.datasync();
    await replaceFile(fs, dir, "map", encodeRangeMap(meta, data.binding().inode, bits));
  } finally {
    await data.close();
  }
  await fs.unlink(join(dir, "map.rejected"));
  await fs.syncDirectory(dir);
}
