/** Part of the independent reader (reader.ts): FORMAT.md "intent.<n>: intent logs" and "Which records count". */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import {
  blockBytes,
  crc32c,
  Damaged,
  demand,
  demandHeader,
  headerBytes,
  hex,
  numbers,
  text,
  u64,
} from "./reader-bytes.ts";
import { type Checkpoint, resize } from "./reader-map.ts";

const recordBytes = 40;
/** File systems on which the rule `all` may be used. */
const knownFileSystems = ["ext4", "xfs", "btrfs", "tmpfs", "overlay"];

const recordTypes = { set: 1, commit: 2, end: 3, clients: 4, owner: 5, snapshot: 6, resize: 7 };

export interface LogRecord {
  crc: number;
  link: number;
  lsn: number;
  type: number;
  small: number;
  /** Field 22. */
  kind: number;
  a: number;
  b: number;
  /** `a` and `b`, taken together. */
  id: string;
}

export interface Log {
  volumeId: string;
  generation: Buffer;
  number: number;
  /** Fields 80 and 88. */
  before: { how: number; lsn: number };
  binding: { device: number; inode: number; bootId: string; mount: string; fileSystem: string };
  file: Buffer;
  path: string;
  /** The good ones; empty until they are read. */
  records: LogRecord[];
  ended: boolean;
  last: number;
}

export function parseLog(file: Buffer, path: string): Log {
  demandHeader(file, "ULLAGELG");
  return {
    volumeId: hex(file, 16),
    generation: file.subarray(32, 48),
    number: u64(file, 72),
    before: { how: file.readUInt32LE(80), lsn: u64(file, 88) },
    binding: {
      device: u64(file, 96),
      inode: u64(file, 104),
      bootId: text(file, 112, 40),
      mount: text(file, 152, 24),
      fileSystem: text(file, 176, 16),
    },
    file,
    path,
    records: [],
    ended: false,
    last: 0,
  };
}

/** The record there, if its checksum and length are right. */
function recordAt(log: Log, at: number): LogRecord | undefined {
  const bytes = log.file.subarray(at, at + recordBytes);
  if (bytes.length < recordBytes || bytes.readUInt16LE(16) !== recordBytes) return undefined;
  const crc = bytes.readUInt32LE(0);
  if (crc !== crc32c(bytes.subarray(4), crc32c(log.generation))) return undefined;
  const [link, lsn, type] = [bytes.readUInt32LE(4), u64(bytes, 8), bytes[18]];
  const hasId = type === recordTypes.owner || type === recordTypes.snapshot;
  const [a, b] = hasId ? [0, 0] : [u64(bytes, 24), u64(bytes, 32)];
  const [small, kind] = [bytes.readUInt16LE(20), bytes.readUInt16LE(22)];
  return { crc, link, lsn, type, small, kind, a, b, id: hex(bytes, 24) };
}

/** Every commit from there on whose checksum is right, wherever it stands. */
function commitsBehind(log: Log, from: number): LogRecord[] {
  const found: LogRecord[] = [];
  for (let at = from; at + recordBytes <= log.file.length; at += recordBytes) {
    const record = recordAt(log, at);
    if (record?.type === recordTypes.commit) found.push(record);
  }
  return found;
}

/** Reads the good records of a log, from LSN `before` + 1 up to `until`. */
export function readRecords(log: Log, before: number, until: number): void {
  log.last = before;
  for (let at = headerBytes, link = 0; !log.ended && log.last < until; at += recordBytes) {
    const record = recordAt(log, at);
    if (record === undefined || record.link !== link || record.lsn !== log.last + 1) {
      const proof = commitsBehind(log, at + recordBytes).find(({ b }) => b > log.last);
      demand(proof === undefined, `${log.path} is damaged at byte ${at}: LSN ${log.last + 1} had been durable`);
      return;
    }
    demand(Object.values(recordTypes).includes(record.type), `${log.path} has a record of type ${record.type}`);
    log.records.push(record);
    log.last = record.lsn;
    log.ended = record.type === recordTypes.end;
    link = record.crc;
  }
}

/** Those that count, with their good records, and the cut. */
export function readLogs(directory: string, id: string, map: Checkpoint): { logs: Log[]; cut: number } {
  const opened = openLogs(directory, id, map.number);
  let before = map.cut;
  for (const [i, log] of opened.entries()) {
    const next = opened[i + 1]?.before;
    readRecords(log, before, next !== undefined && next.how !== 0 ? next.lsn : Infinity);
    before = log.last;
  }
  const cut = cutOf(map, opened);
  for (const [i, next] of opened.slice(1).entries()) {
    const log = opened[i];
    if (next.before.how === 0 ? log.ended : log.last === next.before.lsn) continue;
    const committed = opened
      .slice(i + 1)
      .some(({ records }) => records.some(({ type }) => type === recordTypes.commit));
    demand(cut <= log.last && !committed, `there is a gap between ${log.path} and ${next.path}`);
    return { logs: opened.slice(0, i + 1), cut };
  }
  return { logs: opened, cut };
}

function openLogs(directory: string, id: string, first: number): Log[] {
  const logs: Log[] = [];
  const parsed = numbers(directory, "intent")
    .filter((number) => number >= first)
    .map((number) => {
      const path = join(directory, `intent.${number}`);
      try {
        const log = parseLog(readFileSync(path), path);
        demand(log.volumeId === id && log.number === number, `${path} is of another volume or number`);
        return log;
      } catch (error) {
        if (error instanceof Damaged) return error;
        throw error;
      }
    });
  for (const [i, log] of parsed.entries()) {
    if (!(log instanceof Damaged)) {
      logs.push(log);
      continue;
    }
    if (i === 0 || i < parsed.length - 1) throw log;
  }
  demand(logs[0]?.number === first, `${directory} has no intent.${first}`);
  return logs;
}

function cutOf(map: Checkpoint, logs: Log[]): number {
  const commits = logs.flatMap((log) => log.records.flatMap(({ type, a }) => (type === recordTypes.commit ? a : [])));
  const starts = logs.flatMap(({ before }) => (before.how === 2 ? before.lsn : []));
  return [...commits, ...starts].reduce((highest, lsn) => Math.max(highest, lsn), map.cut);
}

/** What can be seen from here of the rule `all`; that it is still the same mount is for the caller to know. */
export function demandSameLife({ path, binding }: Log): void {
  const { dev, ino } = statSync(path);
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
  const same = binding.bootId === bootId && binding.device === dev && binding.inode === ino;
  if (!same) throw new Error(`${path} was written in another boot or is a copy: only what was flushed counts`);
  if (!knownFileSystems.includes(binding.fileSystem))
    throw new Error(`on ${binding.fileSystem} only what was flushed counts`);
}

/**
 * Applies the records that count.
 * @param snapshot stops where the snapshot with this id was taken
 * @returns whether it found that place
 */
export function replay(map: Checkpoint, logs: Log[], cut: number, snapshot?: string): boolean {
  for (const { lsn, type, small, kind, a, b, id } of logs.flatMap(({ records }) => records)) {
    if (lsn > cut) continue;
    if (type === recordTypes.set) {
      const inside = a + b <= Math.ceil(map.size / blockBytes);
      demand(inside && (small === 0 || map.table.has(small)), `LSN ${lsn} means no block or owner`);
      map.owners.fill(small, a, a + b);
    } else if (type === recordTypes.owner) {
      demand(kind === 1 || kind === 2, `LSN ${lsn} means an owner of kind ${kind}`);
      map.table.set(small, { kind: kind === 1 ? "layer" : "blob", id });
    } else if (type === recordTypes.resize) resize(map, a);
    else if (type === recordTypes.snapshot && id === snapshot) return true;
  }
  return false;
}
