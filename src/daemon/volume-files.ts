import { join } from "node:path";
import type { FileSystem } from "../base/file-system.ts";
import { describeError, UllageError } from "../base/errors.ts";
import { Layer } from "../volume/layer.ts";
import { descriptionPath, layerPath, layersDir, numbered, runtimePoisonPath, volumeDir } from "../volume/paths.ts";
import type { VolumeEnvironment } from "../volume/types.ts";

/** volume.json: what a volume says about itself, from which the catalog can be rebuilt (docs/FORMAT.md). */
export interface VolumeDescription {
  id: string;
  name: string;
  size: number;
  createdAt: string;
  source?: string | null;
  format?: string | null;
  settings?: unknown;
  blobId?: string | null;
}

/** @throws UllageError `description-damaged`, IoError */
export async function readDescription(fs: FileSystem, dataDir: string, id: string): Promise<VolumeDescription> {
  const path = descriptionPath(volumeDir(dataDir, id));
  const text = (await fs.readFile(path)).toString("utf8");
  try {
    const found = JSON.parse(text) as VolumeDescription;
    if (found.id === id && typeof found.name === "string" && Number.isSafeInteger(found.size)) return found;
    throw new Error("id, name or size is missing or wrong");
  } catch (error) {
    throw new UllageError("description-damaged", `${path} is damaged: ${describeError(error)}`);
  }
}

/** Whether the creation of a volume had come to its end: its last step is the first checkpoint. */
export async function isComplete(fs: FileSystem, dataDir: string, id: string): Promise<boolean> {
  return numbered(await fs.readdir(volumeDir(dataDir, id)), "map").length > 0;
}

/** Whether a volume was ever opened: each opening begins a new log. */
export async function hasBeenOpen(fs: FileSystem, dataDir: string, id: string): Promise<boolean> {
  return numbered(await fs.readdir(volumeDir(dataDir, id)), "intent").some((number) => number > 1);
}

/** Removes everything that belongs to a volume; may be repeated. Durable when it resolves. */
export async function removeVolumeFiles(env: VolumeEnvironment, id: string): Promise<void> {
  const { fs, dataDir, runtimeDir } = env;
  for (const layer of await layersOf(env, id)) await fs.unlink(layerPath(dataDir, layer));
  await fs.syncDirectory(layersDir(dataDir));
  const dir = volumeDir(dataDir, id);
  for (const name of await fs.readdir(dir)) await fs.unlink(join(dir, name));
  if (await fs.exists(dir)) await fs.rmdir(dir);
  await fs.syncDirectory(join(dataDir, "volumes"));
  if (runtimeDir !== undefined) await fs.unlink(runtimePoisonPath(runtimeDir, id));
}

/** Layers that were made for a volume, by what their headers say, so that the volume's own files need not be whole. */
async function layersOf(env: VolumeEnvironment, id: string): Promise<string[]> {
  const layers: string[] = [];
  for (const name of await env.fs.readdir(layersDir(env.dataDir))) {
    if ((await describeLayer(env, name)).creator === id) layers.push(name);
  }
  return layers;
}

/** What a layer's file tells. */
export interface LayerDescription {
  /** id of the volume that it was made for; undefined when its header was never written */
  creator: string | undefined;
  /** there is no data in it at all */
  empty: boolean;
}

export async function describeLayer(env: VolumeEnvironment, name: string): Promise<LayerDescription> {
  const file = await env.fs.open(layerPath(env.dataDir, name), "read");
  try {
    const empty = file.seekData(0) === -1;
    return { creator: await Layer.creator(file), empty };
  } finally {
    await file.close();
  }
}
