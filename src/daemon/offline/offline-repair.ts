import { join } from "node:path";
import { describeError, UllageError } from "../../base/errors.ts";
import { checkBlob } from "../../blob/check-blob.ts";
import {
  defaultSettings,
  type Settings,
  type SnapshotRecord,
  type VolumeRecord,
} from "../../catalog/metadata-store.ts";
import { checkVolume, repairVolume } from "../../volume/check-volume.ts";
import { volumeDir } from "../../volume/paths.ts";
import { describeSnapshot, readSnapshot, type SnapshotDescription } from "../../volume/snapshot-files.ts";
import { isCacheElsewhere } from "../cache/cache-place.ts";
import { findStrays } from "./offline-orphans.ts";
import type { OfflineData } from "./offline-data.ts";
import { moveToOrphans } from "../directory/orphans.ts";
import { hasBeenOpen, isComplete, readDescription, writeDescription } from "../volumes/volume-files.ts";

/** What `repair` would do, and what it can do nothing about. */
export interface RepairPlan {
  steps: RepairStep[];
  /** Damage that stays, with what the operator can do. */
  hopeless: string[];
}

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
export async function planRepair(data: OfflineData): Promise<RepairPlan> {
  const hopeless: string[] = [];
  const steps = [...(await catalogSteps(data, hopeless)), ...(await volumeSteps(data, hopeless))];
  // While something is damaged, what belongs to nothing can't be told: the next repair finds it.
  const sound = steps.length === 0 && hopeless.length === 0;
  // A blob that is removed must not take along what is not its own.
  steps.push(...(await straySteps(data, sound)), ...(await blobSteps(data, hopeless)));
  return { steps, hopeless };
}

async function straySteps(data: OfflineData, sound: boolean): Promise<RepairStep[]> {
  const { env } = data;
  const orphans = (await findStrays(data, sound)).filter(({ kind }) => kind === "orphan");
  return orphans.map(({ path, message }) => ({
    action: `${message}: move it to orphans/`,
    losses: [],
    run: async () => {
      await moveToOrphans(env, [path]);
    },
  }));
}

async function catalogSteps(data: OfflineData, hopeless: string[]): Promise<RepairStep[]> {
  const { env, directory, rows, volumeIds, exportNames } = data;
  const steps: RepairStep[] = [];
  const path = directory.below("catalog.db");
  if (data.catalogProblem !== undefined) {
    steps.push({
      action: `${data.catalogProblem}: begin a new catalog; what is there is kept as catalog.db.damaged`,
      losses: [
        "settings that were changed after a volume was made, how hydration was steered, names of exports that were added, " +
          "and the Idempotency-Keys that volumes were made with",
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
    const record = await describeVolume(data, id, names).catch((error: unknown) => {
      hopeless.push(`volume ${id} can't be added to the catalog: ${describeError(error)}`);
    });
    if (record === undefined) continue;
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
  const elsewhere = await isCacheElsewhere(env.fs, env.dataDir);
  for (const { id, name, state, blobId } of rows) {
    if (state === "ready" && blobId !== null && !elsewhere && !data.blobIds.includes(blobId)) {
      hopeless.push(`volume '${name}' needs blobs/${blobId}, which is missing: restore it, or remove the volume`);
    }
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
    standing: null,
  };
}

async function volumeSteps(data: OfflineData, hopeless: string[]): Promise<RepairStep[]> {
  const { env, rows, snapshots, volumeIds } = data;
  const steps: RepairStep[] = [];
  for (const id of volumeIds) {
    const row = rows.find((candidate) => candidate.id === id);
    if ((row !== undefined && row.state !== "ready") || !(await isComplete(env.fs, env.dataDir, id))) continue;
    const name = row?.name ?? id;
    const own = snapshots.filter(({ volumeId, state }) => volumeId === id && state === "ready");
    steps.push(...(await descriptionSteps(data, row, own)));
    const damages = await checkVolume(env, id, own);
    const losses = await repairVolume(env, id, false).catch((error: unknown): string[] => {
      if (!(error instanceof UllageError) || error.code !== "nothing-left") throw error;
      return [];
    });
    for (const { severity, message } of damages) {
      const known = losses.includes(message) || (row !== undefined && message.includes(".json is damaged: "));
      if (severity === "damage" && !known) hopeless.push(`volume '${name}': ${message}`);
    }
    if (losses.length === 0) continue;
    steps.push({
      action: `take volume '${name}' back to the newest state that can be believed`,
      losses,
      run: async () => {
        await repairVolume(env, id, true);
      },
    });
  }
  return steps;
}

/** What a volume and its snapshots say of themselves is written again where it is damaged: the catalog knows it. */
async function descriptionSteps(
  { env }: OfflineData,
  row: VolumeRecord | undefined,
  snapshots: readonly SnapshotRecord[],
): Promise<RepairStep[]> {
  if (row === undefined) return [];
  const steps: RepairStep[] = [];
  const step = (error: unknown, run: () => Promise<void>): void => {
    steps.push({ action: `${describeError(error)}: write it again from the catalog`, losses: [], run });
  };
  const { id, name, size, createdAt, source, format, settings, blobId } = row;
  await readDescription(env.fs, env.dataDir, id).catch((error: unknown) => {
    step(error, () => writeDescription(env, { id, name, size, createdAt, source, format, settings, blobId }));
  });
  const dir = volumeDir(env.dataDir, id);
  for (const snapshot of snapshots) {
    await readSnapshot(env, dir, snapshot.id).catch((error: unknown) => {
      step(error, () => describeSnapshot(env, dir, descriptionOf(snapshot)));
    });
  }
  return steps;
}

function descriptionOf({ id, name, size, createdAt, requestKey, requestDigest }: SnapshotRecord): SnapshotDescription {
  const key = requestKey === null || requestDigest === null ? undefined : { key: requestKey, digest: requestDigest };
  return { id, name, size, createdAt, request: key };
}

async function blobSteps({ env, rows, blobIds }: OfflineData, hopeless: string[]): Promise<RepairStep[]> {
  const used = new Set(rows.map(({ blobId }) => blobId));
  const steps: RepairStep[] = [];
  for (const id of blobIds) {
    for (const { message, severity, repair } of await checkBlob(env.fs, join(env.dataDir, "blobs", id))) {
      if (repair === undefined && severity === "error" && used.has(id)) hopeless.push(`${message}: restore it`);
      if (repair === undefined) continue;
      const { description, loss } = repair;
      const losses = severity === "error" && loss !== null ? [loss] : [];
      const calm = losses.length > 0 ? "" : `; ${loss ?? "nothing is lost"}`;
      steps.push({ action: `${message}: ${description}${calm}`, losses, run: () => repair.run() });
    }
  }
  return steps;
}
