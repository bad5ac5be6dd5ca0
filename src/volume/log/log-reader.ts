import { CorruptionError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes } from "../header.ts";
import { decodeLogHeader, generationSeed, type LogHeader } from "./intent-log.ts";
import { recordBytes, RecordType, RecordView } from "./log-record.ts";
import { ownerKindOf, type Owner } from "../map/owner-table.ts";

/*
 * Reads a log that some earlier life wrote. Replay goes on while records are whole, linked and consecutive; where that
 * ends is the torn tail, unless a later record of the same generation proves that the bad one had been durable: that is
 * damage, and refused (durability rule 9).
 */

const windowBytes = recordBytes * 3276;

/** Is told of the records of a log that change a volume, in LSN order. */
export interface LogVisitor {
  /** blocks [start, start + count) belong to `owner` */
  set(lsn: number, owner: number, start: number, count: number): void;
  /** `id` stands for a layer or blob */
  owner(lsn: number, id: number, owner: Owner): void;
  /** the map as of here is frozen map `id`; owner `head` is the head from here on */
  snapshot(lsn: number, head: number, id: string): void;
  /** the volume has `size` bytes from here on */
  resize(lsn: number, size: number): void;
}

export interface LogContents {
  header: LogHeader;
  /** LSN of the last good record; the LSN before the log's first one when there is none. */
  lastLsn: number;
  /** It ends with its end record: the next log goes on from there. */
  ended: boolean;
  /** The cut of its last commit; -1 when it has none. */
  cut: number;
  /** Its last word about remote writers; undefined when it says nothing. */
  remoteWriters: boolean | undefined;
  /** It has records of snapshots. */
  changesHead: boolean;
  /** LSN of its last record of resizing; -1 when it has none. */
  resizedAt: number;
  /** How far replay got, in bytes. */
  tail: number;
}

export async function readLogHeader(file: File): Promise<LogHeader> {
  const buffer = new IoBuffer(headerBytes);
  const got = await file.read(buffer, 0, headerBytes, 0);
  return decodeLogHeader(buffer.bytes.subarray(0, got), file.path);
}

/**
 * @param before the LSN before the log's first record
 * @param until records above this LSN do not count (where an earlier recovery stopped)
 * @param onDamage by default damage is refused; when it returns, the log counts up to the damage
 */
export async function readLog(
  file: File,
  header: LogHeader,
  before: number,
  until: number,
  visitor: Partial<LogVisitor>,
  onDamage: (error: CorruptionError) => void = refuse,
): Promise<LogContents> {
  const seed = generationSeed(header.generation);
  const buffer = new IoBuffer(windowBytes);
  const view = new RecordView(buffer.bytes);
  const contents: LogContents = {
    header,
    lastLsn: before,
    ended: false,
    cut: -1,
    remoteWriters: undefined,
    changesHead: false,
    resizedAt: -1,
    tail: headerBytes,
  };
  let previousCrc = 0;
  for (;;) {
    const got = await file.read(buffer, 0, windowBytes, contents.tail);
    let at = 0;
    for (; at + recordBytes <= got; at += recordBytes) {
      const lsn = view.lsn(at);
      const good = lsn === contents.lastLsn + 1 && view.previousCrc(at) === previousCrc && view.valid(at, seed);
      if (!good || lsn > until || contents.ended) {
        contents.tail += at;
        if (contents.lastLsn < until && !contents.ended) {
          const damage = await findDamage(file, seed, contents);
          if (damage) onDamage(damage);
        }
        return contents;
      }
      previousCrc = view.crc(at);
      contents.lastLsn = lsn;
      switch (view.type(at)) {
        case RecordType.set:
          visitor.set?.(lsn, view.small(at), view.a(at), view.b(at));
          break;
        case RecordType.commit:
          contents.cut = Math.max(contents.cut, view.a(at));
          break;
        case RecordType.end:
          contents.ended = true;
          break;
        case RecordType.clients:
          contents.remoteWriters = view.small(at) === 1;
          break;
        case RecordType.owner:
          visitor.owner?.(lsn, view.small(at), { kind: ownerKindOf(view.kind(at), file.path), id: view.id(at) });
          break;
        case RecordType.snapshot:
          contents.changesHead = true;
          visitor.snapshot?.(lsn, view.small(at), view.id(at));
          break;
        case RecordType.resize:
          contents.resizedAt = lsn;
          visitor.resize?.(lsn, view.a(at));
          break;
        default:
          throw new CorruptionError(`${file.path} has a record of unknown type ${view.type(at)} at LSN ${lsn}`);
      }
    }
    contents.tail += at;
    if (got < windowBytes) return contents;
  }
}

/** The owners that any whole record of a log names, whether it counts or not. */
export async function ownersInLog(file: File, header: LogHeader): Promise<Owner[]> {
  const seed = generationSeed(header.generation);
  const buffer = new IoBuffer(windowBytes);
  const view = new RecordView(buffer.bytes);
  const owners: Owner[] = [];
  for (let position = headerBytes; ; position += windowBytes) {
    const got = await file.read(buffer, 0, windowBytes, position);
    for (let at = 0; at + recordBytes <= got; at += recordBytes) {
      if (view.type(at) !== RecordType.owner || !view.valid(at, seed)) continue;
      owners.push({ kind: ownerKindOf(view.kind(at), file.path), id: view.id(at) });
    }
    if (got < windowBytes) return owners;
  }
}

function refuse(error: CorruptionError): never {
  throw error;
}

/** The record behind `lastLsn` is bad: looks for a later one that proves it was durable once. */
async function findDamage(file: File, seed: number, contents: LogContents): Promise<CorruptionError | undefined> {
  const bad = contents.lastLsn + 1;
  const buffer = new IoBuffer(windowBytes);
  const view = new RecordView(buffer.bytes);
  for (let position = contents.tail; ; position += windowBytes) {
    const got = await file.read(buffer, 0, windowBytes, position);
    for (let at = 0; at + recordBytes <= got; at += recordBytes) {
      if (!view.valid(at, seed) || view.type(at) !== RecordType.commit || view.b(at) < bad) continue;
      return new CorruptionError(
        `${file.path}: the record at LSN ${bad} (byte ${contents.tail}) is damaged, though a commit at LSN ` +
          `${view.lsn(at)} says that everything up to LSN ${view.b(at)} was durable`,
      );
    }
    if (got < windowBytes) return undefined;
  }
}
