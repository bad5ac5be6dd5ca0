import { join } from "node:path";
import { CorruptionError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { layerPath, layersDir } from "../../volume/paths.ts";
import { frozenMaps, frozenReferences, volumeReferences } from "../../volume/layers/references.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";

/** What is about to go, and what only memory knows. */
export interface Leaving {
  /** The layers that a volume's maps in memory refer to; undefined when it is not open. */
  openLayers(volumeId: string): Set<string> | undefined;
  /** Does not count: its references are what is being given up. */
  withoutVolume?: string;
  /** Likewise, a frozen map. */
  withoutMap?: string;
}

/**
 * Removes those of `candidates` that no map refers to any more, in memory or in files (durability rule 4). What is damaged
 * may refer to anything: then they all stay, so that one damaged volume keeps no other from being removed.
 * @throws IoError
 */
export async function dropLayers(env: VolumeEnvironment, candidates: Set<string>, leaving: Leaving): Promise<void> {
  try {
    await dropUnused(env, candidates, leaving);
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    env.log("warn", `${candidates.size} layers stay, though they may be unused: ${error.message}`);
  }
}

async function dropUnused(env: VolumeEnvironment, candidates: Set<string>, leaving: Leaving): Promise<void> {
  const left = new Set(candidates);
  const keep = (layers: Iterable<string>): void => {
    for (const id of layers) left.delete(id);
  };
  // Volumes first: what they hold in memory only moves into files, from a pending snapshot into its frozen map.
  for (const id of await env.fs.readdir(join(env.dataDir, "volumes"))) {
    if (left.size === 0) return;
    if (id === leaving.withoutVolume || !isId(id)) continue;
    // An open volume knows of every layer that its files name, and changes them meanwhile.
    keep(leaving.openLayers(id) ?? (await volumeReferences(env, id)));
  }
  for (const id of await frozenMaps(env)) {
    if (left.size === 0) return;
    if (id !== leaving.withoutMap) keep(await frozenReferences(env, id));
  }
  if (left.size === 0) return;
  for (const id of left) await env.fs.unlink(layerPath(env.dataDir, id));
  await env.fs.syncDirectory(layersDir(env.dataDir));
}
