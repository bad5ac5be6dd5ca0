import { basename, join } from "node:path";
import { describeError } from "../base/errors.ts";
import { adoptableBits, adoptMap } from "./adopt-map.ts";
import type { FileSystem } from "../base/file-system.ts";
import { isId } from "../base/ids.ts";
import {
  blobTemporaryNames,
  consequence,
  inspectData,
  putMapAside,
  readBlobMeta,
  removeBlobDirectory,
  readRangeMap,
} from "./blob-files.ts";

/** Something wrong with a blob's directory, found offline. */
export interface BlobProblem {
  /** `error`: data that a volume relies on is gone or doubtful; `warning`: it costs a download, or some space */
  severity: "error" | "warning";
  /** What is wrong, with the path. */
  message: string;
  /** What `repair` would do, and what is lost by it; undefined when nothing can be done here. */
  repair: BlobRepair | undefined;
}

export interface BlobRepair {
  /** What is done, for people, before they agree. */
  description: string;
  /** What comes of it; null: nothing is lost. */
  loss: string | null;
  run(): Promise<void>;
}

/**
 * Looks at everything in a blob's directory that can be told to be right or wrong without its source: the description,
 * the data file's size, the range map's checksum and whether it belongs to that data file. Changes nothing. The caller
 * holds the directory's lock.
 */
export async function checkBlob(fs: FileSystem, dir: string): Promise<BlobProblem[]> {
  const problems: BlobProblem[] = [];
  const names = await fs.readdir(dir);
  const pins = (await fs.readdir(join(dir, "pins"))).filter(isId);
  const severity = pins.length > 0 ? "error" : "warning";
  const leftovers = names.filter((name) => blobTemporaryNames.includes(name));
  for (const name of leftovers) {
    problems.push({
      severity: "warning",
      message: `${join(dir, name)} was left behind by a crash`,
      repair: { description: "remove it", loss: null, run: () => fs.unlink(join(dir, name)) },
    });
  }
  if (!names.includes("meta.json")) {
    // Without a map and a pin nothing in it was ever counted on.
    const removal = { description: "remove it", loss: null, run: () => removeBlobDirectory(fs, dir) };
    const halfMade = pins.length === 0 && !names.includes("map");
    const why = halfMade ? "its creation did not end" : `volumes may rely on it: ${pins.join(", ") || "unknown ones"}`;
    problems.push({
      severity: halfMade ? "warning" : "error",
      message: `${dir} has no meta.json; ${why}`,
      repair: halfMade ? removal : undefined,
    });
    return problems;
  }
  let found: Awaited<ReturnType<typeof inspectData>> | undefined;
  try {
    const meta = await readBlobMeta(fs, dir);
    if (meta.id !== basename(dir)) {
      problems.push({ severity, message: `${dir} says that it is blob ${meta.id}`, repair: undefined });
    }
    found = await inspectData(fs, dir, meta, "read");
    const map = await readRangeMap(fs, dir, meta, found);
    // A map that is believed knows better than one that was put aside before what it says was fetched.
    const believed = map !== undefined && "bits" in map;
    const copied = pins.length > 0 && !believed ? await adoptableBits(fs, dir, meta, found) : undefined;
    if (copied !== undefined) {
      problems.push({
        severity: "error",
        message: `${dir} is a copy, and nothing tells whether it is complete; detached volumes rely on it: ${pins.join(", ")}`,
        repair: {
          description: "believe that it is complete",
          loss: "what is missing in it, if it is not complete: that reads as zeros then",
          run: () => adoptMap(fs, dir, meta, copied),
        },
      });
    } else if (map !== undefined && "reason" in map) {
      problems.push({
        severity,
        message: `${join(dir, "map")} can't be believed: ${map.reason}`,
        repair: { description: "put it aside", loss: consequence(meta, pins), run: () => putMapAside(fs, dir) },
      });
    } else if (found.problem !== undefined) {
      problems.push({
        severity: "warning",
        message: `${dir}: ${found.problem}; nothing in it is used, and it is put right when the blob is opened`,
        repair: undefined,
      });
    } else if (map === undefined && pins.length > 0) {
      const message = `${dir} has no range map, but volumes ${pins.join(", ")} rely on what it had`;
      problems.push({ severity, message, repair: undefined });
    }
  } catch (error) {
    problems.push({ severity: "error", message: describeError(error), repair: undefined });
  } finally {
    await found?.data?.close();
  }
  return problems;
}
