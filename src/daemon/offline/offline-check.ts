import { join } from "node:path";
import { describeError } from "../../base/errors.ts";
import { checkBlob } from "../../blob/check-blob.ts";
import { checkVolume } from "../../volume/check-volume.ts";
import { findStrays } from "./offline-orphans.ts";
import type { OfflineData } from "./offline-data.ts";
import { hasBeenOpen, isComplete, readDescription } from "../volumes/volume-files.ts";

export interface Problem {
  /** damage: something is lost or can't be served; note: worth knowing */
  severity: "damage" | "note";
  message: string;
}

/** Verifies every checksum and every reference below a data directory. Changes nothing. */
export async function checkData(data: OfflineData): Promise<Problem[]> {
  const problems = [...(await checkCatalog(data)), ...(await checkVolumes(data))];
  const sound = problems.every(({ severity }) => severity !== "damage");
  return [...problems, ...(await checkBlobs(data)), ...(await checkStrays(data, sound))];
}

async function checkStrays(data: OfflineData, sound: boolean): Promise<Problem[]> {
  return (await findStrays(data, sound)).map(({ kind, message }) => ({
    severity: "note",
    message: kind === "orphan" ? `${message}: \`repair\` moves it to orphans/` : message,
  }));
}

async function checkCatalog({ env, rows, volumeIds, blobIds, catalogProblem }: OfflineData): Promise<Problem[]> {
  const problems: Problem[] = [];
  if (catalogProblem !== undefined) problems.push({ severity: "damage", message: catalogProblem });
  const known = new Set(rows.map(({ id }) => id));
  for (const { id, name, state, blobId } of rows) {
    if (state === "creating" && (await hasBeenOpen(env.fs, env.dataDir, id))) {
      problems.push({
        severity: "damage",
        message: `volume '${name}' is in use, but the catalog says that it is made`,
      });
      continue;
    }
    if (state !== "ready") {
      problems.push({ severity: "note", message: `volume '${name}' is ${state}: the next start removes what is left` });
      continue;
    }
    if (!volumeIds.includes(id)) {
      problems.push({ severity: "damage", message: `volume '${name}' has no files: volumes/${id} is missing` });
    }
    if (blobId !== null && !blobIds.includes(blobId)) {
      problems.push({ severity: "damage", message: `volume '${name}' needs blob ${blobId}, which is missing` });
    }
  }
  for (const id of volumeIds.filter((found) => !known.has(found))) {
    const complete = await isComplete(env.fs, env.dataDir, id);
    const severity = complete ? "damage" : "note";
    const what = complete ? "is a volume that the catalog does not know" : "was left behind by an interrupted creation";
    problems.push({ severity, message: `volumes/${id} ${what}` });
  }
  return problems;
}

async function checkVolumes({ env, rows, snapshots, volumeIds }: OfflineData): Promise<Problem[]> {
  const problems: Problem[] = [];
  for (const id of volumeIds) {
    const row = rows.find((candidate) => candidate.id === id);
    if ((row !== undefined && row.state !== "ready") || !(await isComplete(env.fs, env.dataDir, id))) continue;
    const say = ({ severity, message }: Problem): void => {
      problems.push({ severity, message: row === undefined ? message : `volume '${row.name}': ${message}` });
    };
    await readDescription(env.fs, env.dataDir, id).catch((error: unknown) => {
      say({ severity: "damage", message: describeError(error) });
    });
    const promised = snapshots.filter(({ volumeId, state }) => volumeId === id && state === "ready");
    for (const problem of await checkVolume(env, id, promised)) say(problem);
  }
  return problems;
}

async function checkBlobs({ env, rows, blobIds }: OfflineData): Promise<Problem[]> {
  const problems: Problem[] = [];
  const used = new Set(rows.map(({ blobId }) => blobId));
  for (const id of blobIds) {
    for (const { severity, message } of await checkBlob(env.fs, join(env.dataDir, "blobs", id))) {
      problems.push({ severity: severity === "error" && used.has(id) ? "damage" : "note", message });
    }
  }
  return problems;
}
