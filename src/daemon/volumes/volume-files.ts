import { join } from "node:path";
import type { FileSystem } from "../../base/file-system.ts";
import { CorruptionError, describeError, errnoOf, UllageError } from "../../base/errors.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import type { Origin } from "../../catalog/metadata-store.ts";
import { Layer } from "../../volume/layers/layer.ts";
import { descriptionPath, layerPath, layersDir, numbered, runtimePoisonPath, volumeDir } from "../../volume/paths.ts";
import { headOf, volumeReferences } from "../../volume/layers/references.ts";
import { describedSnapshots } from "../../volume/snapshot-files.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import { writeWhole } from "../../volume/whole-file.ts";
import { dropLayers, type Leaving } from "../snapshots/layer-files.ts";

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
  origin?: Origin | null;
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

/** What a volume says its name is; only a rebuilt catalog goes by it. */
export async function renameDescription(env: VolumeEnvironment, id: string, name: string): Promise<void> {
  await writeDescription(env, { ...(await readDescription(env.fs, env.dataDir, id)), name });
}

/** Durable when it resolves. */
export async function writeDescription(env: VolumeEnvironment, description: VolumeDescription): Promise<void> {
  const text = IoBuffer.from(Buffer.from(`${JSON.stringify({ formatVersion: 1, ...description }, undefined, 2)}\n`));
  const path = descriptionPath(volumeDir(env.dataDir, description.id));
  await writeWhole(env, path, (file) => file.write(text, 0, text.length, 0));
}

/** Whether the creation of a volume had come to its end: its last step is the first checkpoint. */
export async function isComplete(fs: FileSystem, dataDir: string, id: string): Promise<boolean> {
  return numbered(await fs.readdir(volumeDir(dataDir, id)), "map").length > 0;
}

/** Whether a volume was ever opened: each opening begins a new log. */
export async function hasBeenOpen(fs: FileSystem, dataDir: string, id: string): Promise<boolean> {
  return numbered(await fs.readdir(volumeDir(dataDir, id)), "intent").some((number) => number > 1);
}

/**
 * Removes everything that belongs to a volume and to nobody else; may be repeated. Durable when it resolves.
 * @param openLayers see `Leaving`
 * @returns the layers that it referred to; some may have gone with it
 */
export async function removeVolumeFiles(
  env: VolumeEnvironment,
  id: string,
  openLayers: Leaving["openLayers"] = () => undefined,
): Promise<Set<string>> {
  const { fs, dataDir, runtimeDir } = env;
  const dir = volumeDir(dataDir, id);
  const layers = await layersOf(env, id);
  const [only] = layers;
  const hadSnapshots = describedSnapshots(await fs.readdir(dir)).length > 0;
  if (layers.size === 1 && !hadSnapshots && (await headOf(env, id)) === only) {
    // A head belongs to nobody else: no need to ask all the others.
    await fs.unlink(layerPath(dataDir, only));
    await fs.syncDirectory(layersDir(dataDir));
  } else {
    await dropLayers(env, layers, { openLayers, withoutVolume: id });
  }
  for (const name of await fs.readdir(dir)) await fs.unlink(join(dir, name));
  if (await fs.exists(dir)) await fs.rmdir(dir);
  await fs.syncDirectory(join(dataDir, "volumes"));
  if (runtimeDir !== undefined) await fs.unlink(runtimePoisonPath(runtimeDir, id));
  return layers;
}

/** The layers that a volume refers to, and those that were made for it: its own files need not be whole. */
async function layersOf(env: VolumeEnvironment, id: string): Promise<Set<string>> {
  const layers = await volumeReferences(env, id).catch(() => new Set<string>());
  for (const name of await env.fs.readdir(layersDir(env.dataDir))) {
    if ((await layerCreator(env, name)) === id) layers.add(name);
  }
  return layers;
}

/** id of the volume that a layer was made for; undefined when its file has no header, or went a moment ago */
export async function layerCreator(env: VolumeEnvironment, name: string): Promise<string | undefined> {
  const file = await env.fs.open(layerPath(env.dataDir, name), "read").catch((error: unknown) => {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  });
  if (file === undefined) return undefined;
  try {
    return await Layer.creator(file);
  } finally {
    await file.close();
  }
}

/** Whether a layer is there and nothing was ever written to it, as far as the file system can tell. */
export async function isEmptyLayer(env: VolumeEnvironment, id: string): Promise<boolean> {
  const layer = await Layer.open(env, id, "read").catch((error: unknown) => {
    if (error instanceof CorruptionError) return undefined;
    throw error;
  });
  if (layer === undefined) return false;
  try {
    return layer.nextData(0) === undefined;
  } finally {
    await layer.file.close();
  }
}
