/**
 * Reads a volume back from a data directory, written from docs/FORMAT.md alone: it shares no code with Ullage, so that
 * a mistake in either shows. Everything here is synchronous and simple; it is also the tool for somebody who has a
 * data directory and no Ullage:
 *
 *     sh bin/node test/format/reader.ts DATA VOLUME[@SNAPSHOT] OUTPUT [--killed] [--full-copy]
 *
 * Only for a directory in which no process works.
 */
import { closeSync, existsSync, ftruncateSync, openSync, readFileSync, readdirSync, writeSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { blockBytes, demandVersion } from "./reader-bytes.ts";
import { demandSameLife, readLogs, replay } from "./reader-logs.ts";
import { frozenMap, newestMap, type OwnerMap } from "./reader-map.ts";
import { openBlob, openLayer, type Owner } from "./reader-owners.ts";

/** At a time; as much as that is missing where a cache file is not complete. */
const copyBlocks = 16;

export interface ReadOptions {
  /**
   * `cut` (default) is right for every directory. `all` also gives what was acknowledged and not flushed: only for a
   * daemon that was killed, on the machine and mount where that happened.
   */
  rule?: "cut" | "all";
  /** The directory is a copy that was made in full while nobody had it open: cache files may have another inode. */
  fullCopy?: boolean;
}

/** Takes the disk from its beginning to its end. What it is not given, up to the size, is zeros. */
export type Sink = (offset: number, bytes: Buffer) => void;

/**
 * @param wanted a volume by name or id, or a snapshot: `VOLUME@SNAPSHOT`, each by name or id
 * @returns the size of the disk in bytes
 */
export function readVolume(data: string, wanted: string, sink: Sink, options: ReadOptions = {}): number {
  const [nameOrId, snapshotName] = wanted.split("@");
  const id = findVolume(data, nameOrId);
  const directory = join(data, "volumes", id);
  if (existsSync(join(directory, "poison")))
    throw new Error(`${nameOrId} is poisoned: restart the machine, then put ${directory}/poison aside`);
  const snapshot = snapshotName === undefined ? undefined : findSnapshot(directory, snapshotName);
  const frozen = snapshot === undefined ? undefined : frozenMap(data, snapshot);
  if (frozen !== undefined) return copyDisk(data, frozen, sink, options.fullCopy === true);
  const map = newestMap(data, directory, id);
  const { logs, cut } = readLogs(directory, id, map);
  if (options.rule === "all") for (const log of logs) demandSameLife(log);
  const found = replay(map, logs, options.rule === "all" ? Infinity : cut, snapshot);
  if (snapshot !== undefined && !found) throw new Error(`the creation of snapshot ${wanted} was interrupted`);
  return copyDisk(data, map, sink, options.fullCopy === true);
}

/** @returns the size of the disk in bytes; the file is as long, and sparse */
export function readVolumeToFile(data: string, nameOrId: string, output: string, options?: ReadOptions): number {
  const file = openSync(output, "wx");
  try {
    const size = readVolume(data, nameOrId, (at, bytes) => writeAll(file, bytes, at), options);
    ftruncateSync(file, size);
    return size;
  } finally {
    closeSync(file);
  }
}

function findVolume(data: string, nameOrId: string): string {
  const ids = readdirSync(join(data, "volumes")).filter((name) => /^[0-9a-f]{32}$/.test(name));
  if (ids.includes(nameOrId)) return nameOrId;
  const found = ids.filter((id) => nameIn(join(data, "volumes", id, "volume.json")) === nameOrId);
  if (found.length === 1) return found[0];
  throw new Error(
    `${found.length} of the volumes in ${data} were created as '${nameOrId}': give an id of ${ids.join(" ")}`,
  );
}

function findSnapshot(directory: string, nameOrId: string): string {
  const ids = readdirSync(directory).flatMap((name) => /^snapshot\.([0-9a-f]{32})\.json$/.exec(name)?.[1] ?? []);
  const found = ids.filter((id) => id === nameOrId || nameIn(join(directory, `snapshot.${id}.json`)) === nameOrId);
  if (found.length === 1) return found[0];
  throw new Error(
    `${found.length} of the snapshots in ${directory} are called '${nameOrId}': there is ${ids.join(" ")}`,
  );
}

function nameIn(path: string): string | undefined {
  if (!existsSync(path)) return undefined;
  const { formatVersion, name } = JSON.parse(readFileSync(path, "utf8")) as { formatVersion: number; name: string };
  demandVersion(path, formatVersion);
  return name;
}

function copyDisk(data: string, map: OwnerMap, sink: Sink, fullCopy: boolean): number {
  const open = new Map<number, Owner>();
  try {
    const blocks = Math.ceil(map.size / blockBytes);
    for (let block = 0, end = 0; block < blocks; block = end) {
      const number = map.owners[block];
      for (end = block + 1; end < blocks && end - block < copyBlocks && map.owners[end] === number;) end++;
      if (number === 0) continue;
      const { kind, id } = map.table.get(number)!;
      let owner = open.get(number);
      if (owner === undefined) {
        owner = kind === "layer" ? openLayer(data, id) : openBlob(data, id, fullCopy);
        open.set(number, owner);
      }
      const offset = block * blockBytes;
      sink(offset, owner.read(offset, Math.min(end * blockBytes, map.size) - offset));
    }
    return map.size;
  } finally {
    for (const owner of open.values()) owner.close();
  }
}

function writeAll(file: number, bytes: Buffer, offset: number): void {
  for (let done = 0; done < bytes.length;) done += writeSync(file, bytes, done, bytes.length - done, offset + done);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const [data, volume, output, ...flags] = process.argv.slice(2);
  if (output === undefined) throw new Error("usage: reader.ts DATA VOLUME[@SNAPSHOT] OUTPUT [--killed] [--full-copy]");
  const rule = flags.includes("--killed") ? "all" : "cut";
  const size = readVolumeToFile(data, volume, output, { rule, fullCopy: flags.includes("--full-copy") });
  console.log(`${output}: ${size} bytes`);
}
