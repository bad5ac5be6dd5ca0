import { existsSync } from "node:fs";
import assert from "node:assert/strict";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemClock } from "../../src/base/clock.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { isId } from "../../src/base/ids.ts";
import { loadFrozenMap } from "../../src/volume/map/frozen-map.ts";
import { Layer } from "../../src/volume/layers/layer.ts";
import { frozenReferences, volumeReferences } from "../../src/volume/layers/references.ts";
import type { VolumeEnvironment } from "../../src/volume/types.ts";
import type { Volume } from "../../src/volume/volume.ts";

/*
 * Who needs which block of which layer, found out in another way than reclaim does: through the maps that users see, and
 * through whole frozen maps.
 */

const block = 4096;

export function plainEnvironment(dataDir: string): VolumeEnvironment {
  return {
    fs: realFileSystem,
    clock: systemClock,
    randomBytes: (length) => Buffer.alloc(length),
    dataDir,
    runtimeDir: undefined,
    log: () => undefined,
  };
}

/** Blocks by layer that a volume or a snapshot needs. Every volume is opened. */
async function neededBlocks(ullage: Ullage, dataDir: string): Promise<Map<string, Set<number>>> {
  const needed = new Map<string, Set<number>>();
  const need = (layer: string, first: number, count: number): void => {
    const blocks = needed.get(layer) ?? new Set();
    needed.set(layer, blocks);
    for (let at = first; at < first + count; at++) blocks.add(at);
  };
  for (const { name } of await ullage.listVolumes()) {
    const { runs } = await ullage.mapVolume(name, 0, 1e6);
    for (const { offset, length, kind, owner } of runs) {
      if (kind === "written") need(owner!, offset / block, Math.ceil(length / block));
    }
  }
  for (const id of await readdir(join(dataDir, "maps")).catch(() => [])) {
    const { map, table } = await loadFrozenMap(plainEnvironment(dataDir), id);
    for (let at = 0; at < map.blocks; at++) {
      const owner = table.get(map.ownerOf(at));
      if (owner?.kind === "layer") need(owner.id, at, 1);
    }
  }
  return needed;
}

/** Layers that no file of a volume and no frozen map's file names: they are about to go. */
export async function unnamedLayers(dataDir: string): Promise<string[]> {
  const env = plainEnvironment(dataDir);
  const layers = new Set(await readdir(join(dataDir, "layers")));
  for (const id of await readdir(join(dataDir, "volumes"))) {
    for (const layer of await volumeReferences(env, id)) layers.delete(layer);
  }
  for (const id of await readdir(join(dataDir, "maps")).catch(() => [])) {
    if (!isId(id)) continue;
    for (const layer of await frozenReferences(env, id).catch(() => [])) layers.delete(layer); // it may go meanwhile
  }
  return [...layers].filter(isId);
}

/** Sealed layers by id, with the blocks that have data in them though nobody needs them. */
export async function uselessBlocks(ullage: Ullage, dataDir: string): Promise<Map<string, number[]>> {
  const needed = await neededBlocks(ullage, dataDir);
  const unsealed = new Set<string>();
  for (const { name } of await ullage.listVolumes()) {
    for (const id of ((await ullage.getDevice(name)) as Volume).unsealedLayerIds()) unsealed.add(id);
  }
  const useless = new Map<string, number[]>();
  for (const id of await readdir(join(dataDir, "layers"))) {
    if (unsealed.has(id)) continue;
    const allocated = await allocatedBlocks(dataDir, id).catch((error: unknown) => {
      // An opened volume gives up layers that it needs no more, in its own time.
      if ((needed.get(id)?.size ?? 0) === 0 && !existsSync(join(dataDir, "layers", id))) return [];
      throw error;
    });
    const found = allocated.filter((at) => needed.get(id)?.has(at) !== true);
    if (found.length > 0) useless.set(id, found);
  }
  return useless;
}

export async function allocatedBlocks(dataDir: string, layerId: string): Promise<number[]> {
  const layer = await Layer.open(plainEnvironment(dataDir), layerId, "read");
  try {
    const blocks: number[] = [];
    for (let run = layer.nextData(0); run; run = layer.nextData(run.block + run.count)) {
      for (let at = Math.max(0, run.block); at < run.block + run.count; at++) blocks.push(at);
    }
    return blocks;
  } finally {
    await layer.file.close();
  }
}

/** @param except layers that a kill has left behind */
export async function demandNothingUseless(
  ullage: Ullage,
  dataDir: string,
  except: ReadonlySet<string> = new Set(),
): Promise<void> {
  const useless = await uselessBlocks(ullage, dataDir);
  for (const layer of except) useless.delete(layer);
  assert.deepEqual(useless, new Map(), "blocks that nobody needs have data");
}

/** Bytes on disk of files. */
async function onDisk(paths: string[]): Promise<number> {
  let bytes = 0;
  for (const path of paths) bytes += (await stat(path).catch(() => ({ blocks: 0 }))).blocks * 512;
  return bytes;
}

/**
 * What is told of all volumes together is what the file system says, and the sum of what is told of each. What is freed in
 * the background meanwhile may come between two questions: then they are asked again.
 */
export async function demandSpaceAddsUp(ullage: Ullage, dataDir: string): Promise<void> {
  for (const { name } of await ullage.listVolumes()) await (await ullage.getDevice(name)).flush();
  for (let attempt = 1; ; attempt++) {
    try {
      await askForSpace(ullage, dataDir);
      return;
    } catch (error) {
      if (attempt === 20) throw error;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
}

async function askForSpace(ullage: Ullage, dataDir: string): Promise<void> {
  const layers = await readdir(join(dataDir, "layers"));
  const blobs = await readdir(join(dataDir, "blobs")).catch(() => []);
  const all = await ullage.space();
  const inLayers = await onDisk(layers.map((name) => join(dataDir, "layers", name)));
  const inBlobs = await onDisk(blobs.map((name) => join(dataDir, "blobs", name, "data")));
  assert.equal(all.exclusiveBytes + all.sharedBytes + all.unusedBytes, inLayers, "layers");
  assert.equal(all.cachedBytes, inBlobs, "blobs");
  const each = await Promise.all((await ullage.listVolumes()).map(({ name }) => ullage.spaceOf(name)));
  assert.equal(
    each.reduce((sum, { exclusiveBytes }) => sum + exclusiveBytes, 0),
    all.exclusiveBytes,
    "exclusive",
  );
  assert.equal(
    each.some(({ sharedBytes }) => sharedBytes > 0),
    all.sharedBytes > 0,
    "shared",
  );
}
