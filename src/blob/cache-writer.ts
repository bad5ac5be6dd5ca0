import { SourceError } from "../base/errors.ts";
import type { File } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { BLOCK_BYTES } from "./blob-files.ts";
import type { RangeMap } from "./range-map.ts";

/*
 * Takes the bytes of one request as they arrive and puts them into the cache file. They are gathered in two buffers
 * that take turns: while one is being filled from the network, the thread pool writes the other. So the event loop
 * never waits for the disk, and a slow disk makes the sink's promise late, which slows the sender.
 */

/** Large enough that a write's trip through the pool costs little beside it. */
const STAGING_BYTES = 256 * 1024;

/** Kept for reuse; more are made only while more requests than that are under way. */
const SPARE_BUFFERS = 32;

/** Buffers recycled, because faulting in fresh memory costs more than filling it. */
export class StagingBuffers {
  readonly #spare: IoBuffer[] = [];

  take(): IoBuffer {
    return this.#spare.pop() ?? new IoBuffer(STAGING_BYTES);
  }

  give(buffer: IoBuffer): void {
    if (this.#spare.length < SPARE_BUFFERS) this.#spare.push(buffer);
  }
}

/** Bytes are compared with it to find those that need no space. */
const zeros = Buffer.alloc(STAGING_BYTES);

export class CacheWriter {
  readonly #file: File;
  readonly #map: RangeMap;
  readonly #buffers: StagingBuffers;
  readonly #expected: number;
  /** Where in the file the first byte of `#filling` goes. */
  #offset: number;
  #filling: IoBuffer;
  #filled = 0;
  #other: IoBuffer;
  #writing: Promise<void> | undefined;
  #received = 0;
  #writeError: unknown;

  /** @param options.length bytes that must come, no more and no fewer; they go to `options.offset` of the file on */
  constructor(options: { file: File; map: RangeMap; buffers: StagingBuffers; offset: number; length: number }) {
    this.#file = options.file;
    this.#map = options.map;
    this.#buffers = options.buffers;
    this.#offset = options.offset;
    this.#expected = options.length;
    this.#filling = options.buffers.take();
    this.#other = options.buffers.take();
  }

  /** Bytes taken so far. */
  get received(): number {
    return this.#received;
  }

  /** A `Sink`: the chunk is free again when it has returned, or its promise has resolved. */
  readonly sink = (chunk: Uint8Array): void | Promise<void> => {
    this.#received += chunk.length;
    if (this.#received > this.#expected) {
      throw new SourceError("source-protocol", `the source sent more than the ${this.#expected} bytes asked for`, {
        transient: false,
      });
    }
    const taken = this.#take(chunk, 0);
    if (taken < chunk.length || this.#filled === STAGING_BYTES) return this.#drain(chunk, taken);
  };

  /** Resolves when everything is in the cache file. @throws IoError, or SourceError when bytes are missing */
  async finish(): Promise<void> {
    if (this.#received !== this.#expected) {
      throw new SourceError("source-short", `the source sent ${this.#received} bytes instead of ${this.#expected}`, {
        transient: true,
      });
    }
    if (this.#offset + this.#filled === this.#map.size) this.#pad();
    await this.#flush();
    await this.#writing;
  }

  /** Behind the blob's end the file has zeros up to the next block, written: a hole need not be one after a crash. */
  #pad(): void {
    const end = Math.ceil(this.#filled / BLOCK_BYTES) * BLOCK_BYTES;
    this.#filling.bytes.fill(0, this.#filled, end);
    this.#filled = end;
  }

  /**
   * To be awaited at the end, whatever happened: no write is under way afterwards.
   * @returns the error that the cache file answered, if any
   */
  async close(): Promise<unknown> {
    await this.#writing?.catch(() => undefined);
    this.#buffers.give(this.#filling);
    this.#buffers.give(this.#other);
    return this.#writeError;
  }

  #take(chunk: Uint8Array, from: number): number {
    const count = Math.min(chunk.length - from, STAGING_BYTES - this.#filled);
    this.#filling.bytes.set(count === chunk.length ? chunk : chunk.subarray(from, from + count), this.#filled);
    this.#filled += count;
    return from + count;
  }

  async #drain(chunk: Uint8Array, taken: number): Promise<void> {
    let from = taken;
    for (;;) {
      if (this.#filled === STAGING_BYTES) await this.#flush();
      if (from === chunk.length) return;
      from = this.#take(chunk, from);
    }
  }

  /** Waits for the write before, starts one of what is gathered, and goes on with the other buffer. */
  async #flush(): Promise<void> {
    await this.#writing;
    if (this.#filled === 0) return;
    const full = this.#filling;
    this.#writing = this.#write(full, this.#filled, this.#offset).catch((error: unknown) => {
      this.#writeError = error;
      throw error;
    });
    this.#writing.catch(() => undefined); // whoever waits next gets it
    this.#offset += this.#filled;
    this.#filling = this.#other;
    this.#other = full;
    this.#filled = 0;
  }

  /** Leaves alone what is ready: readers rely on it, and these bytes are not proven good yet. */
  async #write(buffer: IoBuffer, length: number, offset: number): Promise<void> {
    for (let at = 0; at < length;) {
      let run = this.#map.readyRun(offset + at, length - at);
      if (offset + at + run === this.#map.size) run = length - at; // the padding goes with the last unit
      if (!this.#map.isReady(offset + at, run) && !(await this.#leaveOut(buffer, at, run, offset + at))) {
        await this.#file.write(buffer, at, run, offset + at);
      }
      at += run;
    }
  }

  /**
   * Empty parts of an image take no space. The range is punched and not just left, because a request that failed may
   * have put something there before; nobody reads what is not ready.
   * @returns false when the bytes are no zeros, or the file system can't punch
   */
  async #leaveOut(buffer: IoBuffer, at: number, length: number, offset: number): Promise<boolean> {
    if (buffer.bytes.compare(zeros, 0, length, at, at + length) !== 0) return false;
    return this.#file.punch(offset, length);
  }
}
