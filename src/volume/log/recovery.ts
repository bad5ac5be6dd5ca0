import { CorruptionError, describeError, IoError, UllageError } from "../../base/errors.ts";
import type { File, FileBinding } from "../../base/file-system.ts";
import type { FrozenMap } from "../map/frozen-map.ts";
import { headerBytes } from "../header.ts";
import { encodeLogHeader, type LogHeader } from "./intent-log.ts";
import { Layer } from "../layers/layer.ts";
import { type LogContents, type LogVisitor, readLog, readLogHeader } from "./log-reader.ts";
import { loadMapFile, type LoadedMap } from "../map/map-file.ts";
import { blockBytes, type OwnerMap } from "../map/owner-map.ts";
import { logPath, mapPath, numbered } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/*
 * Recovery: the newest valid checkpoint and all logs after it, read by one of three rules (durability rules 2, 7, 9, 10).
 *
 *   all     the log's boot, file and mount are those of now: the page cache survived (kill -9). Every record counts.
 *   sparse  same boot and file, another mount: the cache may be gone. After a sync, a record above the last cut counts
 *           only where the layer really has data; one missing block means that acknowledged writes were lost. Where holes
 *           prove nothing, `cut` is taken instead.
 *   cut     anything else (power cut, restored copy, poisoned): only records up to the last commit's cut count.
 *
 * Nothing that was found is appended to. The caller starts a new log, and removes old files after its next checkpoint.
 */

/** Called with proven damage; returns to leave out what is behind it. */
export type OnDamage = (error: CorruptionError) => void;

function refuse(error: CorruptionError): never {
  throw error;
}

export type RecoveryRule = "all" | "sparse" | "cut";

export interface Recovered extends LoadedMap {
  rule: RecoveryRule;
  /** The volume had been closed with everything flushed. */
  clean: boolean;
  /** Acknowledged writes may be missing. */
  lossPossible: boolean;
  /** This machine may not have gone down since the records were written: local clients live on. */
  sameBoot: boolean;
  /** Remote clients with write access were, or may have been, connected. */
  remoteWriters: boolean;
  /** LSN of the last record that counts. */
  lastLsn: number;
  /** Everything up to here is durable. */
  committedCut: number;
  /** The logs whose records count, open for syncing; the caller closes them. */
  logs: File[];
  /** Where the records of each end; what is behind holds none that count. */
  tails: number[];
  /** Those of them that have no records. */
  emptyLogs: { file: File; header: LogHeader }[];
  /** Bytes of records in them. */
  logBytes: number;
  /** Logs without a record that counts, and without a place in the chain: to be removed before there is a new one. */
  unused: string[];
  /** For the next log and map. */
  nextNumber: number;
  head: Layer;
  /** Earlier heads, by owner, sealed by a snapshot above the cut: they may hold data that no sync has covered. */
  sealed: Map<number, Layer>;
  /** What the logs say was frozen, in order; the frozen maps need not be in files yet. */
  snapshots: FrozenMap[];
}

interface ScannedLog {
  file: File;
  header: LogHeader;
  before: number;
  contents: LogContents;
}

/**
 * Reads a volume's files and builds its map. Changes nothing, but may sync what it found.
 * @param options.distrustCache drop cached pages first and go by the last commit: a sync had failed (rule 6)
 * @param options.onDamage what to do about proven damage: by default it is refused; `repair` notes it and goes on with
 *   what stands before it
 */
export async function recover(
  env: VolumeEnvironment,
  dir: string,
  volumeId: string,
  options: { distrustCache?: boolean; onDamage?: OnDamage } = {},
): Promise<Recovered> {
  const distrustCache = options.distrustCache ?? false;
  const onDamage = options.onDamage ?? refuse;
  const entries = await env.fs.readdir(dir);
  const loaded = await loadNewestMap(env, dir, volumeId, numbered(entries, "map"), onDamage);
  const { checkpoint } = loaded;
  const logNumbers = numbered(entries, "intent").filter((number) => number >= checkpoint.number);
  if (distrustCache) await dropLogCaches(env, dir, logNumbers);
  const logs: ScannedLog[] = [];
  const layers = new Map<number, Layer>();
  try {
    const unused = await scanLogs(env, dir, volumeId, loaded, logNumbers, logs, onDamage);
    const proven = Math.max(checkpoint.cut, ...logs.map(provenCut));
    for (const { file } of cutAtGap(dir, logs, proven, onDamage)) {
      unused.push(file.path);
      await file.close();
    }
    const end = logs.length > 0 ? logs[logs.length - 1].contents.lastLsn : checkpoint.cut;
    const committedCut = Math.min(proven, end); // less only when damage is being left out
    const heads = await headsOf(loaded, logs);
    for (const [index, { owner, layerId }] of heads.entries()) {
      // Those that were sealed at or below the cut are durable, read-only, and not looked at.
      const sealedAt = heads[index + 1]?.lsn ?? Infinity;
      if (sealedAt > committedCut) layers.set(owner, await Layer.open(env, layerId));
    }
    if (distrustCache) await dropLayerCaches(env, layers);
    // An empty log counts too: what it held may be what the power cut took.
    const rule = distrustCache ? "cut" : await worstRule(logs, heads, layers, committedCut);
    const lastLsn = rule === "cut" ? committedCut : end;
    const clean = checkpoint.clean && logs.length === 1;
    const snapshots: FrozenMap[] = [];
    const missing = await replay(loaded, logs, layers, rule, committedCut, snapshots);
    const head = layers.get(checkpoint.head)!;
    head.demandBlocks(loaded.map.blocks);
    await head.verify(); // not before: the first read of a file may end what SEEK_DATA can tell (rule 7)
    await closeLater(layers, heads, lastLsn);
    const words = logs.map((log) => log.contents.remoteWriters).filter((word) => word !== undefined);
    return {
      ...loaded,
      rule,
      clean,
      lossPossible: missing || (rule === "cut" && !clean) || distrustCache,
      sameBoot: logs.some((log) => mayHaveServed(log, checkpoint.number) && mayBeSameBoot(log)),
      logBytes: logs.reduce((sum, log) => sum + Math.max(0, log.contents.tail - headerBytes), 0),
      remoteWriters: words.length > 0 ? words[words.length - 1] : checkpoint.remoteWriters,
      lastLsn,
      committedCut,
      logs: logs.map((log) => log.file),
      tails: logs.map((log) => log.contents.tail),
      emptyLogs: logs.filter((log) => log.contents.lastLsn === log.before),
      unused,
      nextNumber: Math.max(0, ...numbered(entries, "map"), ...numbered(entries, "intent")) + 1,
      head,
      sealed: new Map([...layers].filter(([owner]) => owner !== checkpoint.head)),
      snapshots,
    };
  } catch (error) {
    for (const log of logs) await log.file.close();
    for (const layer of layers.values()) await layer.file.close();
    throw error;
  }
}

/** A layer that was the head, from some LSN on. */
interface HeadChange {
  lsn: number;
  owner: number;
  layerId: string;
}

/** The heads that checkpoint and logs name, in order. @throws CorruptionError */
async function headsOf({ checkpoint, table }: LoadedMap, logs: ScannedLog[]): Promise<HeadChange[]> {
  const known = table.copy();
  const heads = [{ lsn: checkpoint.cut, owner: checkpoint.head, layerId: table.get(checkpoint.head)!.id }];
  if (!logs.some(({ contents }) => contents.changesHead)) return heads;
  await visitLogs(logs, (path) => ({
    owner: (_lsn, id, owner) => known.put(id, owner),
    snapshot: (lsn, owner) => {
      const layer = known.get(owner);
      if (layer?.kind !== "layer") throw new CorruptionError(`${path} names no layer as head at LSN ${lsn}`);
      heads.push({ lsn, owner, layerId: layer.id });
    },
  }));
  return heads;
}

/** Closes heads that came after the last record that counts. */
async function closeLater(layers: Map<number, Layer>, heads: HeadChange[], lastLsn: number): Promise<void> {
  for (const { owner } of heads.filter(({ lsn }) => lsn > lastLsn)) {
    await layers.get(owner)?.file.close();
    layers.delete(owner);
  }
}

async function loadNewestMap(
  env: VolumeEnvironment,
  dir: string,
  volumeId: string,
  numbers: number[],
  onDamage: OnDamage,
): Promise<LoadedMap> {
  let firstError: CorruptionError | undefined;
  for (const number of numbers.toReversed()) {
    const path = mapPath(dir, number);
    try {
      const loaded = await loadMapFile(env, path);
      if (loaded.checkpoint.volumeId !== volumeId || loaded.checkpoint.number !== number) {
        throw new CorruptionError(`${path} belongs to another volume or checkpoint`);
      }
      return loaded;
    } catch (error) {
      if (!(error instanceof CorruptionError)) throw error;
      // An older checkpoint with all its logs is as good; if they are gone, the gap is refused below.
      env.log("error", `${describeError(error)}; trying the checkpoint before it`);
      firstError ??= error;
      if (onDamage !== refuse) onDamage(error);
    }
  }
  if (firstError) throw firstError;
  throw new CorruptionError(`${dir} has no checkpoint (map.<n>)`);
}

/**
 * Opens and scans the logs behind the checkpoint, in order.
 * @returns the path of a log that was still being created, if there is one
 */
async function scanLogs(
  env: VolumeEnvironment,
  dir: string,
  volumeId: string,
  loaded: LoadedMap,
  numbers: number[],
  logs: ScannedLog[],
  onDamage: OnDamage,
): Promise<string[]> {
  if (numbers[0] !== loaded.checkpoint.number) {
    onDamage(
      new CorruptionError(`${logPath(dir, loaded.checkpoint.number)} is missing, though its checkpoint is there`),
    );
    return [];
  }
  const opened: { file: File; header: LogHeader }[] = [];
  const unused: string[] = [];
  for (const number of numbers) {
    const file = await env.fs.open(logPath(dir, number), "write");
    try {
      const header = await readLogHeader(file);
      if (header.volumeId !== volumeId || header.number !== number) {
        throw new CorruptionError(`${file.path} belongs to another volume or log`);
      }
      opened.push({ file, header });
    } catch (error) {
      await file.close();
      // A log that was being created when the power went: nothing has ever been in it.
      if (error instanceof CorruptionError && number === numbers[numbers.length - 1] && opened.length > 0) {
        unused.push(file.path);
        break;
      }
      if (error instanceof CorruptionError && onDamage !== refuse) {
        onDamage(error);
        break;
      }
      for (const other of opened) await other.file.close();
      throw error;
    }
  }
  let before = loaded.checkpoint.cut;
  for (const [index, { file, header }] of opened.entries()) {
    const until = opened[index + 1]?.header.predecessor?.lsn ?? Infinity;
    logs.push({
      file,
      header,
      before,
      contents: {
        header,
        lastLsn: before,
        ended: false,
        cut: -1,
        remoteWriters: undefined,
        changesHead: false,
        resizedAt: -1,
        tail: 0,
      },
    });
    const log = logs[logs.length - 1];
    log.contents = await readLog(file, header, before, until, {}, onDamage);
    before = log.contents.lastLsn;
  }
  return unused;
}

/** The highest LSN that a log proves to have been durable: by a commit, or as where an earlier recovery started from. */
function provenCut({ header, contents }: ScannedLog): number {
  return Math.max(contents.cut, header.predecessor?.durable ? header.predecessor.lsn : -1);
}

/**
 * Whether the head's holes tell which blocks were lost with the page cache. Not where blocks without an owner may have
 * data. What survived is synced, and cached pages are dropped, because on XFS what was read once counts as data.
 */
async function holesCanTell(logs: ScannedLog[], head: Layer): Promise<boolean> {
  if (logs.some(({ header }) => header.strays)) return false;
  await syncAll(logs.map((log) => log.file).concat(head.file));
  return (await head.canPunch()) && (await head.file.dropCache());
}

/** The rule for a set of logs is that of the one that can be trusted least. */
async function worstRule(
  logs: ScannedLog[],
  heads: HeadChange[],
  layers: Map<number, Layer>,
  committedCut: number,
): Promise<RecoveryRule> {
  let worst: RecoveryRule = "all";
  for (const log of logs) {
    const rule = ruleFor(log.header.binding, log.file.binding());
    if (rule === "cut") return "cut";
    if (rule === "sparse") worst = "sparse";
  }
  if (worst !== "sparse") return worst;
  // A snapshot or a change of size that nobody was told of yet is not worth telling holes of two layers apart.
  if (heads.some(({ lsn }) => lsn > committedCut) || logs.some(({ contents }) => contents.resizedAt > committedCut))
    return "cut";
  return (await holesCanTell(logs, layers.get(heads[heads.length - 1].owner)!)) ? worst : "cut";
}

/** Unless both boot ids are known and differ. */
function mayBeSameBoot({ header, file }: ScannedLog): boolean {
  const now = file.binding().bootId;
  return header.binding.bootId === "" || now === "" || header.binding.bootId === now;
}

/** Not so the log of a recovery that was interrupted before its checkpoint: it would have served only after that. */
function mayHaveServed({ header }: ScannedLog, checkpointNumber: number): boolean {
  return header.number === checkpointNumber || header.predecessor?.durable !== true;
}

const knownFileSystems = new Set(["ext4", "xfs", "btrfs", "tmpfs", "overlay"]);

function ruleFor(then: FileBinding, now: FileBinding): RecoveryRule {
  const sameFile = then.device === now.device && then.inode === now.inode;
  const sameBoot = then.bootId !== "" && then.bootId === now.bootId;
  if (!sameBoot || !sameFile || !knownFileSystems.has(now.fileSystem) || then.fileSystem !== now.fileSystem) {
    return "cut";
  }
  return then.mountId !== "" && then.mountId === now.mountId ? "all" : "sparse";
}

/**
 * Each log but the last must reach its end if anything after it was committed. Where nothing was, what follows a torn
 * end never counted.
 * @returns the logs that do not count, taken out of `logs`
 */
function cutAtGap(dir: string, logs: ScannedLog[], committedCut: number, onDamage: OnDamage): ScannedLog[] {
  for (const [index, log] of logs.entries()) {
    const next = logs[index + 1];
    if (!next) break;
    const expected = next.header.predecessor;
    const complete = expected === undefined ? log.contents.ended : log.contents.lastLsn === expected.lsn;
    if (complete) continue;
    if (committedCut > log.contents.lastLsn || logs.slice(index + 1).some((later) => later.contents.cut >= 0)) {
      onDamage(
        new CorruptionError(
          `${logPath(dir, log.header.number)} ends at LSN ${log.contents.lastLsn}, though later records were committed`,
        ),
      );
    }
    return logs.splice(index + 1);
  }
  return [];
}

/** A sync failed during recovery: the volume must be poisoned, because the kernel says it only once (rule 6). */
export class RecoverySyncError extends IoError {}

/** fdatasync of all. @throws RecoverySyncError */
export async function syncAll(files: File[]): Promise<void> {
  for (const file of files) {
    try {
      await file.datasync();
    } catch (error) {
      throw new RecoverySyncError("EIO", `a sync failed during recovery: ${describeError(error)}`, error);
    }
  }
}

/**
 * Makes logs without records durable. That their headers can be read proves nothing: where such a log failed its first sync,
 * whoever was told of that is gone, and another sync of the same pages succeeds without writing them. So the headers are
 * written once more, as they were read then, whatever the page cache has by now. A log with records had been synced before
 * it got them.
 * @throws RecoverySyncError
 */
export async function secureEmptyLogs({ emptyLogs }: Recovered): Promise<void> {
  for (const { file, header } of emptyLogs) await file.write(encodeLogHeader(header), 0, headerBytes, 0);
  await syncAll(emptyLogs.map(({ file }) => file));
}

/** Applies the records that count. @returns whether a block that the log claims has no data (rule `sparse`) */
async function replay(
  loaded: LoadedMap,
  logs: ScannedLog[],
  layers: Map<number, Layer>,
  rule: RecoveryRule,
  cut: number,
  snapshots: FrozenMap[],
): Promise<boolean> {
  if (rule !== "sparse") {
    await apply(loaded, logs, rule === "all" ? Infinity : cut, -1, snapshots);
    return false;
  }
  await apply(loaded, logs, cut, -1, snapshots);
  const asOfCut = loaded.map.freeze();
  await apply(loaded, logs, Infinity, cut, snapshots);
  const missing = await takeBackHoles(loaded, logs, layers.get(loaded.checkpoint.head)!, cut, asOfCut);
  asOfCut.release();
  return missing;
}

async function apply(
  { map, table, checkpoint }: LoadedMap,
  logs: ScannedLog[],
  to: number,
  from: number,
  snapshots: FrozenMap[],
): Promise<void> {
  const counts = (lsn: number): boolean => lsn > from && lsn <= to;
  await visitLogs(logs, (path) => {
    const demand = (fits: boolean, lsn: number): void => {
      if (!fits) throw new CorruptionError(`${path} has a record at LSN ${lsn} that does not fit the volume`);
    };
    return {
      set: (lsn, owner, start, count) => {
        if (!counts(lsn)) return;
        demand(start + count <= map.blocks && (owner === 0 || table.has(owner)), lsn);
        map.set(start, count, owner);
      },
      owner: (lsn, id, owner) => {
        if (counts(lsn)) table.put(id, owner);
      },
      snapshot: (lsn, head, id) => {
        if (!counts(lsn)) return;
        const { volumeId, size } = checkpoint;
        snapshots.push({ id, volumeId, size, map: map.freeze(), table: table.copy() });
        checkpoint.head = head;
      },
      resize: (lsn, size) => {
        if (!counts(lsn)) return;
        demand(size > checkpoint.size && size % 512 === 0, lsn);
        checkpoint.size = size;
        map.grow(Math.ceil(size / blockBytes));
      },
    };
  });
}

async function visitLogs(logs: ScannedLog[], visitorOf: (path: string) => Partial<LogVisitor>): Promise<void> {
  for (const { file, header, before, contents } of logs) {
    await readLog(file, header, before, contents.lastLsn, visitorOf(file.path));
  }
}

/** Blocks above the cut that the head claims but has no data for go back to their owner as of the cut. */
async function takeBackHoles(
  loaded: LoadedMap,
  logs: ScannedLog[],
  head: Layer,
  cut: number,
  asOfCut: OwnerMap,
): Promise<boolean> {
  const { map, checkpoint } = loaded;
  let missing = false;
  const check = (start: number, count: number): void => {
    if (head.allocatedBlocks(start, count)) return;
    for (let block = start; block < start + count; block++) {
      if (head.allocatedBlocks(block, 1)) continue;
      missing = true;
      map.set(block, 1, asOfCut.ownerOf(block));
    }
  };
  await visitLogs(logs, () => ({
    set: (lsn, _owner, start, count) => {
      if (lsn <= cut) return;
      const end = start + count;
      for (let at = map.next(checkpoint.head, start, end); at >= 0;) {
        const run = map.runLength(at, end - at);
        check(at, run);
        at = map.next(checkpoint.head, at + run, end);
      }
    },
  }));
  return missing;
}

/** After a failed sync the cached pages may show what the disk does not hold: read from the disk or not at all. */
async function dropLogCaches(env: VolumeEnvironment, dir: string, numbers: number[]): Promise<void> {
  for (const number of numbers) {
    const file = await env.fs.open(logPath(dir, number), "write");
    try {
      await dropCache(env, file);
    } finally {
      await file.close();
    }
  }
}

async function dropLayerCaches(env: VolumeEnvironment, layers: Map<number, Layer>): Promise<void> {
  for (const { file } of layers.values()) await dropCache(env, file);
}

async function dropCache(env: VolumeEnvironment, file: File): Promise<void> {
  // Pages must be clean to be dropped. A second failure tells nothing new: the commit decides what counts.
  await file.datasync().catch((error: unknown) => env.log("warn", `before reopening: ${describeError(error)}`));
  if (await file.dropCache()) return;
  throw new UllageError("cache-not-dropped", `cached pages of ${file.path} can't be dropped`, {
    hint: "unmount and mount the file system of the data directory again (or reboot), then reopen the volume",
  });
}
