import { join } from "node:path";
import { CorruptionError, UllageError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import type { ExportRecord, MetadataStore, SnapshotRecord, VolumeRecord } from "../../catalog/metadata-store.ts";
import { layersDir, mapsDir } from "../../volume/paths.ts";
import { frozenMaps, frozenReferences, volumeReferences } from "../../volume/layers/references.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import type { Warning } from "../health/health.ts";
import { moveToOrphans } from "./orphans.ts";
import { hasBeenOpen, isComplete, layerCreator, readDescription, removeVolumeFiles } from "../volumes/volume-files.ts";

/*
 * What every start does before anything is served (durability rule 17). Only what a durable row says was on its way in or
 * out is removed. Everything else that the catalog does not know is moved to orphans/ and reported. Complete volumes
 * without a row mean that the catalog is lost or older than the volumes: then nothing at all is touched.
 */

const pageRows = 500;

export interface Swept {
  /** complete volumes */
  ready: VolumeRecord[];
  /** removed now, with the blobs that they were made from */
  removed: VolumeRecord[];
  /** complete snapshots, and those whose removal was interrupted */
  snapshots: { ready: SnapshotRecord[]; deleting: SnapshotRecord[] };
  /** of what is complete */
  exports: ExportRecord[];
  /** ids of all layers that were there; some may be gone by now */
  layers: string[];
  warnings: Warning[];
}

/** @throws UllageError `catalog-lost` */
export async function sweepAtStart(env: VolumeEnvironment, store: MetadataStore): Promise<Swept> {
  const rows = await allRows(store);
  const known = new Set(rows.map(({ id }) => id));
  const strangers = (await env.fs.readdir(join(env.dataDir, "volumes"))).filter((id) => !known.has(id));
  await refuseLostCatalog(env, strangers);
  const unfinished = rows.filter(({ state }) => state !== "ready");
  await refuseOldCatalog(env, unfinished);
  const layers = await removeHalfWritten(env);
  for (const { id } of unfinished) await removeVolumeFiles(env, id);
  const orphans = strangers.map((id) => join("volumes", id));
  // Only an interrupted start or end of a volume leaves layers behind: otherwise they need not be looked at.
  if (unfinished.length > 0 || strangers.length > 0) orphans.push(...(await nobodysLayers(env, known)));
  const warnings = await putAway(env, orphans);
  const snapshots = await allSnapshots(store);
  const ready = rows.filter(({ state }) => state === "ready");
  const readySnapshots = snapshots.filter(({ state }) => state === "ready");
  return {
    ready,
    removed: unfinished,
    exports: await sweepExports(store, ready, readySnapshots),
    layers,
    snapshots: {
      ready: readySnapshots,
      deleting: snapshots.filter(({ state }) => state === "deleting"),
    },
    warnings,
  };
}

/** Exports go with what they stand for, and before its row does; those of a row that is gone say nothing to anybody. */
async function sweepExports(
  store: MetadataStore,
  volumes: VolumeRecord[],
  snapshots: SnapshotRecord[],
): Promise<ExportRecord[]> {
  const named = snapshots.filter(({ name }) => name !== null);
  const known = new Set([...volumes, ...named].map(({ id }) => id));
  const rows = await allExports(store);
  const isWhole = ({ volumeId, snapshotId }: ExportRecord): boolean =>
    known.has(volumeId) && (snapshotId === null || known.has(snapshotId));
  for (const row of rows) if (!isWhole(row)) await store.deleteExport(row.id);
  return rows.filter(isWhole);
}

/** All volumes, in any state. */
export function allRows(store: MetadataStore): Promise<VolumeRecord[]> {
  return everyPage((after) => store.listVolumes(after, pageRows));
}

export function allSnapshots(store: MetadataStore): Promise<SnapshotRecord[]> {
  return everyPage((after) => store.listSnapshots(after, pageRows));
}

/** All that were added. */
export function allExports(store: MetadataStore): Promise<ExportRecord[]> {
  return everyPage((after) => store.listExports(after, pageRows));
}

async function everyPage<T extends { id: string }>(page: (after: string) => Promise<T[]>): Promise<T[]> {
  const rows: T[] = [];
  for (;;) {
    const found = await page(rows.at(-1)?.id ?? "");
    rows.push(...found);
    if (found.length < pageRows) return rows;
  }
}

async function refuseLostCatalog(env: VolumeEnvironment, strangers: string[]): Promise<void> {
  const names: string[] = [];
  for (const id of strangers) {
    if (!isId(id) || !(await isComplete(env.fs, env.dataDir, id))) continue;
    const description = await readDescription(env.fs, env.dataDir, id).catch(() => undefined);
    names.push(description?.name ?? id);
  }
  if (names.length === 0) return;
  const some = names.sort().slice(0, 5).join(", ");
  throw new UllageError(
    "catalog-lost",
    `catalog.db knows nothing of ${names.length} volumes below ${env.dataDir}/volumes: ${some}`,
    {
      hint:
        "it is lost or older than the volumes: put the newer one back, or run `ullage repair DATA`, " +
        "which rebuilds it from the volumes",
    },
  );
}

/**
 * A volume is opened, and gets a second log, only after its row says `ready`. So one that is still `creating` and has been
 * open comes from an older copy of the catalog, and removing it would destroy data.
 */
async function refuseOldCatalog(env: VolumeEnvironment, unfinished: VolumeRecord[]): Promise<void> {
  for (const { id, name, state } of unfinished) {
    if (state !== "creating" || !(await hasBeenOpen(env.fs, env.dataDir, id))) continue;
    throw new UllageError(
      "catalog-lost",
      `catalog.db says that volume '${name}' is being made, but it has been in use`,
      {
        hint: "catalog.db is older than the volumes: put the newer one back, or run `ullage repair DATA`",
      },
    );
  }
}

/** What was being written when the last process ended, under a name that nothing refers to. @returns the layers beside it */
async function removeHalfWritten(env: VolumeEnvironment): Promise<string[]> {
  const layers = await removeTemporary(env, layersDir(env.dataDir));
  await removeTemporary(env, mapsDir(env.dataDir));
  return layers.filter(isId);
}

/** @returns what the directory has */
async function removeTemporary({ fs }: VolumeEnvironment, dir: string): Promise<string[]> {
  const names = await fs.readdir(dir);
  for (const name of names) if (name.endsWith(".tmp")) await fs.unlink(join(dir, name));
  return names;
}

/** Layers of volumes that nobody knows. */
async function nobodysLayers(env: VolumeEnvironment, known: Set<string>): Promise<string[]> {
  const found: string[] = [];
  for (const name of await env.fs.readdir(layersDir(env.dataDir))) {
    const creator = await layerCreator(env, name);
    if (creator === undefined || !known.has(creator)) found.push(name);
  }
  if (found.length === 0) return [];
  try {
    return (await unreferenced(env, found)).map((name) => join("layers", name));
  } catch (error) {
    if (!(error instanceof CorruptionError)) throw error;
    env.log("warn", `layers stay, though they may belong to nobody: ${error.message}`);
    return [];
  }
}

/** Those that no volume and no snapshot refers to: a clone may outlive the volume that a layer was made for. */
async function unreferenced(env: VolumeEnvironment, layers: string[]): Promise<string[]> {
  const used = new Set<string>();
  for (const id of await frozenMaps(env)) for (const layer of await frozenReferences(env, id)) used.add(layer);
  for (const id of await env.fs.readdir(join(env.dataDir, "volumes"))) {
    if (!isId(id)) continue;
    for (const layer of await volumeReferences(env, id)) used.add(layer);
  }
  return layers.filter((layer) => !used.has(layer));
}

async function putAway(env: VolumeEnvironment, paths: string[]): Promise<Warning[]> {
  const moved = await moveToOrphans(env, paths);
  return paths.map((path, index) => ({
    code: "orphan",
    message: `${path} belonged to nothing that the catalog knows; it is now ${moved[index]}`,
  }));
}
