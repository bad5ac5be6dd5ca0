import { join } from "node:path";
import { CorruptionError, errnoOf, IoError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { blobFileNames, blobTemporaryNames } from "../../blob/blob-files.ts";
import type { VolumeRecord } from "../../catalog/metadata-store.ts";
import { readMapTable } from "../../volume/map/map-file.ts";
import { layersDir, mapPath, mapsDir, numbered, volumeDir } from "../../volume/paths.ts";
import { cleanCheckpoint, frozenReferences, volumeReferences } from "../../volume/layers/references.ts";
import { describedSnapshots } from "../../volume/snapshot-files.ts";
import type { OfflineData } from "./offline-data.ts";
import { isEmptyLayer, layerCreator } from "../volumes/volume-files.ts";

/*
 * What lies in the folders of a data directory and belongs to nothing. Three kinds:
 *
 *     remains   of something that a crash interrupted: the next start, or opening, removes them or moves them away
 *     orphans   nothing refers to them and no start looks at them: `repair` moves them to orphans/
 *     unsure    may belong to what is damaged
 *
 * A layer belongs to every map and log that names it, a frozen map to its row in the catalog, its description beside a
 * volume, and every checkpoint that begins with it. So neither is judged while a volume, a frozen map or the catalog is
 * damaged, or by a volume that a repair has put files of aside: those may have named anything.
 */

export interface Stray {
  kind: "remains" | "orphan";
  /** below the data directory */
  path: string;
  /** What it is, and what becomes of it. */
  message: string;
}

/** What may lie beside each other in a folder whose entries are not asked for by name. */
const blobNames = /^[0-9a-f]{32}(\.range_map(\.new)?)?$/;
const blobRemains = /^[0-9a-f]{32}\.(removed|making)$|\.tmp$/;
const volumeFileNames =
  /^((map|intent)\.[1-9]\d{0,14}|volume\.json|snapshot\.[0-9a-f]{32}\.json|poison)$|\.(damaged|tmp)$/;
const traceNames = /\.(json|tmp)$/;

/** @param sound no volume is damaged, and there is a catalog */
export async function findStrays(data: OfflineData, sound: boolean): Promise<Stray[]> {
  return [
    ...(await strayLayersAndMaps(data, sound)),
    ...(await strayVolumeFiles(data)),
    ...(await strangers(data, "blobs", blobNames, blobRemains)),
    ...(await strayBlobFiles(data)),
    ...(await strangers(data, "traces", traceNames, /^$/)),
  ];
}

async function strayLayersAndMaps(data: OfflineData, sound: boolean): Promise<Stray[]> {
  const { env } = data;
  const layers = await env.fs.readdir(layersDir(env.dataDir));
  const maps = await env.fs.readdir(mapsDir(env.dataDir));
  const strays = [
    ...named("layers", layers, isId, (name) => name.endsWith(".tmp")),
    ...named("maps", maps, isId, (name) => name.endsWith(".tmp")),
  ];
  if (!sound) return strays;
  try {
    const needed = await neededMaps(data, maps.filter(isId));
    const strayMaps = maps.filter((id) => isId(id) && !needed.includes(id));
    strays.push(
      ...strayMaps.map((id) =>
        orphan(join("maps", id), "is a frozen map of no snapshot, and no volume begins with it"),
      ),
      ...(await strayLayers(data, layers.filter(isId), needed)),
    );
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error; // `checkVolume` says what is damaged; a frozen map, its volume
  }
  return strays;
}

async function strayLayers({ env, rows, volumeIds }: OfflineData, layers: string[], maps: string[]): Promise<Stray[]> {
  const used = new Set<string>();
  for (const id of volumeIds) for (const layer of await volumeReferences(env, id)) used.add(layer);
  for (const id of maps) for (const layer of await frozenReferences(env, id)) used.add(layer);
  const strays: Stray[] = [];
  for (const id of layers.filter((layer) => !used.has(layer))) {
    const creator = await layerCreator(env, id);
    const row = rows.find((candidate) => candidate.id === creator);
    const path = join("layers", id);
    if (row !== undefined && row.state !== "ready") {
      strays.push(remains(path, `is a layer of volume '${row.name}', which is ${row.state}`));
    } else if (row === undefined && creator !== undefined && volumeIds.includes(creator)) {
      strays.push(remains(path, `is a layer of volumes/${creator}, whose creation was interrupted`));
    } else if (creator === undefined || !(await hasDamagedFiles(env, creator))) {
      const what = `is a layer${ofVolume(row, creator)} that no map and no log refers to`;
      const goes = row !== undefined && (await isEmptyLayer(env, id)) && !(await cleanCheckpoint(env, row.id));
      strays.push(goes ? remains(path, `${what}, as an interrupted snapshot leaves it`) : orphan(path, what));
    }
  }
  return strays;
}

function ofVolume(row: VolumeRecord | undefined, creator: string | undefined): string {
  if (row !== undefined) return ` of volume '${row.name}'`;
  return creator === undefined ? " without a header" : ` of a volume that is gone (${creator})`;
}

/** A repair has put aside what may have named more. */
async function hasDamagedFiles({ fs, dataDir }: OfflineData["env"], volumeId: string): Promise<boolean> {
  return (await fs.readdir(volumeDir(dataDir, volumeId))).some((name) => name.endsWith(".damaged"));
}

async function neededMaps({ env, snapshots, volumeIds }: OfflineData, maps: string[]): Promise<string[]> {
  const used = new Set<string>(snapshots.map(({ id }) => id)); // a start goes by rows, whatever they say
  let unsure = false;
  for (const volumeId of volumeIds) {
    const dir = volumeDir(env.dataDir, volumeId);
    const entries = await env.fs.readdir(dir);
    unsure ||= entries.some((name) => name.endsWith(".damaged"));
    for (const id of describedSnapshots(entries)) used.add(id);
    for (const number of numbered(entries, "map")) {
      const { base } = (await readMapTable(env, mapPath(dir, number))).checkpoint;
      if (base !== undefined) used.add(base);
    }
  }
  return maps.filter((id) => unsure || used.has(id));
}

async function strayVolumeFiles({ env, rows, volumeIds }: OfflineData): Promise<Stray[]> {
  const strays: Stray[] = [];
  for (const name of await env.fs.readdir(join(env.dataDir, "volumes"))) {
    if (!isId(name)) strays.push(orphan(join("volumes", name), "is no volume"));
  }
  for (const id of volumeIds) {
    const row = rows.find((candidate) => candidate.id === id);
    if (row !== undefined && row.state !== "ready") continue; // it goes with all that is in it
    for (const name of await entriesOf(env, join("volumes", id))) {
      if (!volumeFileNames.test(name)) strays.push(orphan(join("volumes", id, name), "is no file of a volume"));
    }
  }
  return strays;
}

/** Temporary files of its own are the blob's business (blob/check-blob.ts). */
async function strayBlobFiles({ env, blobIds }: OfflineData): Promise<Stray[]> {
  const strays: Stray[] = [];
  for (const id of blobIds) {
    const dir = join("blobs", id);
    for (const name of await entriesOf(env, dir)) {
      const known = blobFileNames.includes(name) || blobTemporaryNames.includes(name);
      if (!known) strays.push(orphan(join(dir, name), "is no file of a blob"));
    }
    for (const name of await entriesOf(env, join(dir, "pins"))) {
      if (!isId(name)) strays.push(orphan(join(dir, "pins", name), "is no pin of a volume"));
    }
  }
  return strays;
}

async function strangers({ env }: OfflineData, folder: string, known: RegExp, interrupted: RegExp): Promise<Stray[]> {
  const names = await entriesOf(env, folder);
  return named(
    folder,
    names,
    (name) => known.test(name),
    (name) => interrupted.test(name),
  );
}

function named(
  folder: string,
  names: string[],
  known: (name: string) => boolean,
  interrupted: (name: string) => boolean,
): Stray[] {
  return names
    .filter((name) => !known(name))
    .map((name) =>
      interrupted(name)
        ? remains(join(folder, name), "was being made or removed when the last process ended")
        : orphan(join(folder, name), `is nothing that belongs into ${folder}/`),
    );
}

/** What is no directory has none. */
async function entriesOf({ fs, dataDir }: OfflineData["env"], folder: string): Promise<string[]> {
  return fs.readdir(join(dataDir, folder)).catch((error: unknown) => {
    if (error instanceof IoError && errnoOf(error) === "ENOTDIR") return [];
    throw error;
  });
}

const remains = (path: string, what: string): Stray => ({
  kind: "remains",
  path,
  message: `${path} ${what}: the next start, or opening, clears it away`,
});

const orphan = (path: string, what: string): Stray => ({ kind: "orphan", path, message: `${path} ${what}` });
