import { join } from "node:path";
import { errnoOf } from "../base/errors.ts";
import type { File, FileSystem } from "../base/file-system.ts";
import { shownSource } from "../base/without-secrets.ts";
import { decodeBlobMeta, encodeBlobMeta, type BlobMeta } from "./blob-meta.ts";
import { readMark, removeMark } from "./content-check.ts";
import { replaceFile } from "./durable-file.ts";
import { RangeMap } from "./range-map.ts";
import { decodeRangeMap } from "./range-map-file.ts";

/** What lies in a blob's directory, opened. */
export interface BlobFiles {
  meta: BlobMeta;
  /** The cache file, read-write. */
  data: File;
  /** The bits of the range map; undefined when there is none that can be believed. */
  durableBits: Uint8Array | undefined;
  /** Ids of the volumes that can't do without the blob. */
  pins: string[];
  /** All of it was compared with its digest. */
  verified: boolean;
}

/** What lies in a blob's directory; `pins` is a directory with the ids of volumes. */
export const blobFileNames: readonly string[] = ["data", "map", "map.rejected", "meta.json", "verified", "pins"];

/** What a crash may leave beside them (durable-file.ts). */
export const blobTemporaryNames: readonly string[] = ["map.tmp", "meta.json.tmp", "verified.tmp"];

/** Cache files are rounded up to a multiple of it, so that the last block of a disk can be read whole. */
export const BLOCK_BYTES = 4096;

/** Bytes of a blob's cache file. */
export const dataFileBytes = (meta: BlobMeta): number => Math.ceil(meta.size / BLOCK_BYTES) * BLOCK_BYTES;

/** Fills the new, empty directory `dir`, durably; meta.json comes last, and makes it a blob. */
export async function createBlobFiles(fs: FileSystem, dir: string, meta: BlobMeta): Promise<BlobFiles> {
  await fs.mkdir(join(dir, "pins"));
  const data = await createDataFile(fs, dir, meta);
  try {
    await replaceFile(fs, dir, "meta.json", encodeBlobMeta(meta));
  } catch (error) {
    await data.close();
    throw error;
  }
  return { meta, data, durableBits: undefined, pins: [], verified: false };
}

async function createDataFile(fs: FileSystem, dir: string, meta: BlobMeta): Promise<File> {
  const data = await fs.open(join(dir, "data"), "create");
  try {
    if (meta.size > 0) await data.truncate(dataFileBytes(meta));
    await data.datasync();
    await fs.syncDirectory(dir);
    return data;
  } catch (error) {
    await data.close();
    throw error;
  }
}

/** @throws CorruptionError when meta.json is damaged, UllageError `newer-format`, IoError */
export async function loadBlobFiles(
  environment: { fs: FileSystem; log(level: "warn" | "error", message: string): void },
  dir: string,
): Promise<BlobFiles> {
  const { fs } = environment;
  const meta = await readBlobMeta(fs, dir);
  const pins = await fs.readdir(join(dir, "pins"));
  // Seen is not durable: whoever renamed the map, or made a pin, may have been killed before it synced the directory.
  await fs.syncDirectory(dir);
  if (pins.length > 0) await fs.syncDirectory(join(dir, "pins"));
  const opened = await inspectData(fs, dir, meta, "write");
  try {
    const map = await readRangeMap(fs, dir, meta, opened);
    const believed = map !== undefined && "bits" in map;
    if (map !== undefined && !believed) {
      // First the map goes, then the data file is put right: a new one may well get the inode number of the old.
      await putMapAside(fs, dir);
      environment.log(
        pins.length > 0 ? "error" : "warn",
        `${join(dir, "map")} is not believed: ${map.reason}; kept as map.rejected; ${consequence(meta, pins)}`,
      );
    }
    if (opened.problem !== undefined) await opened.data?.truncate(dataFileBytes(meta));
    const data = opened.data ?? (await createDataFile(fs, dir, meta));
    const durableBits = believed ? map.bits : undefined;
    const mark = await readMark(fs, dir, meta, { inode: data.binding().inode, complete: hasAll(meta, durableBits) });
    if (mark === "stale") await removeMark(fs, dir);
    return { meta, pins, data, durableBits, verified: mark === "good" };
  } catch (error) {
    await opened.data?.close();
    throw error;
  }
}

/** Whether a map has every unit. */
export function hasAll(meta: BlobMeta, bits: Uint8Array | undefined): boolean {
  return new RangeMap(meta.size, meta.unitBytes, bits).missing === 0;
}

export async function readBlobMeta(fs: FileSystem, dir: string): Promise<BlobMeta> {
  const path = join(dir, "meta.json");
  return decodeBlobMeta(await fs.readFile(path), path);
}

/** The data file as it is found, and what is wrong with it. */
export interface FoundData {
  data: File | undefined;
  problem: string | undefined;
}

export async function inspectData(
  fs: FileSystem,
  dir: string,
  meta: BlobMeta,
  mode: "read" | "write",
): Promise<FoundData> {
  const path = join(dir, "data");
  if (!(await fs.exists(path))) return { data: undefined, problem: "the data file is missing" };
  const data = await fs.open(path, mode);
  const found = data.size();
  const expected = dataFileBytes(meta);
  return { data, problem: found === expected ? undefined : `the data file has ${found} bytes, not ${expected}` };
}

/** Bytes that a blob's cache file takes on disk; 0 when there is none. */
export async function diskBytesOf(fs: FileSystem, dir: string): Promise<number> {
  const path = join(dir, "data");
  if (!(await fs.exists(path))) return 0;
  const data = await fs.open(path, "read");
  try {
    return data.allocated();
  } finally {
    await data.close();
  }
}

/** @returns undefined when there is no map (nothing is durably ready then), else its bits or why it is not believed */
export async function readRangeMap(
  fs: FileSystem,
  dir: string,
  meta: BlobMeta,
  found: FoundData,
): Promise<{ bits: Uint8Array } | { reason: string } | undefined> {
  const path = join(dir, "map");
  if (!(await fs.exists(path))) return undefined;
  const { data, problem } = found;
  if (data === undefined || problem !== undefined) return { reason: problem ?? "there is no data file" };
  return decodeRangeMap(await fs.readFile(path), path, meta, data.binding().inode);
}

/** What it means that a blob's range map is not believed. */
export function consequence(meta: BlobMeta, pins: string[]): string {
  const needed = pins.length > 0 ? `, which must be there again for detached volumes ${pins.join(", ")}` : "";
  return `everything is fetched again from ${shownSource(meta.url)}${needed}`;
}

/** Nothing counts as fetched afterwards; the file is kept, for whoever knows better. */
export async function putMapAside(fs: FileSystem, dir: string): Promise<void> {
  await fs.rename(join(dir, "map"), join(dir, "map.rejected"));
  await fs.syncDirectory(dir);
}

/** Removes the directory and everything in it, its pins last; can be done again when it was interrupted. */
export async function removeBlobDirectory(fs: FileSystem, dir: string): Promise<void> {
  const names = await fs.readdir(dir);
  for (const name of names.filter((each) => each !== "pins")) await removeEntry(fs, join(dir, name));
  if (names.includes("pins")) await removeEntry(fs, join(dir, "pins"));
  await fs.rmdir(dir);
}

/** A file, or a directory, which somebody else may have made here. */
async function removeEntry(fs: FileSystem, path: string): Promise<void> {
  try {
    await fs.unlink(path);
  } catch (error) {
    if (errnoOf(error) !== "EISDIR") throw error;
    await removeBlobDirectory(fs, path);
  }
}
