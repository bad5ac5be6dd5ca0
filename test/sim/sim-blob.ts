import type { Blob } from "../../src/blob/blob.ts";
import type { File } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { SourceError } from "../../src/base/errors.ts";
import { stamp } from "./oracle.ts";
import type { SimDisk } from "./sim-disk.ts";

export const unitBytes = 65536;

let stamped: Buffer = Buffer.alloc(0);

/** The same bytes for every blob, made once. */
function blobContent(size: number): Buffer {
  if (stamped.length < size) stamped = stamp("blob", 0, size);
  return stamped.subarray(0, size);
}

/** What is left of a blob when no process runs: its content at the source, and which units are durably ready. */
export class SimSource {
  readonly id: string;
  readonly size: number;
  readonly durable = new Set<number>();
  /** the probability that a request fails */
  errors = 0;
  readonly #content: Buffer;

  constructor(id: string, size: number) {
    this.id = id;
    this.size = size;
    this.#content = blobContent(size);
  }

  /** The volume's sector before anyone writes: the blob's bytes, then zeros. */
  sector(sector: number): Buffer {
    const bytes = this.#content.subarray(sector * 512, sector * 512 + 512);
    return bytes.length === 512 ? bytes : Buffer.concat([bytes, Buffer.alloc(512 - bytes.length)]);
  }

  unit(unit: number): IoBuffer {
    return IoBuffer.from(this.#content.subarray(unit * unitBytes, (unit + 1) * unitBytes));
  }
}

/**
 * A blob whose cache file lies on the simulated disk. Units become ready when they are fetched; after a crash those are
 * ready that a sync made durable, and the bytes of the others are whatever the crash left.
 */
export class SimBlob implements Blob {
  readonly unitBytes = unitBytes;
  readonly file: File;
  losses = 0;
  readonly stats = { foregroundBytes: 0, readaheadBytes: 0, backgroundBytes: 0, requests: 0, errors: 0 };
  readonly #disk: SimDisk;
  readonly #source: SimSource;
  readonly #ready: Set<number>;
  /** One fetch per unit at a time. */
  readonly #fetching = new Map<number, Promise<void>>();
  readonly #pins = new Set<string>();

  constructor(disk: SimDisk, source: SimSource, file: File) {
    this.#disk = disk;
    this.#source = source;
    this.file = file;
    this.#ready = new Set(source.durable);
  }

  get id(): string {
    return this.#source.id;
  }

  get size(): number {
    return this.#source.size;
  }

  get readyBytes(): number {
    return Math.min(this.#ready.size * unitBytes, this.size);
  }

  isReady(offset: number, length: number): boolean {
    return this.#units(offset, length).every((unit) => this.#ready.has(unit));
  }

  readyRun(offset: number, length: number): number {
    const first = Math.floor(offset / unitBytes);
    const state = this.#ready.has(first);
    let unit = first + 1;
    while (unit * unitBytes < offset + length && this.#ready.has(unit) === state) unit++;
    return Math.min(length, unit * unitBytes - offset);
  }

  async fetch(offset: number, length: number): Promise<void> {
    for (const unit of this.#units(offset, length)) {
      if (this.#ready.has(unit)) continue;
      let running = this.#fetching.get(unit);
      if (!running) {
        running = this.#fetchUnit(unit).finally(() => this.#fetching.delete(unit));
        this.#fetching.set(unit, running);
      }
      await running;
    }
  }

  async #fetchUnit(unit: number): Promise<void> {
    this.stats.requests++;
    await this.#disk.scheduler.pause(`fetch unit ${unit}`);
    if (this.#disk.random.chance(this.#source.errors)) {
      this.stats.errors++;
      throw new SourceError("source-status", "the source answered 503", { transient: true });
    }
    const bytes = this.#source.unit(unit);
    await this.file.write(bytes, 0, bytes.length, unit * unitBytes);
    this.#ready.add(unit);
  }

  /** The cache lost a unit (a failed sync of its data): it is not ready any more and its bytes count for nothing. */
  lose(unit: number): void {
    if (!this.#ready.delete(unit)) return;
    this.losses++;
    this.#source.durable.delete(unit);
    const garbage = new IoBuffer(this.#source.unit(unit).length);
    garbage.bytes.fill(0xee);
    this.file.writeNow(garbage, 0, garbage.length, unit * unitBytes);
  }

  noteRead(): void {}

  async sync(): Promise<void> {
    const covered = [...this.#ready];
    await this.file.datasync();
    for (const unit of covered) if (this.#ready.has(unit)) this.#source.durable.add(unit);
  }

  isDurable(offset: number, length: number): boolean {
    return this.#units(offset, length).every((unit) => this.#source.durable.has(unit));
  }

  pin(volumeId: string): Promise<void> {
    this.#pins.add(volumeId);
    return Promise.resolve();
  }

  unpin(volumeId: string): Promise<void> {
    this.#pins.delete(volumeId);
    return Promise.resolve();
  }

  isPinnedBy(volumeId: string): boolean {
    return this.#pins.has(volumeId);
  }

  #units(offset: number, length: number): number[] {
    const units: number[] = [];
    const end = Math.min(offset + length, this.size);
    for (let unit = Math.floor(offset / unitBytes); unit * unitBytes < end; unit++) units.push(unit);
    return units;
  }
}
