import { UllageError, describeError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { snapshotPath } from "./paths.ts";
import type { VolumeEnvironment } from "./types.ts";
import { writeWhole } from "./whole-file.ts";

/*
 * snapshot.<id>.json beside a volume's log: what a snapshot says of itself, so that the catalog can be rebuilt. It is there
 * before the log's record of the snapshot, and goes first when the snapshot is removed: a record in the log without it
 * counts as a change of head and nothing else, and one that is there without record and frozen map is what an interrupted
 * creation left.
 */

export interface SnapshotDescription {
  /** 32 hex digits; the frozen map has the same */
  id: string;
  /** null: only clones need it */
  name: string | null;
  /** bytes */
  size: number;
  createdAt: string;
  /** The request that it was made by; absent: one that is not to be recognised. */
  request?: { key: string; digest: string } | undefined;
}

export async function describeSnapshot(
  env: VolumeEnvironment,
  dir: string,
  description: SnapshotDescription,
): Promise<void> {
  const text = IoBuffer.from(Buffer.from(`${JSON.stringify({ formatVersion: 1, ...description }, undefined, 2)}\n`));
  await writeWhole(env, snapshotPath(dir, description.id), (file) => file.write(text, 0, text.length, 0));
}

/** Durable when it resolves; may be repeated. */
export async function forgetSnapshot(env: VolumeEnvironment, dir: string, id: string): Promise<void> {
  await env.fs.unlink(snapshotPath(dir, id));
  await env.fs.syncDirectory(dir);
}

/** ids of the snapshots that a volume's directory describes. */
export function describedSnapshots(entries: readonly string[]): string[] {
  return entries.flatMap((entry) => /^snapshot\.([0-9a-f]{32})\.json$/.exec(entry)?.[1] ?? []);
}

/** @throws UllageError `description-damaged`, IoError */
export async function readSnapshot(env: VolumeEnvironment, dir: string, id: string): Promise<SnapshotDescription> {
  const path = snapshotPath(dir, id);
  const text = (await env.fs.readFile(path)).toString("utf8");
  try {
    const found = JSON.parse(text) as SnapshotDescription;
    if (found.id === id && Number.isSafeInteger(found.size)) return found;
    throw new Error("id or size is missing or wrong");
  } catch (error) {
    throw new UllageError("description-damaged", `${path} is damaged: ${describeError(error)}`);
  }
}
