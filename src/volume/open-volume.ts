import { join } from "node:path";
import { allOf } from "../base/all-of.ts";
import { errnoOf, UllageError } from "../base/errors.ts";
import type { DirectoryLock, File } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import type { Blob } from "../blob/blob.ts";
import { type FrozenMap, writeFrozenMap } from "./map/frozen-map.ts";
import type { Head } from "./layers/head.ts";
import { IntentLog } from "./log/intent-log.ts";
import { Layer } from "./layers/layer.ts";
import { volumeLimits } from "./limits.ts";
import { writeMapFile } from "./map/map-file.ts";
import { removeOlderFiles } from "./log/old-files.ts";
import { NewDisk } from "./new-disk.ts";
import { blockBytes, OwnerMap } from "./map/owner-map.ts";
import { OwnerTable } from "./map/owner-table.ts";
import { descriptionPath, frozenMapPath, layersDir, logPath, mapsDir, snapshotPath, volumeDir } from "./paths.ts";
import { clearPoison, markPoisoned, readPoison } from "./poison.ts";
import { recover, type Recovered, RecoverySyncError, secureEmptyLogs, syncAll } from "./log/recovery.ts";
import { describedSnapshots } from "./snapshot-files.ts";
import { punchStrays } from "./layers/strays.ts";
import type { OpenVolumeOptions, VolumeEnvironment } from "./types.ts";

/** What an open volume starts from. */
export interface OpenedVolume {
  dir: string;
  lock: DirectoryLock;
  size: number;
  lineage: string;
  lostUnflushed: boolean;
  remoteWriters: boolean;
  map: OwnerMap;
  table: OwnerTable;
  head: Head;
  /** Earlier heads, by owner, that may hold data no sync has covered. */
  sealed: Map<number, Layer>;
  /** Frozen maps that are in no file yet. */
  snapshots: FrozenMap[];
  /** ids of the snapshots that the volume's directory describes */
  described: string[];
  /** by owner id */
  blobs: Map<number, Blob>;
  /** The new log, which this life appends to. */
  log: IntentLog;
  /** Earlier logs that no checkpoint replaces yet. */
  predecessors: File[];
  committedCut: number;
  mapBytes: number;
  /** Bytes of records in the predecessors. */
  earlierBytes: number;
  /** The last life was killed: it may have written blocks without claiming them. */
  strays: boolean;
  /** The last life ended as it should, with nothing begun and not done. */
  endedClean: boolean;
  /**
   * Without this life's log everything is as a life that ended clean has left it. Not so in a volume's first life: that a
   * second log was there says that it has been in use (rule 17).
   */
  untouched: boolean;
}

export interface CreateVolumeOptions {
  /** 32 hex digits */
  id: string;
  /** For people and for `repair`, which rebuilds the catalog from it. */
  name: string;
  /** bytes, a multiple of 512; with `content`, what it says is the size */
  size: number;
  /** Writes what the disk begins with. Not together with `blob` or `base`. @returns the size of the volume */
  content?: (disk: NewDisk) => Promise<number>;
  /** The blob that the volume starts from; bytes beyond the blob's size read as zeros. Absent: an empty disk. */
  blob?: { id: string; size: number };
  /** The frozen map that it starts from, and an owner id that is free in it. Not together with `blob`. */
  base?: { id: string; freeOwner: number };
  /** Goes into volume.json beside id and name, for `repair`: where the volume came from, its settings. */
  details?: Record<string, unknown>;
}

/**
 * Creates a volume's files: head layer, first log, description, and last the checkpoint that makes them a volume. All
 * durable, with their directories up to the data directory's, when it resolves. A crash before leaves files that only
 * the catalog's `creating` row explains (rule 17).
 */
export async function createVolume(env: VolumeEnvironment, options: CreateVolumeOptions): Promise<void> {
  const dir = volumeDir(env.dataDir, options.id);
  for (const path of [join(env.dataDir, "volumes"), layersDir(env.dataDir), dir]) await env.fs.mkdir(path);
  const table = new OwnerTable();
  const head = options.base?.freeOwner ?? table.free();
  const filled = options.content === undefined ? undefined : await fillLayer(env, options.id, head, options.content);
  const size = filled?.size ?? options.size;
  const blocks = Math.ceil(size / blockBytes);
  const layerId = filled?.layerId ?? env.randomBytes(16).toString("hex");
  const map = options.base === undefined ? (filled?.map ?? new OwnerMap(blocks)) : undefined;
  table.put(head, { kind: "layer", id: layerId });
  if (options.blob && map) {
    const owner = table.add({ kind: "blob", id: options.blob.id });
    map.noteBlob(owner);
    const blobBlocks = Math.min(blocks, Math.ceil(options.blob.size / blockBytes));
    if (blobBlocks > 0) map.set(0, blobBlocks, owner);
  }
  const lineage = env.randomBytes(16).toString("hex");
  // Beside each other, because they are mostly waiting for the disk; the checkpoint's name, which makes them a volume, is
  // last.
  const others = allOf([
    filled === undefined ? createLayer(env, layerId, options.id, blocks) : Promise.resolve(),
    createSmallFiles(env, dir, { ...options, size }),
    env.fs.syncDirectory(join(env.dataDir, "volumes")),
    env.fs.syncDirectory(env.dataDir),
  ]);
  const checkpoint = writeMapFile(
    env,
    dir,
    {
      volumeId: options.id,
      number: 1,
      cut: 0,
      size,
      lineage,
      head,
      clean: true,
      lostUnflushed: false,
      remoteWriters: false,
      ...(options.base === undefined ? {} : { base: options.base.id }),
    },
    map,
    table,
    others,
  );
  try {
    await allOf([others, checkpoint]);
  } finally {
    map?.release();
  }
}

/** A layer that holds something from the start. */
async function fillLayer(
  env: VolumeEnvironment,
  volumeId: string,
  owner: number,
  content: (disk: NewDisk) => Promise<number>,
): Promise<{ size: number; layerId: string; map: OwnerMap }> {
  const disk = await NewDisk.create(env, volumeId, owner);
  try {
    const size = await content(disk);
    await disk.end(size);
    return { size, layerId: disk.layerId, map: disk.map };
  } finally {
    await disk.close();
  }
}

async function createLayer(env: VolumeEnvironment, id: string, volumeId: string, blocks: number): Promise<void> {
  const layer = await Layer.create(env, id, volumeId, blocks);
  await layer.file.close();
}

/** The first log and the description; durable, with their entries, when it resolves. */
async function createSmallFiles(env: VolumeEnvironment, dir: string, options: CreateVolumeOptions): Promise<void> {
  await allOf([
    IntentLog.createFirst(env, dir, options.id, volumeLimits(env.limits)),
    writeDescription(env, dir, options),
  ]);
  await env.fs.syncDirectory(dir);
}

async function writeDescription(env: VolumeEnvironment, dir: string, options: CreateVolumeOptions): Promise<void> {
  const description = {
    formatVersion: 1,
    id: options.id,
    name: options.name,
    size: options.size,
    createdAt: env.clock.wallTime(),
    ...options.details,
  };
  const text = IoBuffer.from(Buffer.from(`${JSON.stringify(description, undefined, 2)}\n`));
  const file = await env.fs.open(descriptionPath(dir), "create");
  try {
    await file.write(text, 0, text.length, 0);
    await file.datasync();
  } finally {
    await file.close();
  }
}

/** Takes the volume's lock, recovers it and starts a new log. */
export async function openVolume(env: VolumeEnvironment, options: OpenVolumeOptions): Promise<OpenedVolume> {
  const dir = volumeDir(env.dataDir, options.id);
  const lock = await env.fs.lockDirectory(dir);
  try {
    const poison = await readPoison(env, dir, options.id);
    if (poison !== undefined && !options.acceptLoss) {
      throw new UllageError("poisoned", `volume ${options.name} is poisoned: ${poison}`, {
        hint: `check the disk, then run \`ullage volume reopen ${options.name} --accept-loss\`: it goes back to the last completed flush`,
      });
    }
    await removeTemporaryFiles(env, dir);
    const distrustCache = poison !== undefined || options.distrustCache === true;
    const recovered = await recover(env, dir, options.id, { distrustCache });
    try {
      return await begin(env, options, dir, lock, recovered, poison !== undefined);
    } catch (error) {
      for (const log of recovered.logs) await log.close();
      for (const layer of [recovered.head, ...recovered.sealed.values()]) await layer.file.close();
      throw error;
    }
  } catch (error) {
    if (error instanceof RecoverySyncError) await markPoisoned(env, dir, options.id, error.message);
    await lock.release();
    throw error;
  }
}

export async function removeTemporaryFiles(env: VolumeEnvironment, dir: string): Promise<void> {
  for (const entry of await env.fs.readdir(dir)) if (entry.endsWith(".tmp")) await env.fs.unlink(join(dir, entry));
}

async function begin(
  env: VolumeEnvironment,
  options: OpenVolumeOptions,
  dir: string,
  lock: DirectoryLock,
  recovered: Recovered,
  wasPoisoned: boolean,
): Promise<OpenedVolume> {
  const { checkpoint, map, table, head } = recovered;
  if (recovered.unused.length > 0) {
    // Before there is a new log: a log without a place in the chain must never stand in the middle of it.
    for (const path of recovered.unused) await env.fs.unlink(path);
    await env.fs.syncDirectory(dir);
  }
  // What the next log builds on must be durable: all that recovery went by or, where every record counts and the first
  // round syncs them, at least that the logs are there. A clean end has seen to it.
  if (!recovered.clean || recovered.rule !== "all") {
    await secureEmptyLogs(recovered);
    if (recovered.rule !== "all") await syncAll(recovered.logs);
  }
  const blobs = new Map<number, Blob>();
  for (const [id, owner] of table.entries()) if (owner.kind === "blob") blobs.set(id, await options.openBlob(owner.id));
  const lostUnflushed = !options.acceptLoss && (checkpoint.lostUnflushed || lossMatters(options, recovered));
  const lineage = recovered.lossPossible ? env.randomBytes(16).toString("hex") : checkpoint.lineage;
  const keepsLogs = recovered.rule === "all" && lostUnflushed === checkpoint.lostUnflushed;
  const closedClean = keepsLogs && recovered.clean;
  const strays = keepsLogs && !recovered.clean;
  const snapshots = await unwritten(env, dir, recovered.snapshots);
  const opened: OpenedVolume = {
    dir,
    lock,
    size: checkpoint.size,
    lineage,
    lostUnflushed,
    remoteWriters: recovered.remoteWriters,
    map,
    table,
    head: { layer: head, owner: checkpoint.head },
    sealed: recovered.sealed,
    snapshots,
    described: describedSnapshots(await env.fs.readdir(dir)),
    blobs,
    log: await createNextLog(env, options, dir, recovered, strays),
    predecessors: recovered.logs,
    committedCut: recovered.committedCut,
    mapBytes: recovered.fileBytes,
    earlierBytes: recovered.logBytes,
    strays,
    endedClean: recovered.clean,
    untouched: closedClean && checkpoint.number > 1,
  };
  opened.log.begin(recovered.lastLsn);
  try {
    if (closedClean) await leaveBehind(opened, recovered.lastLsn);
    else if (keepsLogs) for (const layer of [head, ...recovered.sealed.values()]) layer.dirty = true;
    else await beginWithCheckpoint(env, options, recovered, opened);
    if (wasPoisoned) await clearPoison(env, dir, options.id);
  } catch (error) {
    await opened.log.file.close();
    throw error;
  }
  if (recovered.rule === "cut" && !recovered.clean) {
    env.log("info", `volume ${options.name}: recovered to its last flush (LSN ${recovered.lastLsn})`);
  }
  return opened;
}

/**
 * The snapshots that are still to be written: one without its description was never finished, or has been removed, and
 * one whose frozen map is there needs nothing.
 */
async function unwritten(env: VolumeEnvironment, dir: string, found: FrozenMap[]): Promise<FrozenMap[]> {
  const missing: FrozenMap[] = [];
  let entries = false;
  for (const frozen of found) {
    const wanted = await env.fs.exists(snapshotPath(dir, frozen.id));
    const there = wanted && (await env.fs.exists(frozenMapPath(env.dataDir, frozen.id)));
    entries ||= there;
    if (wanted && !there) missing.push(frozen);
    else frozen.map.release();
  }
  if (entries) {
    // They may have been renamed into place and no more: the log that could rebuild them will go.
    await env.fs.syncDirectory(mapsDir(env.dataDir));
    await env.fs.syncDirectory(env.dataDir);
  }
  return missing;
}

/** On a full disk the zeros that the last life wrote ahead in its log, which hold no records, are given up for it. */
async function createNextLog(
  env: VolumeEnvironment,
  options: OpenVolumeOptions,
  dir: string,
  recovered: Recovered,
  strays: boolean,
): Promise<IntentLog> {
  const fields = {
    volumeId: options.id,
    number: recovered.nextNumber,
    predecessor: { lsn: recovered.lastLsn, durable: recovered.rule === "cut" },
    strays,
  };
  const create = (): Promise<IntentLog> => IntentLog.create(env, dir, fields, volumeLimits(env.limits));
  try {
    return await create();
  } catch (error) {
    if (errnoOf(error) !== "ENOSPC") throw error;
    for (const [index, log] of recovered.logs.entries()) await log.truncate(recovered.tails[index]);
    await env.fs.unlink(logPath(dir, fields.number)); // the first attempt may not have been able to
    return create();
  }
}

/** Rule 16: whether somebody is left who believes that the lost writes are there. */
function lossMatters(options: OpenVolumeOptions, recovered: Recovered): boolean {
  if (!recovered.lossPossible) return false;
  if (options.settings.sync === "always") return false;
  if (recovered.sameBoot) return true;
  return recovered.remoteWriters && options.settings.remoteAfterPowerLoss === "refuse";
}

/** Makes the recovered state the durable one before anything is served (rule 2). */
async function beginWithCheckpoint(
  env: VolumeEnvironment,
  options: OpenVolumeOptions,
  recovered: Recovered,
  opened: OpenedVolume,
): Promise<void> {
  const { map, table } = opened;
  const { layer, owner } = opened.head;
  if (recovered.rule === "all") await syncAll(recovered.logs);
  await punchStrays(map, layer, owner); // so that holes mean something (rule 7)
  // Whatever the rule: what is read from now on must be what the next flush calls durable.
  await syncAll([layer, ...opened.sealed.values()].map(({ file }) => file));
  layer.dirty = false;
  // Before the checkpoint: what is older than the newest one is not looked at again.
  for (const frozen of opened.snapshots.splice(0)) {
    await writeFrozenMap(env, frozen);
    frozen.map.release();
  }
  const { bytes } = await writeMapFile(
    env,
    opened.dir,
    {
      volumeId: options.id,
      number: opened.log.number,
      cut: recovered.lastLsn,
      size: opened.size,
      lineage: opened.lineage,
      head: owner,
      clean: false,
      lostUnflushed: opened.lostUnflushed,
      remoteWriters: recovered.remoteWriters,
    },
    map,
    table,
  );
  opened.mapBytes = bytes;
  await leaveBehind(opened, recovered.lastLsn);
  await removeOlderFiles(env, opened.dir, opened.log.number);
}

/** The earlier logs have nothing that the newest checkpoint has not, durably. */
async function leaveBehind(opened: OpenedVolume, lastLsn: number): Promise<void> {
  for (const log of opened.predecessors.splice(0)) await log.close();
  opened.committedCut = lastLsn;
  opened.earlierBytes = 0;
}
