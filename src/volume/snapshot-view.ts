import { IoError, UllageError } from "../base/errors.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import type { Blob } from "../blob/blob.ts";
import type { Attachment, BlockDevice, Client, Extent } from "../export/block-device.ts";
import { learnZeros, listExtents } from "./map/extents.ts";
import type { FrozenMap } from "./map/frozen-map.ts";
import { changedRuns, type ChangeRun } from "./map/map-diff.ts";
import { OwnerReader } from "./owner-reader.ts";
import { SealedLayers } from "./layers/sealed-layers.ts";
import type { VolumeEnvironment } from "./types.ts";

const readOnlyError = (): IoError => new IoError("EROFS", "a snapshot never changes");

/** A snapshot as a read-only disk: a frozen map over sealed layers and blobs. */
export class SnapshotView implements BlockDevice {
  readonly size: number;
  readonly readOnly = true;
  readonly state = "serving";
  readonly lineage: string;
  readonly frozen: FrozenMap;
  readonly #layers: SealedLayers;
  readonly #blobs: ReadonlyMap<number, Blob>;
  readonly #reader: OwnerReader;
  readonly #clients = new Set<Client>();
  #operations = 0;
  #closing = false;
  #onIdle: (() => void) | undefined;

  /** @param blobs those in the frozen map's table, by owner id */
  constructor(env: VolumeEnvironment, frozen: FrozenMap, blobs: ReadonlyMap<number, Blob>) {
    this.frozen = frozen;
    this.size = frozen.size;
    this.lineage = frozen.id;
    this.#layers = new SealedLayers(env, frozen.table);
    this.#blobs = blobs;
    this.#reader = new OwnerReader(frozen.map, undefined, this.#layers, blobs);
  }

  tryRead(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    return !this.#closing && this.#reader.tryRead(offset, length, buffer, at);
  }

  async read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    await this.#using(() => this.#reader.read(offset, length, buffer, at));
  }

  async prefetch(offset: number, length: number): Promise<void> {
    await this.#using(() => this.#reader.fetch(offset, length, { optional: true })).catch(() => undefined); // a later read meets the failure
  }

  learnZeros(offset: number, length: number): Promise<number> | undefined {
    return learnZeros(this.frozen.map, this.#blobs, offset, length);
  }

  extents(offset: number, length: number, limit: number): Extent[] {
    return listExtents(this.frozen.map, this.#blobs, offset, length, limit);
  }

  /** What may differ from another snapshot of the same volume; see `changedRuns`. */
  changesSince(before: FrozenMap, offset: number, length: number, limit: number): ChangeRun[] {
    return changedRuns(this.frozen, before, offset, length, limit);
  }

  tryWrite(): boolean {
    return false;
  }

  write(): Promise<void> {
    return Promise.reject(readOnlyError());
  }

  trim(): Promise<void> {
    return Promise.reject(readOnlyError());
  }

  zero(): Promise<void> {
    return Promise.reject(readOnlyError());
  }

  flush(): Promise<void> {
    return Promise.resolve();
  }

  attach(client: Client): Promise<Attachment> {
    if (this.#closing) return Promise.reject(new UllageError("volume-closed", "the snapshot is being closed"));
    this.#clients.add(client);
    const leave = (): void => void this.#clients.delete(client);
    return Promise.resolve({ broken: leave, release: leave });
  }

  get connections(): number {
    return this.#clients.size;
  }

  disconnectAll(reason: string): void {
    for (const client of this.#clients) client.close(reason);
  }

  async #using<T>(work: () => Promise<T>): Promise<T> {
    if (this.#closing) throw new IoError("ESHUTDOWN", "the snapshot is being closed");
    this.#operations++;
    try {
      return await work();
    } finally {
      if (--this.#operations === 0) this.#onIdle?.();
    }
  }

  /** Resolves when the last read has returned and every file is closed; the blobs are the caller's. */
  async close(): Promise<void> {
    this.#closing = true;
    if (this.#operations > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
    await this.#layers.close();
  }
}
