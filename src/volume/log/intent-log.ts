import { allOf } from "../../base/all-of.ts";
import { crc32c } from "../../base/crc32c.ts";
import { describeError, IoError } from "../../base/errors.ts";
import type { File, FileBinding } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes, openHeader, sealHeader } from "../header.ts";
import type { VolumeLimits } from "../limits.ts";
import { getU64, putU64, recordBytes, RecordView } from "./log-record.ts";
import { logPath } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/*
 * The intent log: what makes the owner map crash-safe. One file per checkpoint interval:
 *
 *     | header 4096 | record | record | … tail | zeros, written ahead … extent |
 *
 * Records are appended by pwrite at `tail`, inside space that was written with zeros before, so an append needs no
 * allocation. The last `logReserveBytes` of it are for records that must succeed on a full disk (durability rule 22).
 * An append that fails leaves nothing behind: the file is cut back to `tail` (rule 8).
 */

const magic = "ULLAGELG";
/** For what a log may still get when its volume is being closed: a commit, and its end. */
const lastRecordsBytes = 8 * recordBytes;
const zeros = new IoBuffer(1024 * 1024);
zeros.bytes.fill(0);

/** Where recovery stopped in the log before; what stands behind it does not count. */
export interface PredecessorEnd {
  lsn: number;
  /** Recovery went by the last commit: everything up to `lsn` had been durable. */
  durable: boolean;
}

export interface LogHeader {
  volumeId: string;
  generation: Buffer;
  number: number;
  /** Undefined: the log before this one ends with its own end record. */
  predecessor: PredecessorEnd | undefined;
  /** When the log began, the head may have held data that nobody owned: having data proves nothing (rule 7). */
  strays: boolean;
  binding: FileBinding;
}

export class IntentLog {
  readonly number: number;
  readonly file: File;
  /** LSN of the last record appended to this log or, while it is empty, to the one before it. */
  lastLsn = 0;
  /** Highest LSN whose sync has returned. */
  durableLsn = 0;
  readonly #limits: VolumeLimits;
  readonly #seed: number;
  readonly #record = new IoBuffer(recordBytes);
  readonly #view = new RecordView(this.#record.bytes);
  #previousCrc = 0;
  #tail = headerBytes;
  #extent = headerBytes;
  /** Bytes behind every record that only privileged ones may take; none once the log is about to end. */
  #reserveBytes: number;
  #broken: Error | undefined;

  private constructor(number: number, file: File, generation: Buffer, limits: VolumeLimits) {
    this.number = number;
    this.file = file;
    this.#seed = generationSeed(generation);
    this.#limits = limits;
    this.#reserveBytes = limits.logReserveBytes;
  }

  /** Creates a log with its header; durable, with its directory entry, when the promise resolves. */
  static create(
    env: VolumeEnvironment,
    dir: string,
    fields: Omit<LogHeader, "generation" | "binding">,
    limits: VolumeLimits,
  ): Promise<IntentLog> {
    return IntentLog.#create(env, dir, fields, limits, () => env.fs.syncDirectory(dir));
  }

  /** The log of a volume that is being made: its directory entry is the caller's to sync. */
  static async createFirst(env: VolumeEnvironment, dir: string, volumeId: string, limits: VolumeLimits): Promise<void> {
    const fields = { volumeId, number: 1, predecessor: undefined, strays: false };
    const log = await IntentLog.#create(env, dir, fields, limits, () => Promise.resolve());
    await log.file.close();
  }

  static async #create(
    env: VolumeEnvironment,
    dir: string,
    fields: Omit<LogHeader, "generation" | "binding">,
    limits: VolumeLimits,
    syncEntry: () => Promise<void>,
  ): Promise<IntentLog> {
    const file = await env.fs.open(logPath(dir, fields.number), "create");
    try {
      const generation = env.randomBytes(16);
      const header = encodeLogHeader({ ...fields, generation, binding: file.binding() });
      await file.write(header, 0, headerBytes, 0);
      await allOf([file.datasync(), syncEntry()]);
      return new IntentLog(fields.number, file, generation, limits);
    } catch (error) {
      await discardLog(env, file);
      throw error;
    }
  }

  /** Makes this the current log: its first record gets LSN `lastLsn` + 1. */
  begin(lastLsn: number): void {
    this.lastLsn = lastLsn;
    this.durableLsn = lastLsn;
  }

  /** An append failed and could not be undone: the log takes no more records. */
  get broken(): boolean {
    return this.#broken !== undefined;
  }

  /** Bytes of records. */
  get length(): number {
    return this.#tail - headerBytes;
  }

  /** Appends eat into the reserve, because the disk is full. */
  get reserveInUse(): boolean {
    return this.#extent > headerBytes && this.#tail + this.#reserveBytes > this.#extent;
  }

  /**
   * Makes sure that one record can be appended. Throws ENOSPC when it can't.
   * @param privileged may use the reserve when there is no space to write ahead
   */
  reserve(privileged: boolean): void {
    if (this.#broken) throw this.#broken;
    const needed = this.#tail + recordBytes;
    if (needed + this.#reserveBytes <= this.#extent) return;
    try {
      this.#extend(needed + this.#reserveBytes + this.#limits.logExtendBytes);
    } catch (error) {
      if (!privileged) throw error;
      if (needed > this.#extent) this.#extend(needed); // a page may still be there
    }
  }

  /** Makes room for one record and no more: nobody else will append to this log. */
  reserveOne(): void {
    this.#reserveBytes = 0;
    const needed = this.#tail + recordBytes;
    if (needed > this.#extent) this.#extend(needed);
  }

  #extend(target: number): void {
    const end = Math.ceil(target / 4096) * 4096;
    while (this.#extent < end) {
      const length = Math.min(end - this.#extent, zeros.length);
      this.file.writeNow(zeros, 0, length, this.#extent);
      this.#extent += length;
    }
  }

  /** Appends one record; the caller changes the map only after this has returned. @returns its LSN */
  append(type: number, small: number, a: number, b: number, privileged: boolean): number {
    this.reserve(privileged);
    return this.#put(this.#view.encode(0, this.#seed, this.#previousCrc, this.lastLsn + 1, type, small, a, b));
  }

  /** The same for a record that carries the id of a layer, a blob or a frozen map; may use the reserve. */
  appendWithId(type: number, small: number, kind: number, id: string): number {
    this.reserve(true);
    const lsn = this.lastLsn + 1;
    return this.#put(this.#view.encodeWithId(0, this.#seed, this.#previousCrc, lsn, type, small, kind, id));
  }

  /** Appends the record that was encoded. @param crc its CRC @returns its LSN */
  #put(crc: number): number {
    try {
      this.file.writeNow(this.#record, 0, recordBytes, this.#tail);
    } catch (error) {
      this.#undo();
      throw error;
    }
    this.#tail += recordBytes;
    this.#previousCrc = crc;
    return ++this.lastLsn;
  }

  /** Removes what a failed append may have left. When even that fails, the log takes no more records. */
  #undo(): void {
    try {
      this.file.truncateNow(this.#tail);
      this.#extent = this.#tail;
    } catch (error) {
      this.#broken = new IoError("EIO", `${this.file.path} can't be cut back after a failed append`, error);
    }
  }

  /** Gives back the zeros written ahead; the log can be appended to again. */
  async release(): Promise<void> {
    await this.file.truncate(this.#tail);
    this.#extent = this.#tail;
  }

  /**
   * Gives back the zeros written ahead but for the room of some records, so that the last sync of a log need not write
   * them all to the disk.
   */
  async shed(): Promise<void> {
    this.#reserveBytes = 0;
    const kept = Math.ceil((this.#tail + lastRecordsBytes) / 4096) * 4096;
    if (kept >= this.#extent) return;
    await this.file.truncate(kept);
    this.#extent = kept;
  }

  /** fdatasync. A failure poisons the volume (rule 6). */
  async sync(): Promise<void> {
    const covered = this.lastLsn;
    await this.file.datasync();
    if (covered > this.durableLsn) this.durableLsn = covered;
  }
}

/**
 * Removes a log that nothing was written to. When it stays, whoever goes on from here removes it, or makes it durable,
 * before anything builds on it.
 */
export async function discardLog(env: VolumeEnvironment, file: File): Promise<void> {
  await file.close();
  await env.fs
    .unlink(file.path)
    .catch((error: unknown) => env.log("warn", `an unused log is left behind: ${describeError(error)}`));
}

/** What every record's CRC starts from. */
export function generationSeed(generation: Uint8Array): number {
  return crc32c(generation, 0, 16);
}

export function encodeLogHeader(fields: LogHeader): IoBuffer {
  const header = new IoBuffer(headerBytes);
  const bytes = header.bytes.fill(0);
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  bytes.write(fields.volumeId, 16, "hex");
  fields.generation.copy(bytes, 32);
  // 48 … 71 are reserved: tenure (16) and confirmed slot (8) of a journal that lives in a bucket
  putU64(data, 72, fields.number);
  data.setUint32(80, fields.predecessor === undefined ? 0 : fields.predecessor.durable ? 2 : 1, true);
  data.setUint32(84, fields.strays ? 1 : 0, true);
  putU64(data, 88, fields.predecessor?.lsn ?? 0);
  putU64(data, 96, fields.binding.device);
  putU64(data, 104, fields.binding.inode);
  bytes.write(fields.binding.bootId, 112, 40, "latin1");
  bytes.write(fields.binding.mountId, 152, 24, "latin1");
  bytes.write(fields.binding.fileSystem, 176, 16, "latin1");
  sealHeader(bytes, magic);
  return header;
}

/** @throws CorruptionError */
export function decodeLogHeader(bytes: Buffer, path: string): LogHeader {
  openHeader(bytes, magic, path);
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = (at: number, length: number): string => bytes.toString("latin1", at, at + length).replace(/\0+$/, "");
  const how = data.getUint32(80, true);
  return {
    volumeId: bytes.toString("hex", 16, 32),
    generation: Buffer.from(bytes.subarray(32, 48)),
    number: getU64(data, 72),
    predecessor: how === 0 ? undefined : { lsn: getU64(data, 88), durable: how === 2 },
    strays: (data.getUint32(84, true) & 1) !== 0,
    binding: {
      device: getU64(data, 96),
      inode: getU64(data, 104),
      bootId: text(112, 40),
      mountId: text(152, 24),
      fileSystem: text(176, 16),
    },
  };
}
