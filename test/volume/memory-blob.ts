import { closeSync, openSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { SourceError } from "../../src/base/errors.ts";
import type { File } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { Blob } from "../../src/blob/blob.ts";

/** A blob whose source is a buffer: units become ready when somebody fetches them, and a test can hold or break that. */
export class MemoryBlob implements Blob {
  losses = 0;
  readonly id: string;
  readonly size: number;
  readonly unitBytes = 65536;
  readonly file: File;
  readonly stats = { foregroundBytes: 0, readaheadBytes: 0, backgroundBytes: 0, requests: 0, errors: 0 };
  readonly content: Buffer;
  /** What a fetch does before it brings a unit. */
  beforeFetch: (unit: number) => Promise<void> | void = () => undefined;
  readonly #ready = new Set<number>();

  private constructor(id: string, content: Buffer, file: File) {
    this.id = id;
    this.content = content;
    this.size = content.length;
    this.file = file;
  }

  static async open(dir: string, id: string, content: Buffer): Promise<MemoryBlob> {
    const path = join(dir, `${id}.blob`);
    closeSync(openSync(path, "a"));
    truncateSync(path, Math.ceil(content.length / 4096) * 4096);
    return new MemoryBlob(id, content, await realFileSystem.open(path, "write"));
  }

  get readyBytes(): number {
    return Math.min(this.#ready.size * this.unitBytes, this.size);
  }

  isReady(offset: number, length: number): boolean {
    return this.#units(offset, length).every((unit) => this.#ready.has(unit));
  }

  readyRun(offset: number, length: number): number {
    const first = Math.floor(offset / this.unitBytes);
    const state = this.#ready.has(first);
    let unit = first + 1;
    while (unit * this.unitBytes < offset + length && this.#ready.has(unit) === state) unit++;
    return Math.min(length, unit * this.unitBytes - offset);
  }

  async fetch(offset: number, length: number): Promise<void> {
    for (const unit of this.#units(offset, length)) {
      if (this.#ready.has(unit)) continue;
      this.stats.requests++;
      await this.beforeFetch(unit);
      const bytes = this.content.subarray(unit * this.unitBytes, (unit + 1) * this.unitBytes);
      await this.file.write(IoBuffer.from(bytes), 0, bytes.length, unit * this.unitBytes);
      this.#ready.add(unit);
    }
  }

  /** The source is gone. */
  breakSource(): void {
    this.beforeFetch = () => {
      this.stats.errors++;
      throw new SourceError("source-unreachable", "the source is unreachable", { transient: true });
    };
  }

  /** A failed sync of the cache took a unit back; its bytes count for nothing. */
  lose(unit: number): void {
    this.#ready.delete(unit);
    this.losses++;
  }

  noteRead(): void {}
  async sync(): Promise<void> {
    await this.file.datasync();
  }
  isDurable(offset: number, length: number): boolean {
    return this.isReady(offset, length);
  }
  async pin(): Promise<void> {}
  async unpin(): Promise<void> {}
  isPinnedBy(): boolean {
    return false;
  }

  #units(offset: number, length: number): number[] {
    const units: number[] = [];
    const end = Math.min(offset + length, this.size);
    for (let unit = Math.floor(offset / this.unitBytes); unit * this.unitBytes < end; unit++) units.push(unit);
    return units;
  }
}
