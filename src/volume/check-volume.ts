import { CorruptionError, describeError } from "../base/errors.ts";
import { IntentLog } from "./intent-log.ts";
import { volumeLimits } from "./limits.ts";
import { writeMapFile } from "./map-file.ts";
import { logPath, mapPath, numbered, volumeDir } from "./paths.ts";
import { markPoisoned, readPoison } from "./poison.ts";
import { recover, type Recovered, RecoverySyncError, syncAll } from "./recovery.ts";
import type { VolumeEnvironment } from "./types.ts";

/*
 * Offline check and repair of one volume, under its lock. Check reads every checksum and reference and changes nothing.
 * Repair goes back to the newest state whose every byte can be believed; what it leaves out is renamed, never deleted.
 */

export interface VolumeProblem {
  /** `damage` keeps the volume from opening; a `note` does not */
  severity: "damage" | "note";
  message: string;
}

/** @throws `locked` when a daemon has the volume open */
export async function checkVolume(env: VolumeEnvironment, id: string): Promise<VolumeProblem[]> {
  return locked(env, id, async (dir) => {
    const problems: VolumeProblem[] = [];
    const poison = await readPoison(env, dir, id);
    if (poison !== undefined) problems.push({ severity: "note", message: `volume ${id} is poisoned: ${poison}` });
    try {
      const recovered = await recover(quiet(env), dir, id, { onDamage: (error) => problems.push(damage(error)) });
      if (recovered.checkpoint.lostUnflushed) {
        problems.push({ severity: "note", message: `volume ${id} may have lost acknowledged writes` });
      }
      await closeFiles(recovered);
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      if (!problems.some((problem) => problem.message === error.message)) problems.push(damage(error));
    }
    return problems;
  });
}

/**
 * Brings a damaged volume back to the newest state that can be believed, and marks it `lostUnflushed`, so that no
 * writer mistakes it for the state it left.
 * @param apply false: only says what would happen
 * @returns what is (or would be) lost; empty when nothing is damaged
 * @throws CorruptionError when there is nothing left to go back to
 */
export async function repairVolume(env: VolumeEnvironment, id: string, apply: boolean): Promise<string[]> {
  return locked(env, id, async (dir) => {
    const losses: string[] = [];
    const recovered = await recover(quiet(env), dir, id, { onDamage: (error) => losses.push(error.message) });
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

/** A new log and a checkpoint of what could be believed; the files before them get the ending `.damaged`. */
async function startAgain(env: VolumeEnvironment, dir: string, id: string, recovered: Recovered): Promise<void> {
  const number = recovered.nextNumber;
  await syncAll(recovered.logs.concat(recovered.head.file));
  const log = await IntentLog.create(
    env,
    dir,
    { volumeId: id, number, predecessor: { lsn: recovered.lastLsn, durable: true }, strays: true },
    volumeLimits(env.limits),
  );
  await log.file.close();
  await writeMapFile(
    env,
    dir,
    {
      ...recovered.checkpoint,
      number,
      cut: recovered.lastLsn,
      lineage: env.randomBytes(16).toString("hex"),
      clean: false,
      lostUnflushed: true,
    },
    recovered.map,
    recovered.table,
  );
  const entries = await env.fs.readdir(dir);
  const old = [
    ...numbered(entries, "map").map((n) => ({ n, path: mapPath(dir, n) })),
    ...numbered(entries, "intent").map((n) => ({ n, path: logPath(dir, n) })),
  ];
  for (const { n, path } of old) if (n < number) await env.fs.rename(path, `${path}.damaged`);
  await env.fs.syncDirectory(dir);
}

function damage(error: unknown): VolumeProblem {
  return { severity: "damage", message: describeError(error) };
}

/** What recovery logs is reported as problems here. */
function quiet(env: VolumeEnvironment): VolumeEnvironment {
  return { ...env, log: () => undefined };
}

async function closeFiles(recovered: Recovered): Promise<void> {
  for (const log of recovered.logs) await log.close();
  await recovered.head.file.close();
}
