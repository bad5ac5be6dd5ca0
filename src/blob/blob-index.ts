import { dirname, basename } from "node:path";
import { describeError } from "../base/errors.ts";
import type { FileSystem } from "../base/file-system.ts";
import { blobMetaOf, type BlobMeta } from "./blob-meta.ts";
import type { BlobStats } from "./blob.ts";
import { replaceFile } from "./durable-file.ts";

/*
 * What is known of all blobs of a cache, in one file, <data>/blobs.json, so that a cache of thousands opens at once. It is a
 * convenience and never believed against a blob's directory: what meta.json says never changes, so an entry whose
 * directory is there is right, and a directory without an entry is looked at. When the file is missing or damaged every
 * directory is. Times and figures in it may lag behind; eviction looks again before it takes anything.
 */

/** What is remembered of a blob besides what it is. */
export interface BlobHistory {
  /** When somebody used it last, ms since 1970; decides nothing but the order of eviction (durability rule 34). */
  usedAt: number;
  /** Bytes that its cache file took on disk then. */
  diskBytes: number;
  /** Since it was made; see `BlobStats`. */
  total: BlobStats;
}

export interface IndexedBlob extends BlobHistory {
  meta: BlobMeta;
}

export const indexName = "blobs.json";

const FORMAT = "ullage-blob-index";
const VERSION = 1;

/** @returns by id; empty when there is no index that can be used */
export async function readBlobIndex(
  fs: FileSystem,
  path: string,
  log: (level: "warn", message: string) => void,
): Promise<Map<string, IndexedBlob>> {
  const blobs = new Map<string, IndexedBlob>();
  if (!(await fs.exists(path))) return blobs;
  try {
    const raw = JSON.parse((await fs.readFile(path)).toString("utf8")) as {
      format: string;
      version: number;
      blobs: unknown[];
    };
    if (raw.format !== FORMAT || raw.version !== VERSION) return blobs;
    for (const entry of raw.blobs) {
      const { meta, usedAt, diskBytes, total } = entry as IndexedBlob;
      const checked = blobMetaOf(meta, path);
      blobs.set(checked.id, { meta: checked, usedAt, diskBytes, total });
    }
    return blobs;
  } catch (error) {
    log("warn", `${path} is not used, and made anew: ${describeError(error)}`);
    return new Map();
  }
}

export async function writeBlobIndex(fs: FileSystem, path: string, blobs: Iterable<IndexedBlob>): Promise<void> {
  const all = [...blobs];
  if (all.length === 0) {
    await fs.unlink(path);
    return;
  }
  const text = JSON.stringify({ format: FORMAT, version: VERSION, blobs: all });
  await replaceFile(fs, dirname(path), basename(path), Buffer.from(text));
}

/** Of a blob that was just made, or of which nothing is remembered. */
export const noHistory = (): BlobHistory => ({
  usedAt: 0,
  diskBytes: 0,
  total: { foregroundBytes: 0, readaheadBytes: 0, backgroundBytes: 0, requests: 0, errors: 0 },
});
