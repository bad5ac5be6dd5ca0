import { join } from "node:path";
import type { FileSystem } from "../base/file-system.ts";
import { hasAll, inspectData, readRangeMap } from "./blob-files.ts";
import type { IndexedBlob } from "./blob-index.ts";
import type { BlobMeta } from "./blob-meta.ts";
import type { BlobStats } from "./blob.ts";
import { contentDigest, readMark } from "./content-check.ts";
import type { SourceTrouble } from "./source-trouble.ts";
import { RangeMap } from "./range-map.ts";

/** A blob for those who want to see it, and not its bytes. */
export interface BlobLook {
  meta: BlobMeta;
  /** bytes of ready units */
  readyBytes: number;
  /** bytes that the cache file takes on disk, as `du` counts them */
  diskBytes: number;
  /** ids of volumes that can't do without it */
  pins: string[];
  /** how often it is in use now; 0: it is closed */
  users: number;
  /** since it was made */
  stats: Readonly<BlobStats>;
  /** when somebody used it last; ms since 1970, 0: unknown */
  usedAt: number;
  /** what the last request to the source came to, if that was nothing good */
  trouble: Pick<SourceTrouble, "error" | "at"> | undefined;
  /** its bytes are those of the digest that pins them; null: there is none of what the cache file has */
  verified: boolean | null;
}

/** A blob that nobody uses, from its files, none of which is changed. @throws IoError */
export async function lookAtFiles(
  fs: FileSystem,
  dir: string,
  { meta, total, usedAt }: IndexedBlob,
): Promise<BlobLook> {
  const pins = await fs.readdir(join(dir, "pins"));
  const found = await inspectData(fs, dir, meta, "read");
  try {
    const map = await readRangeMap(fs, dir, meta, found);
    const bits = map !== undefined && "bits" in map ? map.bits : undefined;
    const mark = { inode: found.data?.binding().inode ?? 0, complete: hasAll(meta, bits) };
    const verified = contentDigest(meta) === undefined ? null : (await readMark(fs, dir, meta, mark)) === "good";
    const { readyBytes } = new RangeMap(meta.size, meta.unitBytes, bits);
    const diskBytes = found.data?.allocated() ?? 0;
    return { meta, readyBytes, diskBytes, pins, users: 0, stats: total, usedAt, trouble: undefined, verified };
  } finally {
    await found.data?.close();
  }
}
