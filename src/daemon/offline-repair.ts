import { join } from "node:path";
import { checkBlob } from "../blob/check-blob.ts";
import { defaultSettings, type Settings, type VolumeRecord } from "../catalog/metadata-store.ts";
import { repairVolume } from "../volume/check-volume.ts";
import type { OfflineData } from "./offline-data.ts";
import { hasBeenOpen, isComplete, readDescription } from "./volume-files.ts";

/** One thing that `repair` would do. */
export interface RepairStep {
  /** What is done. */
  action: string;
  /** What is lost by it; empty: nothing. */
  losses: string[];
  run(): Promise<void>;
}

/**
 * What would make a data directory usable again; nothing is changed before a step is run. Steps are to be run in this
 * order: the catalog first, since the next start goes by it.
 */
export async function planRepair(data: OfflineData): Promise<RepairStep[]> {
  return [...(await catalogSteps(data)), ...(await volumeSteps(data)), ...(await blobSteps(data))];
}

async function catalogSteps(data: OfflineData): Promise<RepairStep[]> {
  const { env, directory, rows, volumeIds, exportNames } = data;
  const steps: RepairStep[] = [];
  const path = directory.below("catalog.db");
  if (data.catalogProblem !== undefined) {
    steps.push({
      action: `${data.catalogProblem}: begin a new catalog; what is there is kept as catalog.db.damaged`,
      losses: [
        "settings that were changed after a volume was made, how hydration was steered, and names of exports that were added",
      ],
      async run() {
        for (const suffix of ["", "-wal", "-shm"]) {
          if (await env.fs.exists(path + suffix)) await env.fs.rename(path + suffix, `${path}.damaged${suffix}`);
        }
        await data.beginCatalog();
      },
    });
  }
  const known = new Set(rows.map(({ id }) => id));
  const names = new Set([...rows.map(({ name }) => name), ...exportNames]);
  for (const id of volumeIds) {
    if (known.has(id) || !(await isComplete(env.fs, env.dataDir, id))) continue;
    const record = await describeVolume(data, id, names);
    names.add(record.name);
    steps.push({
      action: `add volume '${record.name}' (${id}) to the catalog`,
      losses: [],
      run: () => data.store.insertVolume(record),
    });
  }
  for (const { id, name } of await inUseThoughCreating(data)) {
    const { blobId = null } = await readDescription(env.fs, env.dataDir, id);
    steps.push({
      action: `believe that volume '${name}' is complete: it has been in use, the catalog is older`,
      losses: [],
      run: async () => {
        await data.store.updateVolume(id, { state: "ready", blobId });
      },
    });
  }
  for (const { id, name, state } of rows) {
    if (state !== "ready" || volumeIds.includes(id)) continue;
    steps.push({
      action: `forget volume '${name}', whose files are gone`,
      losses: [`what the catalog says of volume '${name}' (${id})`],
      run: () => data.store.deleteVolume(id),
    });
  }
  return steps;
}

/** Volumes that an older copy of the catalog takes for half made. */
async function inUseThoughCreating({ env, rows, volumeIds }: OfflineData): Promise<VolumeRecord[]> {
  const found: VolumeRecord[] = [];
  for (const row of rows) {
    if (row.state !== "creating" || !volumeIds.includes(row.id)) continue;
    if (await hasBeenOpen(env.fs, env.dataDir, row.id)) found.push(row);
  }
  return found;
}

/** The row of a volume that has none, from what the volume says about itself. */
async function describeVolume({ env }: OfflineData, id: string, taken: Set<string>): Promise<VolumeRecord> {
  const described = await readDescription(env.fs, env.dataDir, id);
  const settings = { ...defaultSettings, ...(described.settings as Partial<Settings> | undefined) };
  return {
    id,
    name: taken.has(described.name) ? `${described.name.slice(0, 119)}-${id.slice(0, 8)}` : described.name,
    state: "ready",
    size: described.size,
    source: described.source ?? null,
    format: described.format ?? null,
    blobId: described.blobId ?? null,
    settings,
    hydration: { wanted: settings.hydrate === "auto", paused: false, rate: null, priority: 0 },
    createdAt: described.createdAt,
    requestKey: null,
    requestDigest: null,
    origin: described.origin ?? null,
  };
}

async function volumeSteps({ env, rows, volumeIds }: OfflineData): Promise<RepairStep[]> {
  const steps: RepairStep[] = [];
  for (const id of volumeIds) {
    const row = rows.find((candidate) => candidate.id === id);
    if ((row !== undefined && row.state !== "ready") || !(await isComplete(env.fs, env.dataDir, id))) continue;
    const losses = await repairVolume(env, id, false);
    if (losses.length === 0) continue;
    steps.push({
      action: `take volume '${row?.name ?? id}' back to the newest state that can be believed`,
      losses,
      run: async () => {
        await repairVolume(env, id, true);
      },
    });
  }
  return steps;
}

async function blobSteps({ env, blobIds }: OfflineData): Promise<RepairStep[]> {
  const steps: RepairStep[] = [];
  for (const id of blobIds) {
    for (const { message, severity, repair } of await checkBlob(env.fs, join(env.dataDir, "blobs", id))) {
      if (repair === undefined) continue;
      const losses = severity === "error" ? [repair.description] : [];
      steps.push({ action: `${message}: ${repair.description}`, losses, run: () => repair.run() });
    }
  }
  return steps;
}
