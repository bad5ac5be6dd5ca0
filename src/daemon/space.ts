import { join } from "node:path";
import { errnoOf } from "../base/errors.ts";
import { layerPath } from "../volume/paths.ts";
import { frozenMaps, frozenReferences, volumeReferences } from "../volume/references.ts";
import type { VolumeEnvironment } from "../volume/types.ts";

/** Bytes on disk in layers. What several volumes refer to is `shared` in each of them; all layers together are `du`. */
export interface LayerSpace {
  /** in layers that only this volume and its snapshots refer to */
  exclusiveBytes: number;
  /** in layers that other volumes, or snapshots of others, refer to as well */
  sharedBytes: number;
}

/** What the files do not tell. */
export interface SpaceHost {
  env: VolumeEnvironment;
  /** The layers that a volume's maps in memory refer to; undefined when it is not open. */
  openLayers(volumeId: string): Set<string> | undefined;
  /** The volume that a frozen map was taken of; undefined when nobody knows. */
  ownerOf(frozenMap: string): string | undefined;
}

/** Looks at the owner tables of all maps; nothing is counted in advance, so that nothing can be counted wrong. */
export async function layerSpace(host: SpaceHost, volumeId: string): Promise<LayerSpace> {
  const { env } = host;
  const own = new Set<string>();
  const others = new Set<string>();
  const note = (layers: Iterable<string>, of: string | undefined): void => {
    const into = of === volumeId ? own : others;
    for (const layer of layers) into.add(layer);
  };
  // Volumes first: see dropLayers.
  for (const id of await env.fs.readdir(join(env.dataDir, "volumes"))) {
    if (/^[0-9a-f]{32}$/.test(id)) note(host.openLayers(id) ?? (await volumeReferences(env, id)), id);
  }
  for (const id of await frozenMaps(env)) note(await frozenReferences(env, id), host.ownerOf(id));
  const space = { exclusiveBytes: 0, sharedBytes: 0 };
  for (const layer of own) space[others.has(layer) ? "sharedBytes" : "exclusiveBytes"] += await allocated(env, layer);
  return space;
}

/** 0 for a layer that went meanwhile. */
async function allocated(env: VolumeEnvironment, layer: string): Promise<number> {
  try {
    const file = await env.fs.open(layerPath(env.dataDir, layer), "read");
    try {
      return file.allocated();
    } finally {
      await file.close();
    }
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return 0;
    throw error;
  }
}
