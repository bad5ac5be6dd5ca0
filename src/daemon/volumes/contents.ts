import { setImmediate as nextTurn } from "node:timers/promises";
import { describeError, UllageError } from "../../base/errors.ts";
import type { IoBuffer } from "../../base/io-buffer.ts";
import type { Run } from "../../base/zero-blocks.ts";
import type { SnapshotRecord } from "../../catalog/metadata-store.ts";
import { ExtentState, type Attachment, type BlockDevice } from "../../export/block-device.ts";
import { DataClusters } from "../../image/data-clusters.ts";
import { Qcow2Layout } from "../../image/qcow2/layout.ts";
import type { Log } from "../log.ts";
import type { ManagedVolume } from "./managed-volume.ts";
import type { VolumeMeters } from "./volume-meters.ts";
import type { Volumes } from "./volumes.ts";

/** How the bytes of a disk can be had. */
export const contentFormats = ["raw", "qcow2"] as const;
/** How a disk is written as a file. */
export type ContentFormat = (typeof contentFormats)[number];

/** Contents that are read at the same time. */
const maxContents = 16;
/** Of a disk's map, looked at in one step; and how long steps may go on without letting others in. */
const surveyBytes = 256 * 1024 * 1024;
const surveyMs = 1;
const maxSurveyRuns = 10_000;

/** Where a content has anything but zeros. */
export interface DataRuns {
  /** at most so many bytes are other than zeros */
  readonly bytes: number;
  /** The next run, from `offset` on. */
  next(offset: number): Run | undefined;
}

/** Who reads a content. */
export interface ContentReader {
  /** for people */
  address: string;
  /** on another machine */
  remote: boolean;
}

/** All bytes of a disk at one moment, as a file. To be closed, whatever happens. */
export interface VolumeContent {
  readonly format: ContentFormat;
  /** bytes of the file */
  readonly size: number;
  /** Names these bytes, for ever: equal names, equal bytes. undefined: nobody will ever see them again. */
  readonly name: string | undefined;
  /** Fills `buffer` with a range inside the file. @throws SourceError, IoError; UllageError `cut-off` when the volume goes */
  read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void>;
  /** Looks at the disk's map, and at the tables of its image; fetches nothing. */
  survey(): Promise<DataRuns>;
  /** Resolves when nothing is left that was there for this reader. */
  close(): Promise<void>;
}

/**
 * Disks as files: to be downloaded. A snapshot is read as it is. A volume is frozen for its reader by a snapshot without a
 * name, which is held (daemon/snapshots/snapshots.ts) until the content is closed; after a kill the next start removes it.
 */
export class Contents {
  readonly #volumes: Volumes;
  readonly #meters: VolumeMeters;
  readonly #log: Log;
  readonly #open = new Set<DiskContent>();
  #opening = 0;

  constructor(volumes: Volumes, meters: VolumeMeters, log: Log) {
    this.#volumes = volumes;
    this.#meters = meters;
    this.#log = log;
  }

  /**
   * @param snapshotName absent: the volume as it is now
   * @throws UllageError `not-found`, `creating`, `too-many-streams`, `too-large` (for qcow2)
   */
  async open(
    volumeName: string,
    snapshotName: string | undefined,
    format: ContentFormat,
    reader: ContentReader,
  ): Promise<VolumeContent> {
    const volume = this.#volumes.getReady(volumeName);
    const { snapshots } = this.#volumes;
    const named = snapshotName === undefined ? undefined : snapshots.get(volume, snapshotName);
    if (this.#open.size + this.#opening >= maxContents) {
      throw new UllageError("too-many-streams", `${maxContents} disks are being read, which is the most there may be`, {
        hint: "try again when one of them has been read",
      });
    }
    this.#opening++;
    try {
      const content =
        named === undefined ? await this.#freeze(volume, reader) : await this.#view(volume, named, reader);
      this.#open.add(content);
      try {
        await content.lay(format);
      } catch (error) {
        await content.close();
        throw error;
      }
      return content;
    } finally {
      this.#opening--;
    }
  }

  async #freeze(volume: ManagedVolume, reader: ContentReader): Promise<DiskContent> {
    const { snapshots } = this.#volumes;
    const row = await snapshots.create(volume, null, { held: true });
    try {
      return await this.#view(volume, row, reader, () => snapshots.release(row.id));
    } catch (error) {
      await snapshots.release(row.id);
      throw error;
    }
  }

  async #view(
    { record: { id, name } }: ManagedVolume,
    row: SnapshotRecord,
    reader: ContentReader,
    release?: () => Promise<void>,
  ): Promise<DiskContent> {
    const { address, remote } = reader;
    const device = await this.#volumes.snapshots.view(row);
    const meter = this.#meters.of(id);
    const content = new DiskContent(device, release === undefined ? row.id : undefined, {
      note: (bytes) => (meter.exportedBytes += bytes),
      leave: async () => {
        attachment.release(true);
        await release?.().catch((error: unknown) => {
          this.#log("warn", `what volume '${name}' was frozen with goes at the next start: ${describeError(error)}`);
        });
        this.#open.delete(content);
      },
    });
    const close = (reason: string): void => content.cut(reason);
    const attachment: Attachment = await device.attach({ protocol: "http", address, remote, writable: false, close });
    return content;
  }

  /** Takes every content away from its reader. */
  async close(): Promise<void> {
    for (const content of this.#open) content.cut("Ullage is being stopped");
    await Promise.all([...this.#open].map((content) => content.close()));
  }
}

/** What a content needs of those who opened it. */
interface ContentHost {
  /** Counts bytes that were read. */
  note(bytes: number): void;
  /** Lets go of the disk. */
  leave(): Promise<void>;
}

class DiskContent implements VolumeContent {
  format: ContentFormat = "raw";
  name: string | undefined;
  readonly #device: BlockDevice;
  readonly #host: ContentHost;
  #map: DataClusters | undefined;
  #layout: Qcow2Layout | undefined;
  #reading = 0;
  #onIdle: (() => void) | undefined;
  #cutOff: UllageError | undefined;
  #closed: Promise<void> | undefined;

  constructor(device: BlockDevice, name: string | undefined, host: ContentHost) {
    this.#device = device;
    this.name = name;
    this.#host = host;
  }

  get size(): number {
    return this.#layout?.size ?? this.#device.size;
  }

  /** Makes it a file of this format. */
  async lay(format: ContentFormat): Promise<void> {
    this.format = format;
    if (format === "raw") return;
    this.#layout = new Qcow2Layout(await this.#survey());
    if (this.name !== undefined) this.name += `-${format}`;
  }

  async survey(): Promise<DataRuns> {
    return this.#layout ?? (await this.#survey());
  }

  async #survey(): Promise<DataClusters> {
    if (this.#map !== undefined) return this.#map;
    const { size } = this.#device;
    const map = new DataClusters(size);
    let since = performance.now();
    for (let at = 0; at < size;) {
      if (performance.now() - since > surveyMs) {
        await nextTurn();
        since = performance.now();
      }
      this.#demandOpen();
      const step = Math.min(surveyBytes, size - at);
      const told = (await this.#device.learnZeros(at, step)) ?? step;
      this.#demandOpen();
      for (const { length, state } of this.#device.extents(at, told, maxSurveyRuns)) {
        if (state !== ExtentState.zero) map.add(at, length);
        at += length;
      }
    }
    return (this.#map = map.seal());
  }

  async read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    this.#demandOpen();
    this.#reading++;
    try {
      if (this.#layout === undefined) await this.#readDisk(offset, length, buffer, at);
      else await this.#readLayout(this.#layout, offset, length, buffer, at);
      this.#host.note(length);
    } finally {
      if (--this.#reading === 0) this.#onIdle?.();
    }
    this.#demandOpen();
  }

  async #readLayout(layout: Qcow2Layout, offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    for (const end = offset + length; offset < end;) {
      const found = layout.at(offset);
      let size: number;
      if ("tables" in found) {
        size = Math.min(found.tables.length, end - offset);
        found.tables.copy(buffer.bytes, at, 0, size);
      } else {
        const { disk } = found;
        size = Math.min(disk.length, end - offset);
        const inside = Math.max(0, Math.min(size, this.#device.size - disk.offset));
        await this.#readDisk(disk.offset, inside, buffer, at);
        buffer.bytes.fill(0, at + inside, at + size);
      }
      offset += size;
      at += size;
    }
  }

  async #readDisk(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    if (length === 0 || this.#device.tryRead(offset, length, buffer, at)) return;
    await this.#device.read(offset, length, buffer, at);
  }

  #demandOpen(): void {
    if (this.#cutOff !== undefined) throw this.#cutOff;
    if (this.#closed !== undefined) throw new UllageError("content-closed", "the content is closed");
  }

  /** Whoever reads on learns why he can't. */
  cut(reason: string): void {
    this.#cutOff ??= new UllageError("cut-off", `the disk was taken away: ${reason}`);
  }

  close(): Promise<void> {
    this.#closed ??= this.#leave();
    return this.#closed;
  }

  async #leave(): Promise<void> {
    if (this.#reading > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
    await this.#host.leave();
  }
}
