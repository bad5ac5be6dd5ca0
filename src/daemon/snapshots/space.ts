import { join } from "node:path";
import { errnoOf } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { layerPath, layersDir } from "../../volume/paths.ts";
import { baseOf, frozenMaps, frozenReferences, volumeReferences } from "../../volume/layers/references.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";

/** Bytes on disk in layers; what several volumes need is `sharedBytes` of each of them. */
export interface LayerSpace {
  /** in layers that only this volume and its snapshots need */
  exclusiveBytes: number;
  /** in layers that other volumes, or snapshots of others, need as well */
  sharedBytes: number;
}

/** All layers: the three add up to what `du` says of their files, each layer once. */
export interface AllLayerSpace extends LayerSpace {
  /** in layers that nothing needs: somebody is about to remove them */
  unusedBytes: number;
}

/** What the files do not tell. */
export interface SpaceHost {
  env: VolumeEnvironment;
  /** The layers that a volume's maps in memory refer to; undefined when it is not open. */
  openLayers(volumeId: string): Set<string> | undefined;
  /**
   * The volume that a frozen map counts for: the one that it is a snapshot of; undefined when it is only there for
   * volumes that begin with it.
   */
  ownerOf(frozenMap: string): string | undefined;
}

/** Who needs which layers, from the owner tables of all maps: nothing is counted in advance, so nothing is counted wrong. */
async function users(host: SpaceHost): Promise<Map<string, Set<string>>> {
  const { env } = host;
  const found = new Map<string, Set<string>>();
  const note = (layers: Iterable<string>, volumes: Iterable<string>): void => {
    for (const layer of layers) {
      let needing = found.get(layer);
      if (needing === undefined) found.set(layer, (needing = new Set()));
      for (const volume of volumes) needing.add(volume);
    }
  };
  /** Closed volumes, by the frozen map that they begin with; an open one has all of it in memory. */
  const begun = new Map<string, string[]>();
  // Volumes first: see dropLayers.
  for (const id of await env.fs.readdir(join(env.dataDir, "volumes"))) {
    if (!isId(id)) continue;
    const open = host.openLayers(id);
    note(open ?? (await volumeReferences(env, id)), [id]);
    const base = open === undefined ? await baseOf(env, id) : undefined;
    if (base !== undefined) begun.set(base, [...(begun.get(base) ?? []), id]);
  }
  for (const id of await frozenMaps(env)) {
    const owner = host.ownerOf(id);
    note(await frozenReferences(env, id), [...(begun.get(id) ?? []), ...(owner === undefined ? [] : [owner])]);
  }
  return found;
}

/** What a volume and its snapshots take. */
export async function volumeSpace(host: SpaceHost, volumeId: string): Promise<LayerSpace> {
  const space = { exclusiveBytes: 0, sharedBytes: 0 };
  for (const [layer, needing] of await users(host)) {
    if (!needing.has(volumeId)) continue;
    const kind = needing.size === 1 ? "exclusiveBytes" : "sharedBytes";
    space[kind] += await allocated(host.env, layerPath(host.env.dataDir, layer));
  }
  return space;
}

/** What all layers take, each counted once. */
export async function allLayerSpace(host: SpaceHost): Promise<AllLayerSpace> {
  const { env } = host;
  const needed = await users(host);
  const space = { exclusiveBytes: 0, sharedBytes: 0, unusedBytes: 0 };
  for (const layer of await env.fs.readdir(layersDir(env.dataDir))) {
    const needing = needed.get(layer)?.size ?? 0;
    const kind = needing === 0 ? "unusedBytes" : needing === 1 ? "exclusiveBytes" : "sharedBytes";
    space[kind] += await allocated(env, layerPath(env.dataDir, layer));
  }
  return space;
}

/** Bytes on disk of a blob's cache file. */
export function blobSpace(env: VolumeEnvironment, blobId: string): Promise<number> {
  return allocated(env, join(env.dataDir, "blobs", blobId, "data"));
}

/** Bytes on disk of all blobs' cache files. */
export async function allBlobSpace(env: VolumeEnvironment): Promise<number> {
  let bytes = 0;
  for (const id of await env.fs.readdir(join(env.dataDir, "blobs"))) bytes += await blobSpace(env, id);
  return bytes;
}

/** 0 for a file that went meanwhile. */
async function allocated(env: VolumeEnvironment, path: string): Promise<number> {
  try {
    const file = await env.fs.open(path, "read");
    try {
      return file.allocated();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (errnoOf(error) === "ENOENT" || errnoOf(error) === "ENOTDIR") return 0;
    throw error;
  }
}
