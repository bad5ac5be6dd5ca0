import { IoError, UllageError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { type Range, RangeLock } from "../base/range-lock.ts";
import type { Blob } from "../blob/blob.ts";
import type { Attachment, BlockDevice, Client, Extent } from "../export/block-device.ts";
import { Attachments } from "./attachments.ts";
import { listExtents, listMapRuns, nextNeeded } from "./extents.ts";
import { Journal } from "./journal.ts";
import type { Layer } from "./layer.ts";
import { type VolumeLimits, volumeLimits } from "./limits.ts";
import { RecordType } from "./log-record.ts";
import { createVolume, openVolume, type OpenedVolume } from "./open-volume.ts";
import { blockBytes, chunkBlocks, type OwnerMap, zeroOwner } from "./owner-map.ts";
import { OwnerReader } from "./owner-reader.ts";
import { markPoisoned } from "./poison.ts";
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
 * A volume: an owner map over layers and blobs, one writable head, and a journal.
 *
 * A write goes through these steps, and a crash between any two of them is harmless (docs/DURABILITY.md):
 *
 *     range lock -> whole blocks to the head -> record appended -> map changed -> lock released -> answered
 *
 * The synchronous forms do all of it in one turn of the event loop and therefore need no lock of their own; they only
 * step aside when somebody holds one. Lock order: fetch (no lock held) -> range lock -> write -> append -> release ->
 * wait for durability; nothing waits for the network, a flush or a client while it holds a range (rule 21).
 */

const zeroSource = new IoBuffer(1024 * 1024);
zeroSource.bytes.fill(0);

export class Volume implements BlockDevice {
  readonly id: string;
  readonly size: number;
  readonly readOnly = false;
  readonly state = "serving";
  readonly lineage: string;
  readonly #env: VolumeEnvironment;
  readonly #limits: VolumeLimits;
  readonly #map: OwnerMap;
  readonly #reader: OwnerReader;
  readonly #head: Layer;
  readonly #headOwner: number;
  readonly #opened: OpenedVolume;
  readonly #journal: Journal;
  readonly #locks = new RangeLock();
  readonly #attachments: Attachments;
  #settings: VolumeSettings;
  #volumeState: VolumeState;
  #reason: string | undefined;
  #remoteWriters: boolean;
  #closing = false;
  /** Why the synchronous write path is shut: poisoned, closing, or every write must be durable. */
  #writesBlocked = false;
  /** So many writes go to the pool, because one on the calling thread was slow. */
  #slowWrites = 0;
  /** Operations under way that may use a descriptor. */
  #operations = 0;
  #onIdle: (() => void) | undefined;

  private constructor(env: VolumeEnvironment, options: OpenVolumeOptions, opened: OpenedVolume) {
    this.#env = env;
    this.#opened = opened;
    this.#limits = volumeLimits(env.limits);
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
    this.#journal = new Journal({
      env,
      dir: opened.dir,
      volumeId: options.id,
      limits: this.#limits,
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
    });
    this.#attachments = new Attachments(
      {
        refusal: () => this.#refusal(),
        noteRemoteWriters: (connected) => this.#noteRemoteWriters(connected),
        flush: () => this.flush(),
        warn: (message) => env.log("warn", `volume ${this.id}: ${message}`),
      },
      opened.remoteWriters,
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
    if (opened.predecessors.length > 0) {
      // A failure poisons, and says so there.
      volume.flush().then(
        () => volume.#journal.checkpointSoon(),
        () => undefined,
      );
    }
    return volume;
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
    if (this.#writesBlocked || offset % blockBytes !== 0 || length % blockBytes !== 0) return false;
    const block = offset / blockBytes;
    const count = length / blockBytes;
    if (!this.#locks.idle && this.#locks.overlaps(block, block + count)) return false;
    if (this.#slowWrites > 0) {
      this.#slowWrites--;
      return false;
    }
    if (this.#head.unsyncedBytes >= this.#limits.dirtyBytes && !this.#admitDirty()) return false;
    const owned = this.#map.ownsAll(this.#headOwner, block, count);
    if (!owned) {
      if (this.#journal.full) return false;
      this.#journal.reserve();
    }
    const started = this.#env.clock.now();
    this.#head.noteWrite(length);
    this.#head.file.writeNow(buffer, at, length, this.#head.position(offset));
    if (!owned) this.#claim(block, count);
    if (this.#env.clock.now() - started > this.#limits.slowWriteMs) this.#slowWrites = 32;
    return true;
  }

  /** Too much is unsynced: starts a flush. @returns whether the calling thread may still write */
  #admitDirty(): boolean {
    this.#flushBeside();
    return this.#head.unsyncedBytes < this.#limits.dirtyBytes * 2;
  }

  #flushing = false;
  #flushBeside(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    this.#journal
      .flush()
      .catch(() => undefined) // a failed sync poisons; a full disk is told to whoever flushes
      .finally(() => {
        this.#flushing = false;
      });
  }

  /** The blocks, written in full, become the head's: record first, then the map (rule 14). */
  #claim(block: number, count: number): void {
    this.#journal.append(RecordType.set, this.#headOwner, block, count, false);
    this.#map.set(block, count, this.#headOwner);
  }

  async write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    await this.#change(offset, offset + length, async () => {
      await this.#writeLocked(offset, length, buffer, at);
    });
  }

  async trim(offset: number, length: number): Promise<void> {
    const { first, last } = this.#wholeBlocks(offset, length);
    if (first >= last) return;
    await this.#change(first * blockBytes, last * blockBytes, () => this.#trimLocked(first, last));
  }

  async zero(offset: number, length: number, options: { allocate: boolean; fast: boolean }): Promise<void> {
    if (options.allocate) {
      if (options.fast) throw new IoError("ENOTSUP", "zeroing with allocation is no faster than writing");
      await this.#zeroByWriting(offset, length);
      return;
    }
    const end = offset + length;
    const blocksEnd = end === this.size ? this.#map.blocks * blockBytes : end;
    await this.#change(offset, blocksEnd, async () => {
      const { first, last } = this.#wholeBlocks(offset, length);
      if (first >= last) {
        await this.#writeLocked(offset, length, zeroSource, 0);
        return;
      }
      const headEdge = first * blockBytes - offset;
      const tailEdge = Math.max(0, end - last * blockBytes);
      if (headEdge > 0) await this.#writeLocked(offset, headEdge, zeroSource, 0);
      if (tailEdge > 0) await this.#writeLocked(end - tailEdge, tailEdge, zeroSource, 0);
      await this.#trimLocked(first, last);
    });
  }

  async #zeroByWriting(offset: number, length: number): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end;) {
      const piece = Math.min(end - at, zeroSource.length - (at % blockBytes));
      await this.write(at, piece, zeroSource, 0);
      at += piece;
    }
  }

  /** The blocks that lie wholly inside a range; the volume's last block counts as whole up to the volume's end. */
  #wholeBlocks(offset: number, length: number): { first: number; last: number } {
    const end = offset + length;
    const first = Math.ceil(offset / blockBytes);
    const last = end === this.size ? this.#map.blocks : Math.floor(end / blockBytes);
    return { first, last };
  }

  /**
   * Everything that changes content asynchronously: fetches what partial blocks need (no lock held), takes the range,
   * looks again, works, releases, and waits for durability when every write must be durable.
   */
  async #change(offset: number, end: number, work: () => Promise<void>): Promise<void> {
    this.#checkWritable();
    this.#enter();
    try {
      const first = Math.floor(offset / blockBytes);
      const last = Math.ceil(end / blockBytes);
      let range: Range;
      for (;;) {
        await this.#fetchEdges(offset, end);
        if (this.#journal.full) {
          this.#journal.checkpointSoon();
          await this.#journal.settled();
        }
        range = await this.#locks.acquire(first, last);
        if (this.#edgesReady(offset, end)) break;
        this.#locks.release(range); // the edge's owner changed while this waited (rule 15)
      }
      try {
        this.#checkWritable();
        await work();
      } finally {
        this.#locks.release(range);
      }
      if (this.#settings.sync === "always") await this.#journal.flush();
    } finally {
      this.#leave();
    }
  }

  /** Offsets of the blocks that [offset, end) covers in part, at most two. */
  #edges(offset: number, end: number): number[] {
    const edges: number[] = [];
    const head = offset - (offset % blockBytes);
    if (head !== offset) edges.push(head);
    const tail = end - (end % blockBytes);
    if (tail !== end && (tail !== head || edges.length === 0)) edges.push(tail);
    return edges;
  }

  async #fetchEdges(offset: number, end: number): Promise<void> {
    for (const edge of this.#edges(offset, end)) await this.#reader.fetch(edge, blockBytes);
  }

  #edgesReady(offset: number, end: number): boolean {
    return this.#edges(offset, end).every((edge) => this.#reader.ready(edge, blockBytes));
  }

  /** Writes under the range lock: whole blocks as they are, partial ones completed first. */
  async #writeLocked(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    const end = offset + length;
    const firstWhole = Math.ceil(offset / blockBytes) * blockBytes;
    const lastWhole = Math.max(firstWhole, Math.floor(end / blockBytes) * blockBytes);
    if (offset < firstWhole) {
      await this.#writePartial(offset, Math.min(end, firstWhole), buffer, at);
    }
    if (lastWhole > firstWhole) {
      await this.#writeWhole(firstWhole, lastWhole - firstWhole, buffer, at + firstWhole - offset);
    }
    if (end > lastWhole) {
      await this.#writePartial(lastWhole, end, buffer, at + lastWhole - offset);
    }
  }

  /** A block enters the head only with all its 4096 bytes (rule 15). */
  async #writePartial(offset: number, end: number, buffer: IoBuffer, at: number): Promise<void> {
    const inBlock = offset % blockBytes;
    const block = new IoBuffer(blockBytes);
    await this.#reader.readLocal(offset - inBlock, blockBytes, block, 0);
    buffer.bytes.copy(block.bytes, inBlock, at, at + end - offset);
    await this.#writeWhole(offset - inBlock, blockBytes, block, 0);
  }

  async #writeWhole(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    const block = offset / blockBytes;
    const count = length / blockBytes;
    const owned = this.#map.ownsAll(this.#headOwner, block, count);
    if (!owned) this.#journal.reserve();
    if (this.#head.unsyncedBytes >= this.#limits.dirtyBytes) this.#flushBeside();
    this.#head.noteWrite(length);
    await this.#head.file.write(buffer, at, length, this.#head.position(offset));
    // Bytes that reached the file while a sync was running are not covered by it.
    this.#head.noteWrite(0);
    if (!owned) this.#claim(block, count);
  }

  /** Blocks [first, last) read as zeros; runs under the range lock for all of them (rules 5, 30). */
  async #trimLocked(first: number, last: number): Promise<void> {
    const inHead = this.#map.next(this.#headOwner, first, last) >= 0;
    const sliceBlocks = this.#limits.sliceChunks * chunkBlocks;
    for (let at = first; at < last;) {
      const count = Math.min(sliceBlocks - (at % sliceBlocks), last - at);
      if (!this.#map.ownsAll(zeroOwner, at, count)) {
        this.#journal.append(RecordType.set, zeroOwner, at, count, true);
        this.#map.set(at, count, zeroOwner);
      }
      at += count;
      if (at < last) await this.#env.clock.sleep(0);
    }
    if (!inHead) return;
    const offset = this.#head.position(first * blockBytes);
    const length = (last - first) * blockBytes;
    // Not every file system can; the blocks read as zeros by the map, only their space stays.
    if (length <= this.#limits.punchNowBytes) this.#head.file.punchNow(offset, length);
    else await this.#head.file.punch(offset, length);
  }

  flush(): Promise<void> {
    return this.#journal.flush();
  }

  /** Writes a checkpoint now. */
  checkpoint(): Promise<void> {
    return this.#journal.checkpoint(false);
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

  #refusal(): UllageError | undefined {
    if (this.#closing) return new UllageError("volume-closed", `volume ${this.id} is being closed`);
    if (this.#volumeState !== "poisoned" && this.#volumeState !== "lostUnflushed") return undefined;
    return new UllageError(
      this.#volumeState === "poisoned" ? "poisoned" : "lost-unflushed",
      `volume ${this.id} takes no writers: ${this.#reason}`,
      { hint: "check the data, then run `ullage volume reopen NAME --accept-loss`" },
    );
  }

  #checkWritable(): void {
    if (this.#closing) throw new IoError("ESHUTDOWN", `volume ${this.id} is being closed`);
    if (this.#volumeState === "poisoned") throw new IoError("EIO", `volume ${this.id} is poisoned: ${this.#reason}`);
  }

  async #noteRemoteWriters(connected: boolean): Promise<void> {
    if (this.#closing) return;
    this.#journal.append(RecordType.clients, connected ? 1 : 0, 0, 0, true);
    this.#remoteWriters = connected;
    await this.flush();
  }

  #poison(error: Error): void {
    this.#volumeState = "poisoned";
    this.#reason = error.message;
    this.#writesBlocked = true;
    this.#env.log("error", `volume ${this.id} is poisoned: ${error.message}`);
    this.#poisoning = markPoisoned(this.#env, this.#opened.dir, this.id, error.message);
  }
  #poisoning: Promise<void> = Promise.resolve();

  info(): VolumeInfo {
    return {
      id: this.id,
      size: this.size,
      state: this.#volumeState,
      reason: this.#reason,
      lineage: this.lineage,
      writtenBytes: this.#head.file.allocated(),
      logBytes: this.#journal.logBytes,
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

  changeSettings(settings: VolumeSettings): void {
    this.#settings = settings;
    this.#writesBlocked = settings.sync === "always" || this.#closing || this.#volumeState === "poisoned";
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
    await this.#poisoning;
    await this.#journal.close();
    await this.#head.file.close();
    await this.#opened.lock.release();
    if (failure !== undefined) throw failure as Error;
  }
}
