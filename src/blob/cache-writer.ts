import type { File } from "../base/file-system.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { BLOCK_BYTES } from "./blob-files.ts";
import type { RangeMap } from "./range-map.ts";
import { demandAll, demandNoMore, type Receiver } from "./receiver.ts";

/*
 * Takes the bytes of one request as they arrive and puts them into the cache file. Small chunks are gathered in two buffers
 * that take turns: while one is being filled from the network, the thread pool writes the other. Large ones are written from
 * where they are. Who waits for the first byte has no buffer yet. So the event loop never waits for the disk, and a slow disk
 * makes the sink's promise late, which slows the sender.
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

export class CacheWriter implements Receiver {
  readonly #file: File;
  readonly #map: RangeMap;
  readonly #buffers: StagingBuffers;
  readonly #expected: number;
  /** Where in the file the first byte of `#filling` goes. */
  #offset: number;
  #filling: IoBuffer | undefined;
  #filled = 0;
  #other: IoBuffer | undefined;
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
  }

  /** Bytes taken so far. */
  get received(): number {
    return this.#received;
  }

  /** A `Sink`: the chunk is free again when it has returned, or its promise has resolved. */
  readonly sink = (chunk: Uint8Array): void | Promise<void> => {
    this.#received += chunk.length;
    demandNoMore(this.#received, this.#expected);
    if (this.#isLarge(chunk, 0)) return this.#drain(chunk, 0);
    const taken = this.#take(chunk, 0);
    if (taken < chunk.length || this.#filled === STAGING_BYTES) return this.#drain(chunk, taken);
  };

  /** Whether the rest of a chunk is worth a write of its own. */
  #isLarge(chunk: Uint8Array, from: number): boolean {
    return this.#filled === 0 && chunk.length - from >= STAGING_BYTES;
  }

  async finish(): Promise<void> {
    demandAll(this.#received, this.#expected);
    if (this.#offset + this.#filled === this.#map.size) this.#pad();
    await this.#flush();
    await this.#writing;
  }

  /** Behind the blob's end the file has zeros up to the next block, written: a hole need not be one after a crash. */
  #pad(): void {
    if (this.#filling === undefined) return; // what came was whole blocks
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
    for (const buffer of [this.#filling, this.#other]) if (buffer !== undefined) this.#buffers.give(buffer);
    return this.#writeError;
  }

  #take(chunk: Uint8Array, from: number): number {
    this.#filling ??= this.#buffers.take();
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
      from = this.#isLarge(chunk, from) ? await this.#writeFrom(chunk, from) : this.#take(chunk, from);
    }
  }

  /** Writes whole blocks from where they are: what there is behind them goes through the buffers. @returns their end */
  async #writeFrom(chunk: Uint8Array, from: number): Promise<number> {
    const count = Math.floor((chunk.length - from) / BLOCK_BYTES) * BLOCK_BYTES;
    await this.#writing;
    this.#begin(new IoBuffer(Buffer.from(chunk.buffer, chunk.byteOffset + from, count)), count);
    await this.#writing;
    return from + count;
  }

  /** Waits for the write before, starts one of what is gathered, and goes on with the other buffer. */
  async #flush(): Promise<void> {
    await this.#writing;
    const full = this.#filling;
    if (full === undefined || this.#filled === 0) return;
    this.#begin(full, this.#filled);
    this.#filling = this.#other;
    this.#other = full;
    this.#filled = 0;
  }

  #begin(buffer: IoBuffer, length: number): void {
    this.#writing = this.#write(buffer, length, this.#offset).catch((error: unknown) => {
      this.#writeError = error;
      throw error;
    });
    this.#writing.catch(() => undefined); // whoever waits next gets it
    this.#offset += length;
  }

  /** Leaves alone what is ready: readers rely on it, and these bytes are not proven good yet. */
  async #write(buffer: IoBuffer, length: number, offset: number): Promise<void> {
    for (let at = 0; at < length;) {
      let run = this.#map.readyRun(offset + at, length - at);
      if (offset + at + run === this.#map.size) run = length - at; // the padding goes with the last unit
      if (!this.#map.isReady(offset + at, run)) await this.#writeRun(buffer, at, run, offset);
      at += run;
    }
  }

  /**
   * Empty parts of an image take no space. They are punched and not just left, because a request that failed may have put
   * something there before; nobody reads what is not ready.
   * @param offset of the buffer's first byte in the file
   */
  async #writeRun(buffer: IoBuffer, at: number, length: number, offset: number): Promise<void> {
    const end = at + length;
    let written = at;
    const writeUpTo = async (stop: number): Promise<void> => {
      if (stop > written) await this.#file.write(buffer, written, stop - written, offset + written);
      written = stop;
    };
    for (let piece = at, next; piece < end; piece = next) {
      next = Math.min(end, piece + STAGING_BYTES);
      if (buffer.bytes.compare(zeros, 0, next - piece, piece, next) !== 0) continue;
      await writeUpTo(piece);
      if (await this.#file.punch(offset + piece, next - piece)) written = next;
    }
    await writeUpTo(end);
  }
}
