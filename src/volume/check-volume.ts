import { CorruptionError, describeError, IoError, UllageError } from "../base/errors.ts";
import { type FrozenMap, loadFrozenMap } from "./map/frozen-map.ts";
import { IntentLog } from "./log/intent-log.ts";
import { Layer } from "./layers/layer.ts";
import { volumeLimits } from "./limits.ts";
import { type Checkpoint, writeMapFile } from "./map/map-file.ts";
import { blockBytes } from "./map/owner-map.ts";
import { OwnerTable } from "./map/owner-table.ts";
import { frozenMapPath, logPath, mapPath, numbered, volumeDir } from "./paths.ts";
import { markPoisoned, readPoison } from "./poison.ts";
import { recover, type Recovered, RecoverySyncError, secureEmptyLogs, syncAll } from "./log/recovery.ts";
import { frozenReferences, volumeReferences } from "./layers/references.ts";
import { describedSnapshots, readSnapshot } from "./snapshot-files.ts";
import type { VolumeEnvironment } from "./types.ts";

/*
 * Offline check and repair of one volume, under its lock. Check reads every checksum and reference and changes nothing.
 * Repair goes back to the newest state whose every byte can be believed, a snapshot if need be; what it leaves out is
 * renamed, never deleted.
 */

export interface VolumeProblem {
  /** `damage` keeps the volume from opening; a `note` does not */
  severity: "damage" | "note";
  message: string;
}

/**
 * @param promised the snapshots that the catalog says are there, which only the volume's log may hold yet
 * @throws `locked` when a daemon has the volume open
 */
export async function checkVolume(
  env: VolumeEnvironment,
  id: string,
  promised: readonly { id: string; name: string | null }[] = [],
): Promise<VolumeProblem[]> {
  return locked(env, id, async (dir) => {
    const problems = new Map<string, VolumeProblem>();
    const found = (severity: VolumeProblem["severity"], message: string): void => {
      if (!problems.has(message)) problems.set(message, { severity, message });
    };
    const part = async (work: () => Promise<unknown>, what = ""): Promise<void> => {
      try {
        await work();
      } catch (error) {
        if (!isDamage(error)) throw error;
        found("damage", what + describeError(error));
      }
    };
    const poison = await readPoison(env, dir, id);
    if (poison !== undefined) found("note", `volume ${id} is poisoned: ${poison}`);
    const inLog = new Set<string>();
    await part(async () => {
      const recovered = await recover(quiet(env), dir, id, { onDamage: (error) => found("damage", error.message) });
      for (const snapshot of recovered.snapshots) inLog.add(snapshot.id);
      if (recovered.checkpoint.lostUnflushed) found("note", `volume ${id} may have lost acknowledged writes`);
      await closeFiles(recovered);
    });
    await part(async () => demandLayers(env, await volumeReferences(env, id)));
    for (const snapshot of describedSnapshots(await env.fs.readdir(dir))) {
      await part(() => readSnapshot(env, dir, snapshot));
    }
    for (const snapshot of promised) {
      if (inLog.has(snapshot.id) && !(await env.fs.exists(frozenMapPath(env.dataDir, snapshot.id)))) continue;
      await part(() => demandSnapshot(env, snapshot.id), `snapshot '${snapshot.name ?? snapshot.id}': `);
    }
    return [...problems.values()];
  });
}

/** What a check reports instead of ending: bytes that are wrong, a file that is not there or can't be read. */
function isDamage(error: unknown): boolean {
  if (error instanceof RecoverySyncError) return false;
  return error instanceof CorruptionError || error instanceof IoError || isDamagedDescription(error);
}

function isDamagedDescription(error: unknown): boolean {
  return error instanceof UllageError && error.code === "description-damaged";
}

/** @throws CorruptionError, IoError for a layer that is missing or is not what it should be */
async function demandLayers(env: VolumeEnvironment, layers: Iterable<string>): Promise<void> {
  for (const id of layers) {
    const layer = await Layer.open(env, id, "read");
    try {
      await layer.verify();
    } finally {
      await layer.file.close();
    }
  }
}

/** @throws CorruptionError, IoError unless a frozen map and all its layers can be read */
async function demandSnapshot(env: VolumeEnvironment, id: string): Promise<FrozenMap> {
  const path = frozenMapPath(env.dataDir, id);
  if (!(await env.fs.exists(path))) throw new CorruptionError(`${path} is missing`);
  const frozen = await loadFrozenMap(env, id);
  await demandLayers(env, await frozenReferences(env, id));
  return frozen;
}

/**
 * Brings a damaged volume back to the newest state that can be believed, and marks it `lostUnflushed`, so that no
 * writer mistakes it for the state it left.
 * @param apply false: only says what would happen
 * @returns what is (or would be) lost; empty when nothing is damaged
 * @throws UllageError `nothing-left` when there is nothing to go back to
 */
export async function repairVolume(env: VolumeEnvironment, id: string, apply: boolean): Promise<string[]> {
  return locked(env, id, async (dir) => {
    const losses: string[] = [];
    let recovered: Recovered;
    try {
      recovered = await recover(quiet(env), dir, id, { onDamage: (error) => losses.push(error.message) });
    } catch (error) {
      if (!isDamage(error)) throw error;
      return goBackToSnapshot(env, dir, id, { apply, damage: describeError(error) });
    }
    try {
      if (losses.length === 0) return [];
      losses.push(`everything written to volume ${id} after LSN ${recovered.lastLsn}`);
      if (apply) await startAgain(env, dir, id, recovered);
      return losses;
    } finally {
      await closeFiles(recovered);
    }
  });
}

/** The newest snapshot of which everything is there becomes the volume. @returns what is lost by that */
async function goBackToSnapshot(
  env: VolumeEnvironment,
  dir: string,
  id: string,
  { apply, damage: why }: { apply: boolean; damage: string },
): Promise<string[]> {
  const base = await newestWholeSnapshot(env, dir);
  if (base === undefined) {
    throw new UllageError("nothing-left", `${why}; and there is no whole snapshot to go back to`, {
      hint: "restore it from a backup, or remove the volume",
    });
  }
  const { frozen, name, createdAt } = base;
  if (apply) {
    const entries = await env.fs.readdir(dir);
    const number = Math.max(0, ...numbered(entries, "map"), ...numbered(entries, "intent")) + 1;
    const layer = await Layer.create(env, env.randomBytes(16).toString("hex"), id, Math.ceil(frozen.size / blockBytes));
    await layer.file.close();
    const head = frozen.table.free();
    const table = new OwnerTable();
    table.put(head, { kind: "layer", id: layer.id });
    const checkpoint = { volumeId: id, cut: 0, size: frozen.size, head, remoteWriters: true, base: frozen.id };
    await beginAgain(env, dir, number, undefined, { ...checkpoint, map: undefined, table });
  }
  return [why, `everything written to volume ${id} after its snapshot '${name ?? frozen.id}' of ${createdAt}`];
}

async function newestWholeSnapshot(
  env: VolumeEnvironment,
  dir: string,
): Promise<{ frozen: FrozenMap; name: string | null; createdAt: string } | undefined> {
  const described: { id: string; name: string | null; createdAt: string }[] = [];
  for (const id of describedSnapshots(await env.fs.readdir(dir))) {
    const snapshot = await readSnapshot(env, dir, id).catch(() => undefined);
    if (snapshot !== undefined) described.push(snapshot);
  }
  for (const { id, ...rest } of described.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1))) {
    const frozen = await demandSnapshot(env, id).catch(() => undefined);
    if (frozen !== undefined) return { frozen, ...rest };
  }
  return undefined;
}

/** Runs under the volume's lock. A sync that fails here is told only once, too: it poisons (rule 6). */
async function locked<T>(env: VolumeEnvironment, id: string, work: (dir: string) => Promise<T>): Promise<T> {
  const dir = volumeDir(env.dataDir, id);
  const lock = await env.fs.lockDirectory(dir);
  try {
    return await work(dir);
  } catch (error) {
    if (error instanceof RecoverySyncError) await markPoisoned(env, dir, id, error.message);
    throw error;
  } finally {
    await lock.release();
  }
}

/** What could be believed becomes the volume. */
async function startAgain(env: VolumeEnvironment, dir: string, id: string, recovered: Recovered): Promise<void> {
  await secureEmptyLogs(recovered);
  await syncAll(recovered.logs.concat(recovered.head.file));
  const { checkpoint, map, table, lastLsn, nextNumber } = recovered;
  const predecessor = { lsn: lastLsn, durable: true };
  await beginAgain(env, dir, nextNumber, predecessor, { ...checkpoint, volumeId: id, cut: lastLsn, map, table });
}

/** A new log and a checkpoint; the files before them get the ending `.damaged`. */
async function beginAgain(
  env: VolumeEnvironment,
  dir: string,
  number: number,
  predecessor: { lsn: number; durable: boolean } | undefined,
  {
    map,
    table,
    ...state
  }: Omit<Checkpoint, "number" | "lineage" | "clean" | "lostUnflushed"> &
    Pick<Recovered, "table"> & { map: Recovered["map"] | undefined },
): Promise<void> {
  const fields = { volumeId: state.volumeId, number, predecessor, strays: true };
  const log = await IntentLog.create(env, dir, fields, volumeLimits(env.limits));
  await log.file.close();
  const lineage = env.randomBytes(16).toString("hex");
  await writeMapFile(env, dir, { ...state, number, lineage, clean: false, lostUnflushed: true }, map, table);
  const entries = await env.fs.readdir(dir);
  const old = [
    ...numbered(entries, "map").map((n) => ({ n, path: mapPath(dir, n) })),
    ...numbered(entries, "intent").map((n) => ({ n, path: logPath(dir, n) })),
  ];
  for (const { n, path } of old) if (n < number) await env.fs.rename(path, `${path}.damaged`);
  await env.fs.syncDirectory(dir);
}

/** What recovery logs is reported as problems here. */
function quiet(env: VolumeEnvironment): VolumeEnvironment {
  return { ...env, log: () => undefined };
}

async function closeFiles(recovered: Recovered): Promise<void> {
  for (const log of recovered.logs) await log.close();
  await recovered.head.file.close();
}
