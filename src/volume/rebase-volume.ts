import { CorruptionError } from "../base/errors.ts";
import { loadFrozenMap } from "./map/frozen-map.ts";
import { IntentLog } from "./log/intent-log.ts";
import { Layer } from "./layers/layer.ts";
import { volumeLimits } from "./limits.ts";
import { type Checkpoint, loadMapFile, writeMapFile } from "./map/map-file.ts";
import { removeOlderFiles } from "./log/old-files.ts";
import { blockBytes, OwnerMap } from "./map/owner-map.ts";
import { OwnerTable } from "./map/owner-table.ts";
import { logPath, mapPath, numbered, volumeDir } from "./paths.ts";
import type { VolumeEnvironment } from "./types.ts";

/*
 * Changes of a volume's map as a whole, while it is closed: the next checkpoint, with a log behind it, is the change. Before
 * that checkpoint is renamed into place nothing has happened; after it, everything has (durability rules 17 and 19).
 */

/** The volume becomes what a frozen map holds, with a new head. @returns its size in bytes */
export async function revertVolume(env: VolumeEnvironment, id: string, base: string): Promise<number> {
  const { size, table } = await loadFrozenMap(env, base);
  await change(env, id, async (before) => {
    const layer = await Layer.create(env, env.randomBytes(16).toString("hex"), id, Math.ceil(size / blockBytes));
    await layer.file.close();
    const head = table.free();
    const own = new OwnerTable();
    own.put(head, { kind: "layer", id: layer.id });
    return { checkpoint: { ...before.checkpoint, size, head, base }, map: undefined, table: own };
  });
  return size;
}

/**
 * The volume loses its end, in which nothing is. What its last block holds behind the new end must be zeros already.
 * @throws RangeError when a block there belongs to somebody
 */
export async function shrinkVolume(env: VolumeEnvironment, id: string, size: number): Promise<void> {
  await change(env, id, async ({ checkpoint, map, table }) => {
    const blocks = Math.ceil(size / blockBytes);
    const smaller = new OwnerMap(blocks);
    for (let at = 0; at < map.blocks;) {
      const run = map.runLength(at, map.blocks - at);
      const owner = map.ownerOf(at);
      if (owner !== 0 && at + run > blocks) throw new RangeError(`there is data behind ${size}`);
      if (owner !== 0) smaller.set(at, run, owner);
      at += run;
    }
    return { checkpoint: { ...checkpoint, size }, map: smaller, table };
  });
}

interface State {
  checkpoint: Checkpoint;
  map: OwnerMap | undefined;
  table: OwnerTable;
}

async function change(
  env: VolumeEnvironment,
  id: string,
  work: (before: State & { map: OwnerMap }) => Promise<State>,
): Promise<void> {
  const dir = volumeDir(env.dataDir, id);
  const lock = await env.fs.lockDirectory(dir);
  try {
    const entries = await env.fs.readdir(dir);
    const newest = numbered(entries, "map").at(-1);
    if (newest === undefined) throw new CorruptionError(`${dir} has no checkpoint (map.<n>)`);
    const before = await loadMapFile(env, mapPath(dir, newest));
    if (!before.checkpoint.clean) throw new CorruptionError(`volume ${id} was not closed cleanly`);
    const number = newest + 1;
    for (const later of numbered(entries, "intent").filter((n) => n > newest)) {
      await env.fs.unlink(logPath(dir, later)); // an interrupted change left it
    }
    const { base: _, ...checkpoint } = before.checkpoint;
    const after = await work({ ...before, checkpoint });
    const fields = { volumeId: id, number, predecessor: undefined, strays: false };
    const log = await IntentLog.create(env, dir, fields, volumeLimits(env.limits));
    await log.file.close();
    const lineage = env.randomBytes(16).toString("hex");
    await writeMapFile(env, dir, { ...after.checkpoint, number, lineage }, after.map, after.table);
    await removeOlderFiles(env, dir, number);
  } finally {
    await lock.release();
  }
}
