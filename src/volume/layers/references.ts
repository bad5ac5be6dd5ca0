import { errnoOf } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { readFrozenTable } from "../map/frozen-map.ts";
import { ownersInLog, readLogHeader } from "../log/log-reader.ts";
import { readMapTable } from "../map/map-file.ts";
import type { OwnerTable } from "../map/owner-table.ts";
import { logPath, mapPath, mapsDir, numbered, volumeDir } from "../paths.ts";
import { readPoison } from "../poison.ts";
import type { VolumeEnvironment } from "../types.ts";

/*
 * Who refers to which layer and frozen map, read from the files themselves when a removal needs to know (durability
 * rule 17): every map begins with its owner table. Rather too many than too few: a table may name a layer that no block
 * has any more.
 */

/** A checkpoint may replace the files while they are being read. */
const attempts = 5;

export async function steadily<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (errnoOf(error) !== "ENOENT" || attempt === attempts) throw error;
    }
  }
}

/** What the files of a volume refer to: all checkpoints, and what the logs add. @throws CorruptionError, IoError */
export function volumeReferences(env: VolumeEnvironment, id: string): Promise<Set<string>> {
  return steadily(() => readReferences(env, id));
}

async function readReferences(env: VolumeEnvironment, id: string): Promise<Set<string>> {
  const dir = volumeDir(env.dataDir, id);
  const entries = await env.fs.readdir(dir);
  const layers = new Set<string>();
  for (const number of numbered(entries, "map")) {
    addLayers(layers, (await readMapTable(env, mapPath(dir, number))).table);
  }
  for (const number of numbered(entries, "intent")) {
    const file = await env.fs.open(logPath(dir, number), "read");
    try {
      const header = await readLogHeader(file).catch(() => undefined); // being created when the power went: empty
      if (header === undefined) continue;
      for (const { kind, id: owner } of await ownersInLog(file, header)) if (kind === "layer") layers.add(owner);
    } finally {
      await file.close();
    }
  }
  return layers;
}

/** Frozen maps that are in files. */
export async function frozenMaps(env: VolumeEnvironment): Promise<string[]> {
  const names = await env.fs.readdir(mapsDir(env.dataDir));
  return names.filter(isId);
}

/** The layers that a frozen map refers to. @throws CorruptionError, IoError */
export async function frozenReferences(env: VolumeEnvironment, id: string): Promise<Set<string>> {
  const layers = new Set<string>();
  addLayers(layers, (await readFrozenTable(env, id)).table);
  return layers;
}

/** The frozen map that a volume's newest checkpoint names, if it does. */
export function baseOf(env: VolumeEnvironment, id: string): Promise<string | undefined> {
  const dir = volumeDir(env.dataDir, id);
  return steadily(async () => {
    const newest = numbered(await env.fs.readdir(dir), "map").at(-1);
    return newest === undefined ? undefined : (await readMapTable(env, mapPath(dir, newest))).checkpoint.base;
  });
}

/**
 * The number of a closed volume's newest checkpoint, if no log goes beyond it, so that nobody has opened the volume since, and
 * the volume is not poisoned. Costs a look at the directory.
 */
export async function lastCheckpoint(env: VolumeEnvironment, id: string): Promise<number | undefined> {
  const dir = volumeDir(env.dataDir, id);
  const entries = await env.fs.readdir(dir);
  const newest = numbered(entries, "map").at(-1);
  if (newest === undefined || (await readPoison(env, dir, id)) !== undefined) return undefined;
  const logs = numbered(entries, "intent").filter((number) => number >= newest);
  return logs.length === 1 && logs[0] === newest ? newest : undefined;
}

/**
 * The newest checkpoint of a closed volume, when it is all that counts: it was closed with everything flushed, and nobody
 * has opened it since. @returns its path; undefined: only a recovery can tell what the volume holds
 */
export async function cleanCheckpoint(env: VolumeEnvironment, id: string): Promise<string | undefined> {
  const newest = await lastCheckpoint(env, id);
  if (newest === undefined) return undefined;
  const path = mapPath(volumeDir(env.dataDir, id), newest);
  return (await readMapTable(env, path)).checkpoint.clean ? path : undefined;
}

/** The layer that a volume's newest checkpoint has as its head; undefined when there is no checkpoint that can be read. */
export async function headOf(env: VolumeEnvironment, id: string): Promise<string | undefined> {
  const dir = volumeDir(env.dataDir, id);
  const newest = numbered(await env.fs.readdir(dir), "map").at(-1);
  if (newest === undefined) return undefined;
  const read = await readMapTable(env, mapPath(dir, newest)).catch(() => undefined);
  return read?.table.get(read.checkpoint.head)?.id;
}

function addLayers(layers: Set<string>, table: OwnerTable): void {
  for (const [, { kind, id }] of table.entries()) if (kind === "layer") layers.add(id);
}
