import { allOf } from "../base/all-of.ts";
import { describeError, IoError, UllageError } from "../base/errors.ts";
import type { File } from "../base/file-system.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import { RangeLock } from "../base/range-lock.ts";
import type { Blob } from "../blob/blob.ts";
import type { TraceRecorder } from "../blob/boot-trace.ts";
import type { Attachment, BlockDevice, Client, Extent } from "../export/block-device.ts";
import { Attachments } from "./attachments.ts";
import { learnZeros, listExtents, listMapRuns, nextNeeded } from "./map/extents.ts";
import type { FrozenMap } from "./map/frozen-map.ts";
import { FrozenWrites } from "./map/frozen-writes.ts";
import type { Head } from "./layers/head.ts";
import { Journal } from "./log/journal.ts";
import { Layer } from "./layers/layer.ts";
import { volumeLimits } from "./limits.ts";
import { RecordType } from "./log/log-record.ts";
import { createVolume, openVolume, type CreateVolumeOptions, type OpenedVolume } from "./open-volume.ts";
import { blockBytes, type OwnerMap, zeroOwner } from "./map/owner-map.ts";
import { ownerKinds } from "./map/owner-table.ts";
import { OwnerReader } from "./owner-reader.ts";
import { OwnerWriter } from "./owner-writer.ts";
import { changedRuns, type ChangeRun } from "./map/map-diff.ts";
import type { MapClaims } from "./map/map-claims.ts";
import { layerPath } from "./paths.ts";
import { markPoisoned } from "./poison.ts";
import { SealedLayers } from "./layers/sealed-layers.ts";
import { describeSnapshot, forgetSnapshot, type SnapshotDescription } from "./snapshot-files.ts";
import { Strays } from "./layers/strays.ts";
import type { MapRun, OpenVolumeOptions, VolumeEnvironment, VolumeInfo, VolumeSettings, VolumeState } from "./types.ts";

/*
 * A volume: an owner map over layers and blobs, one writable head, and a journal that makes changes durable. Here it is
 * put together and has its states; how bytes are read and written is in owner-reader.ts and owner-writer.ts.
 *
 *     open -> ok ----------------> closing -> closed
 *             ok -> poisoned ----> closing           a sync failed: no more writes, until reopened with acceptLoss
 *     open -> lostUnflushed                          recovery lost acknowledged writes: no writers, until the same
 */

/** Why a volume is `lostUnflushed`. */
export const unflushedLost = "acknowledged writes may have been lost";

export class Volume implements BlockDevice {
  readonly id: string;
  readonly readOnly = false;
  readonly state = "serving";
  readonly lineage: string;
  /** Its last life ended as it should: no crash has left anything. */
  readonly endedClean: boolean;
  readonly #env: VolumeEnvironment;
  readonly #map: OwnerMap;
  readonly #reader: OwnerReader;
  readonly #head: Head;
  readonly #locks = new RangeLock();
  readonly #layers: SealedLayers;
  /** Earlier heads, by owner, with data that no sync has covered. */
  readonly #unsealed: Map<number, Layer>;
  readonly #frozen: FrozenWrites;
  readonly #described: Set<string>;
  readonly #opened: OpenedVolume;
  readonly #onLayersUnused: (layers: string[]) => void;
  readonly #journal: Journal;
  readonly #writer: OwnerWriter;
  readonly #strays: Strays;
  readonly #attachments: Attachments;
  #size: number;
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
  /** Replaced descriptors that operations under way may still use. */
  readonly #retired: File[] = [];
  readonly #closings = new Set<Promise<void>>();
  #restructuring: Promise<void> = Promise.resolve();

  private constructor(env: VolumeEnvironment, options: OpenVolumeOptions, opened: OpenedVolume) {
    this.#env = env;
    this.#opened = opened;
    this.#onLayersUnused = (layers) => options.onLayersUnused?.(layers);
    const limits = volumeLimits(env.limits);
    this.id = options.id;
    this.#size = opened.size;
    this.lineage = opened.lineage;
    this.endedClean = opened.endedClean;
    this.#map = opened.map;
    this.#head = opened.head;
    this.#layers = new SealedLayers(env, opened.table);
    this.#unsealed = opened.sealed;
    for (const [owner, layer] of opened.sealed) this.#layers.add(owner, layer);
    this.#frozen = new FrozenWrites(
      env,
      () => this.#journal.flush(),
      (layers) => this.#giveUp(layers),
    );
    this.#reader = new OwnerReader(opened.map, opened.head, this.#layers, opened.blobs);
    this.#settings = options.settings;
    this.#volumeState = opened.lostUnflushed ? "lostUnflushed" : "ok";
    if (opened.lostUnflushed) this.#reason = unflushedLost;
    this.#remoteWriters = opened.remoteWriters;
    this.#writesBlocked = options.settings.sync === "always";
    const warn = (message: string): void => env.log("warn", `volume ${this.id}: ${message}`);
    const locks = this.#locks;
    this.#strays = new Strays({
      clock: env.clock,
      map: this.#map,
      head: this.#head,
      locks,
      warn,
    });
    this.#journal = new Journal({
      env,
      dir: opened.dir,
      volumeId: options.id,
      limits,
      host: {
        layers: () => [this.#head.layer, ...this.#unsealed.values()],
        freeze: () => ({
          map: this.#map.freeze(),
          table: opened.table.copy(),
          checkpoint: {
            volumeId: this.id,
            size: this.#size,
            lineage: this.lineage,
            head: this.#head.owner,
            lostUnflushed: this.#volumeState === "lostUnflushed",
            remoteWriters: this.#remoteWriters,
          },
        }),
        olderFilesMayGo: () => this.#frozen.writeAll(),
        ownersUnused: (owners) => this.#forgetOwners(owners),
        poison: (error) => this.#poison(error),
      },
      log: opened.log,
      predecessors: opened.predecessors,
      committedCut: opened.committedCut,
      mapBytes: opened.mapBytes,
      earlierBytes: opened.earlierBytes,
      strays: opened.strays,
      untouched: opened.untouched,
    });
    this.#writer = new OwnerWriter({
      clock: env.clock,
      limits,
      size: () => this.#size,
      map: this.#map,
      reader: this.#reader,
      head: this.#head,
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
    this.#described = new Set(opened.described);
    for (const frozen of opened.snapshots) this.#frozen.add(frozen);
  }

  get size(): number {
    return this.#size;
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
    const sealed = [...opened.sealed.keys()];
    if (opened.predecessors.length > 0) void volume.#settleRecovery(sealed);
    else await volume.#seal(sealed).catch((error: unknown) => env.log("warn", describeError(error)));
    return volume;
  }

  /**
   * After a start by rule `all`, beside the first requests: what was replayed is synced and committed (a failure poisons,
   * and says so there), blocks that the last life wrote but never claimed are freed, and a checkpoint ends the old logs.
   */
  async #settleRecovery(sealed: readonly number[]): Promise<void> {
    try {
      await this.#journal.flush();
      await this.#seal(sealed);
      this.#frozen.start();
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

  /** Notes from now on what is read of the image; undefined: no more. */
  record(recorder: TraceRecorder | undefined): void {
    this.#reader.recorder = recorder;
  }

  async prefetch(offset: number, length: number): Promise<void> {
    this.#enter();
    try {
      await this.#reader.fetch(offset, length, { optional: true });
    } catch {
      // By contract: whoever reads the range will meet the failure.
    } finally {
      this.#leave();
    }
  }

  learnZeros(offset: number, length: number): Promise<number> | undefined {
    return learnZeros(this.#map, this.#opened.blobs, offset, length);
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

  // ---- snapshots and size ---------------------------------------------------------------------------------------

  /**
   * Freezes the map under `description.id` and goes on in a new head (durability rule 3). Writers wait for as long as it
   * takes those before them to end; everything that takes long is done before or after. Durable when it resolves: a start
   * that finds it in the log alone writes the frozen map.
   */
  snapshot(description: Omit<SnapshotDescription, "size">): Promise<SnapshotDescription> {
    return this.#restructure(async () => {
      const { id } = description;
      const complete = { ...description, size: this.#size };
      const layerId = this.#env.randomBytes(16).toString("hex");
      let layer: Layer | undefined;
      let sealed: number;
      this.#described.add(id); // from before the switch on
      try {
        // Both before the record that names them, and beside each other: they are mostly waiting for the disk.
        const [made] = await allOf([
          Layer.create(this.#env, layerId, this.id, this.#map.blocks).then((created) => (layer = created)),
          describeSnapshot(this.#env, this.#opened.dir, complete),
        ]);
        sealed = await this.#alone(() => this.#changeHead(id, made));
      } catch (error) {
        this.#described.delete(id);
        await layer?.file.close();
        await this.#env.fs.unlink(layerPath(this.#env.dataDir, layerId));
        await forgetSnapshot(this.#env, this.#opened.dir, id);
        throw error;
      }
      try {
        await this.#journal.flush();
      } catch (error) {
        this.#described.delete(id);
        await forgetSnapshot(this.#env, this.#opened.dir, id).catch(() => undefined); // the disk fails
        await this.#frozen.forget(id).catch(() => undefined);
        throw error;
      }
      this.#frozen.start();
      await this.#seal([sealed]);
      return complete;
    });
  }

  /** In one turn, with no write under way; when it throws, the head stays. @returns the owner that was the head */
  #changeHead(id: string, layer: Layer): number {
    const { table } = this.#opened;
    const owner = table.free();
    this.#journal.appendWithId(RecordType.owner, owner, ownerKinds.layer, layer.id);
    table.put(owner, { kind: "layer", id: layer.id });
    this.#journal.appendWithId(RecordType.snapshot, owner, 0, id);
    this.#frozen.add({ id, volumeId: this.id, size: this.#size, map: this.#map.freeze(), table: table.copy() });
    const before = { ...this.#head };
    this.#unsealed.set(before.owner, before.layer);
    this.#layers.add(before.owner, before.layer);
    this.#head.layer = layer;
    this.#head.owner = owner;
    return before.owner;
  }

  /** Makes earlier heads read-only; a round that began after they were sealed has made them durable. */
  async #seal(owners: readonly number[]): Promise<void> {
    for (const owner of owners) {
      const layer = this.#unsealed.get(owner);
      if (layer === undefined) continue;
      await layer.file.seal();
      const writable = this.#layers.reopen(owner);
      if (writable !== undefined) this.#retire(writable);
      this.#unsealed.delete(owner);
    }
  }

  /** What may differ from a snapshot of this volume; see `changedRuns` for the result. */
  changesSince(before: FrozenMap, offset: number, length: number, limit: number): ChangeRun[] {
    return changedRuns({ map: this.#map, table: this.#opened.table }, before, offset, length, limit);
  }

  /** Whether no whole block at or behind `offset` belongs to anybody. */
  isEmptyFrom(offset: number): boolean {
    const first = Math.ceil(offset / blockBytes);
    const count = this.#map.blocks - first;
    return count <= 0 || this.#map.ownsAll(zeroOwner, first, count);
  }

  /** Grows the volume; durable when it resolves. New connections see the new size. @param size bytes */
  grow(size: number): Promise<void> {
    return this.#restructure(async () => {
      if (size % 512 !== 0 || size <= this.#size)
        throw new RangeError(`a volume of ${this.#size} can't grow to ${size}`);
      const blocks = Math.ceil(size / blockBytes);
      await this.#head.layer.grow(blocks);
      await this.#alone(() => {
        this.#journal.append(RecordType.resize, 0, size, 0, true);
        this.#map.grow(blocks);
        this.#size = size;
      });
      await this.#journal.flush();
    });
  }

  /** One change of structure after the other. */
  async #restructure<T>(work: () => Promise<T>): Promise<T> {
    const before = this.#restructuring;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#restructuring = promise;
    this.#enter();
    try {
      await before;
      this.#checkWritable();
      if (this.#journal.full) await this.#journal.makeRoom();
      return await work();
    } finally {
      this.#leave();
      resolve();
    }
  }

  /** Runs `work`, within one turn, when no write, trim or punch is under way; those that come later wait. */
  async #alone<T>(work: () => T): Promise<T> {
    const { clock, observer } = this.#env;
    const closed = clock.now();
    const range = await this.#locks.acquire(0, this.#map.blocks);
    try {
      this.#checkWritable();
      return work();
    } finally {
      this.#locks.release(range);
      observer?.gateOpened(this.id, clock.now() - closed);
    }
  }

  /** A frozen map of this volume that is in no file yet. */
  pendingSnapshot(id: string): FrozenMap | undefined {
    return this.#frozen.get(id);
  }

  /** Resolves when the frozen map is in its file, durably. */
  writeSnapshot(id: string): Promise<void> {
    return this.#frozen.write(id);
  }

  /** Its frozen map is needed no more: when this resolves it is neither in memory nor in a file. */
  forgetSnapshot(id: string): Promise<void> {
    this.#described.delete(id);
    return this.#frozen.forget(id);
  }

  /** The layers that this volume, or a frozen map of it that is in no file yet, may refer to. */
  layerIds(): Set<string> {
    const ids = new Set<string>();
    for (const table of [this.#opened.table, ...this.#frozen.tables()]) {
      for (const [, { kind, id }] of table.entries()) if (kind === "layer") ids.add(id);
    }
    return ids;
  }

  /** Those of them that may still change: the head, and earlier heads that are not read-only yet. */
  unsealedLayerIds(): Set<string> {
    return new Set([this.#head.layer, ...this.#unsealed.values()].map(({ id }) => id));
  }

  /**
   * Shows what this volume refers to: its map, then the frozen maps that are in no file yet. In this order, because a
   * snapshot that is taken meanwhile holds what the map held.
   */
  async claim(claims: MapClaims): Promise<void> {
    await claims.walk(this.#map, this.#opened.table);
    for (const id of this.#frozen.ids()) {
      const pending = this.#frozen.get(id);
      if (pending === undefined) continue; // in its file by now
      const map = pending.map.freeze(); // its own goes when it is written
      try {
        await claims.walk(map, pending.table);
      } finally {
        map.release();
      }
    }
  }

  /** Resolves when every read of a layer that has begun has ended (durability rule 5). */
  readsEnded(): Promise<void> {
    return this.#reader.readsEnded();
  }

  /** Frozen maps of this volume that are in no file yet. */
  pendingSnapshots(): string[] {
    return this.#frozen.ids();
  }

  #forgetOwners(owners: number[]): void {
    const layers: string[] = [];
    for (const owner of owners) {
      if (owner === this.#head.owner || this.#unsealed.has(owner)) continue;
      layers.push(this.#opened.table.get(owner)!.id);
      this.#opened.table.remove(owner);
      const file = this.#layers.take(owner);
      if (file !== undefined) this.#retire(file);
    }
    this.#giveUp(layers);
  }

  /** A map or a frozen map has let go of layers: unless another one here names them, they may go. */
  #giveUp(layers: string[]): void {
    const named = this.layerIds();
    const unused = layers.filter((id) => !named.has(id));
    if (unused.length > 0) this.#onLayersUnused(unused);
  }

  /** Closes a file when nothing can be reading it any more. */
  #retire(file: File): void {
    this.#retired.push(file);
    if (this.#operations === 0) this.#closeRetired();
  }

  #closeRetired(): void {
    for (const file of this.#retired.splice(0)) {
      const closing = file
        .close()
        .catch((error: unknown) => this.#env.log("warn", `${file.path}: ${describeError(error)}`))
        .finally(() => this.#closings.delete(closing));
      this.#closings.add(closing);
    }
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
      writtenBytes: this.#map.writtenBlocks * blockBytes,
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

  /**
   * The next range at or behind `offset` that still belongs to `blob`, or undefined; bytes, whole blocks. A snapshot may
   * need what the volume itself has overwritten: while there is one, all of the blob counts (durability rule 11).
   */
  neededRun(blob: Blob, offset: number): { offset: number; length: number } | undefined {
    if (this.#described.size > 0) return offset < blob.size ? { offset, length: blob.size - offset } : undefined;
    return nextNeeded(this.#map, this.#opened.blobs, blob, offset);
  }

  #enter(): void {
    this.#operations++;
  }

  #leave(): void {
    if (--this.#operations > 0) return;
    this.#closeRetired();
    this.#onIdle?.();
  }

  /**
   * Drains, flushes, writes a clean checkpoint if anything changed, and closes every descriptor, once the last system call has returned
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
        await this.#journal.finish();
      } catch (error) {
        failure = error;
        // A checkpoint needs space; what was acknowledged must become durable all the same.
        await this.#journal.flush().catch((flushError: unknown) => (failure = flushError));
      }
    }
    await this.#strays.stop();
    await this.#frozen.stop();
    await this.#journal.close();
    await Promise.all(this.#closings);
    await this.#layers.close();
    await this.#head.layer.file.close();
    await this.#opened.lock.release();
    if (failure !== undefined) throw failure as Error;
  }
}
