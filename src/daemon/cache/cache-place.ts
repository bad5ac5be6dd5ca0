import { join } from "node:path";
import { UllageError } from "../../base/errors.ts";
import type { FileSystem } from "../../base/file-system.ts";
import { replaceFile } from "../../blob/durable-file.ts";

/** A file that says that the caches of all volumes are a blob manager's, and where that listens. */
const NAME = "blobs-elsewhere";

/** Whether the volumes of a data directory have their caches in another place. */
export function isCacheElsewhere(fs: FileSystem, dataDir: string): Promise<boolean> {
  return fs.exists(join(dataDir, NAME));
}

/**
 * A data directory keeps to one cache; what is said at its first use is durable when this resolves.
 * @param blobs the socket of a blob manager; undefined: the cache is in the directory
 * @throws UllageError `cache-elsewhere` when its volumes have their caches in another place
 */
export async function demandSameCache(fs: FileSystem, dataDir: string, blobs: string | undefined): Promise<void> {
  const elsewhere = await isCacheElsewhere(fs, dataDir);
  if (blobs === undefined && elsewhere) {
    const where = (await fs.readFile(join(dataDir, NAME))).toString("utf8").trim();
    throw new UllageError("cache-elsewhere", `volumes in ${dataDir} use the cache of the blob manager at ${where}`, {
      hint: `give --blobs unix:${where}`,
    });
  }
  if (blobs === undefined) return;
  if (!elsewhere && (await fs.readdir(join(dataDir, "blobs"))).length > 0) {
    throw new UllageError("cache-elsewhere", `volumes in ${dataDir} have their caches in it`, {
      hint: "leave --blobs out, or use another --data",
    });
  }
  await replaceFile(fs, dataDir, NAME, Buffer.from(`${blobs}\n`));
}
