import { describeError, IoError, UllageError } from "../base/errors.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import { RangeLock } from "../base/range-lock.ts";
import type { Blob } from "../blob/blob.ts";
import type { Attachment, BlockDevice, Client, Extent } from "../export/block-device.ts";
import { Attachments } from "./attachments.ts";
import { listExtents, listMapRuns, nextNeeded } from "./extents.ts";
import { Journal } from "./journal.ts";
import type { Layer } from "./layer.ts";
import { volumeLimits } from "./limits.ts";
import { RecordType } from "./log-record.ts";
import { createVolume, openVolume, type OpenedVolume } from "./open-volume.ts";
import type { OwnerMap } from "./owner-map.ts";
import { OwnerReader } from "./owner-reader.ts";
import { OwnerWriter } from "./owner-writer.ts";
import { markPoisoned } from "./poison.ts";
import { Strays } from "./strays.ts";
import type {
  CreateVolumeOptions,
  MapRun,
  OpenVolumeOptions,
  VolumeEnvironment,
  VolumeInfo,
  VolumeSettings,
  VolumeState,
} from "./types.ts";

/*
 * A volume: an owner map over layers and blobs, one writable head, and a journal that makes changes durable. Here it is
 * put together and has its states; how bytes are read and written is in owner-reader.ts and owner-writer.ts.
 *
 *     open -> ok ----------------> closing -> closed
 *             ok -> poisoned ----> closing           a sync failed: no more writes, until reopened with acceptLoss
 *     open -> lostUnflushed                          recovery lost acknowledged writes: no writers, until the same
 */

export class Volume implements BlockDevice {
  readonly id: string;
  readonly size: number;
  readonly readOnly = false;
  readonly state = "serving";
  readonly lineage: string;
  readonly #env: VolumeEnvironment;
  readonly #map: OwnerMap;
  readonly #reader: OwnerReader;
  readonly #head: Layer;
  readonly #headOwner: number;
  readonly #opened: OpenedVolume;
  readonly #journal: Journal;
  readonly #writer: OwnerWriter;
  readonly #strays: Strays;
  readonly #attachments: Attachments;
  #settings: VolumeSettings;
  #volumeState: VolumeState;
  #reason: string | undefined;
  #remoteWriters: boolean;
  #closing = false;
  /** Why the synchronous write path is shut: poisoned, closing, or every write must be durable. */
  #writesBlocked = false;
  /** Operations under way that may use a descriptor. */
  #operations = 0;
  #onIdle: (() => void) | undefined;

  private constructor(env: VolumeEnvironment, options: OpenVolumeOptions, opened: OpenedVolume) {
    this.#env = env;
    this.#opened = opened;
    const limits = volumeLimits(env.limits);
    this.id = options.id;
    this.size = opened.size;
    this.lineage = opened.lineage;
    this.#map = opened.map;
    this.#head = opened.head;
    this.#headOwner = opened.headOwner;
    this.#reader = new OwnerReader(opened.map, opened.headOwner, opened.head, opened.blobs);
    this.#settings = options.settings;
    this.#volumeState = opened.lostUnflushed ? "lostUnflushed" : "ok";
    if (opened.lostUnflushed) this.#reason = "acknowledged writes may have been lost";
    this.#remoteWriters = opened.remoteWriters;
    this.#writesBlocked = options.settings.sync === "always";
    const warn = (message: string): void => env.log("warn", `volume ${this.id}: ${message}`);
    const locks = new RangeLock();
    this.#strays = new Strays({
      clock: env.clock,
      map: this.#map,
      head: this.#head,
      headOwner: this.#headOwner,
      locks,
      warn,
    });
    this.#journal = new Journal({
      env,
      dir: opened.dir,
      volumeId: options.id,
      limits,
      host: {
        layers: [this.#head],
        freeze: () => ({
          map: this.#map.freeze(),
          table: opened.table,
          checkpoint: {
            volumeId: this.id,
            size: this.size,
            lineage: this.lineage,
            head: this.#headOwner,
            lostUnflushed: this.#volumeState === "lostUnflushed",
            remoteWriters: this.#remoteWriters,
          },
        }),
        poison: (error) => this.#poison(error),
      },
      log: opened.log,
      predecessors: opened.predecessors,
      committedCut: opened.committedCut,
      mapBytes: opened.mapBytes,
      earlierBytes: opened.earlierBytes,
      strays: opened.strays,
    });
    this.#writer = new OwnerWriter({
      clock: env.clock,
      limits,
      size: this.size,
      map: this.#map,
      reader: this.#reader,
      head: this.#head,
      headOwner: this.#headOwner,
      journal: this.#journal,
      locks,
      strays: this.#strays,
      checkWritable: () => this.#checkWritable(),
    });
    this.#attachments = new Attachments(
      {
        refusal: (writable) => this.#refusal(writable),
        noteRemoteWriters: (connected) => this.#noteRemoteWriters(connected),
        flush: () => this.flush(),
        warn,
      },
      // What was replayed is not durable yet: the first remote writer of this life notes it again.
      opened.remoteWriters && opened.predecessors.length === 0,
    );
  }

  /** Makes a new volume's files; all durable when it resolves. */
  static create(env: VolumeEnvironment, options: CreateVolumeOptions): Promise<void> {
    return createVolume(env, options);
  }

  /**
   * Recovers and opens a volume. After a kill it serves at once while everything replayed is synced beside it
   * (rule 35); after a power cut it has written a checkpoint before it resolves.
   * @throws `poisoned` unless `acceptLoss`, `locked`, CorruptionError
   */
  static async open(env: VolumeEnvironment, options: OpenVolumeOptions): Promise<Volume> {
    const opened = await openVolume(env, options);
    const volume = new Volume(env, options, opened);
    if (opened.predecessors.length > 0) void volume.#settleRecovery();
    return volume;
  }

  /**
   * After a start by rule `all`, beside the first requests: what was replayed is synced and committed (a failure poisons,
   * and says so there), blocks that the last life wrote but never claimed are freed, and a checkpoint ends the old logs.
   */
  async #settleRecovery(): Promise<void> {
    try {
      await this.#journal.flush();
      if (await this.#strays.sweep()) this.#journal.strays = false;
      if (!this.#closing) this.#journal.checkpointSoon();
    } catch (error) {
      this.#env.log("warn", `volume ${this.id}: the recovered state is not durable yet: ${describeError(error)}`);
    }
  }

  // ---- reading ------------------------------------------------------------------------------------------------------

  tryRead(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    return this.#reader.tryRead(offset, length, buffer, at);
  }

  async read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    this.#enter();
    try {
      await this.#reader.read(offset, length, buffer, at);
    } finally {
      this.#leave();
    }
  }

  async prefetch(offset: number, length: number): Promise<void> {
    this.#enter();
    try {
      await this.#reader.fetch(offset, length);
    } catch {
      // By contract: whoever reads the range will meet the failure.
    } finally {
      this.#leave();
    }
  }

  extents(offset: number, length: number, limit: number): Extent[] {
    return listExtents(this.#map, this.#opened.blobs, offset, length, limit);
  }

  /** The block map of a range, with owners; for people. */
  mapRuns(offset: number, length: number, limit: number): MapRun[] {
    return listMapRuns(this.#map, this.#opened.table, this.#opened.blobs, offset, length, limit);
  }

  // ---- writing ------------------------------------------------------------------------------------------------------

  tryWrite(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    return !this.#writesBlocked && this.#writer.tryWrite(offset, length, buffer, at);
  }

  write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    return this.#change(() => this.#writer.write(offset, length, buffer, at));
  }

  trim(offset: number, length: number): Promise<void> {
    return this.#change(() => this.#writer.trim(offset, length));
  }

  zero(offset: number, length: number, options: { allocate: boolean; fast: boolean }): Promise<void> {
    return this.#change(() => this.#writer.zero(offset, length, options));
  }

  async #change(work: () => Promise<void>): Promise<void> {
    this.#checkWritable();
    this.#enter();
    try {
      await work();
      if (this.#settings.sync === "always") await this.#journal.flush();
    } finally {
      this.#leave();
    }
  }

  async flush(): Promise<void> {
    this.#checkOpen();
    await this.#journal.flush();
  }

  /** Writes a checkpoint now. */
  async checkpoint(): Promise<void> {
    this.#checkOpen();
    await this.#journal.checkpoint(false);
  }

  // ---- state --------------------------------------------------------------------------------------------------------

  attach(client: Client): Promise<Attachment> {
    if (client.writable) {
      try {
        this.#journal.reserve();
      } catch (error) {
        // A full disk: reads and overwrites still work.
        this.#env.log("warn", `volume ${this.id}: no space to write ahead in the log: ${(error as Error).message}`);
      }
    }
    return this.#attachments.attach(client);
  }

  /** Asks every connection to end. */
  disconnectAll(reason: string): void {
    this.#attachments.closeAll(reason);
  }

  #refusal(writable: boolean): UllageError | undefined {
    if (this.#closing) return new UllageError("volume-closed", `volume ${this.id} is being closed`);
    if (!writable || (this.#volumeState !== "poisoned" && this.#volumeState !== "lostUnflushed")) return undefined;
    return new UllageError(
      this.#volumeState === "poisoned" ? "poisoned" : "lost-unflushed",
      `volume ${this.id} takes no writers: ${this.#reason}`,
      { hint: "check the data, then run `ullage volume reopen NAME --accept-loss`" },
    );
  }

  #checkOpen(): void {
    if (this.#closing) throw new IoError("ESHUTDOWN", `volume ${this.id} is being closed`);
  }

  #checkWritable(): void {
    this.#checkOpen();
    if (this.#volumeState === "poisoned") throw new IoError("EIO", `volume ${this.id} is poisoned: ${this.#reason}`);
  }

  async #noteRemoteWriters(connected: boolean): Promise<void> {
    if (this.#closing) return;
    this.#journal.append(RecordType.clients, connected ? 1 : 0, 0, 0, true);
    this.#remoteWriters = connected;
    await this.flush();
  }

  #poison(error: Error): Promise<void> {
    this.#volumeState = "poisoned";
    this.#reason = error.message;
    this.#writesBlocked = true;
    this.#env.log("error", `volume ${this.id} is poisoned: ${error.message}`);
    return markPoisoned(this.#env, this.#opened.dir, this.id, error.message);
  }

  info(): VolumeInfo {
    return {
      id: this.id,
      size: this.size,
      state: this.#volumeState,
      reason: this.#reason,
      lineage: this.lineage,
      writtenBytes: this.#head.writtenBytes,
      logBytes: this.#journal.logBytes,
      mapBytes: this.#journal.mapBytes,
      connections: this.#attachments.clients().map(({ protocol, address, remote, writable }) => ({
        protocol,
        address,
        remote,
        writable,
      })),
    };
  }

  get settings(): VolumeSettings {
    return this.#settings;
  }

  /** When it resolves, the settings hold for everything that was ever answered: `sync: always` flushes first. */
  async changeSettings(settings: VolumeSettings): Promise<void> {
    this.#settings = settings;
    this.#writesBlocked = settings.sync === "always" || this.#closing || this.#volumeState === "poisoned";
    if (settings.sync === "always") await this.flush();
  }

  /** The blobs that the map may refer to. */
  blobs(): Blob[] {
    return [...this.#opened.blobs.values()];
  }

  /** The next range at or behind `offset` that still belongs to `blob`, or undefined; bytes, whole blocks. */
  neededRun(blob: Blob, offset: number): { offset: number; length: number } | undefined {
    return nextNeeded(this.#map, this.#opened.blobs, blob, offset);
  }

  #enter(): void {
    this.#operations++;
  }

  #leave(): void {
    if (--this.#operations === 0) this.#onIdle?.();
  }

  /**
   * Drains, flushes, writes a clean checkpoint and closes every descriptor, once the last system call has returned
   * (rule 25). Connections must have ended or are refused from now on. When the flush fails the error is thrown after
   * everything is closed.
   */
  async close(): Promise<void> {
    if (this.#closing) throw new UllageError("volume-closed", `volume ${this.id} is closed already`);
    await this.#attachments.settled();
    this.#closing = true;
    this.#writesBlocked = true;
    if (this.#operations > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
    let failure: unknown;
    if (this.#volumeState !== "poisoned") {
      this.#remoteWriters = false;
      try {
        await this.#journal.checkpoint(true);
      } catch (error) {
        failure = error;
        // A checkpoint needs space; what was acknowledged must become durable all the same.
        await this.#journal.flush().catch((flushError: unknown) => (failure = flushError));
      }
    }
    await this.#strays.stop();
    await this.#journal.close();
    await this.#head.file.close();
    await this.#opened.lock.release();
    if (failure !== undefined) throw failure as Error;
  }
}
