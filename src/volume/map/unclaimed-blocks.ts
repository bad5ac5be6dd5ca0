import type { Layer } from "../layers/layer.ts";
import { chunkBlocks } from "./owner-map.ts";
import type { Pace } from "../pace.ts";

/** 32 blocks a word. */
const chunkWords = chunkBlocks / 32;
/** Chunks whose bits are allocated together. */
const slabChunks = 256;

/**
 * The blocks of one layer that have data in its file and that no map has claimed so far. Only chunks with data take
 * memory, 132 bytes each, whatever the size of the disk.
 *
 *     numbers   the chunks with data, ascending          4       7       9
 *     slabs     one bit per block of each of them        [32 w.] [32 w.] [32 w.]
 *
 * Every map shows its chunks in ascending order, so a cursor finds each in constant time.
 */
export class UnclaimedBlocks {
  #numbers = new Uint32Array(slabChunks);
  #count = 0;
  readonly #slabs: Uint32Array[] = [];
  #cursor = 0;

  private constructor() {}

  /** All blocks that have data in the file now (SEEK_DATA). */
  static async of(layer: Layer, pace: Pace): Promise<UnclaimedBlocks> {
    const found = new UnclaimedBlocks();
    for (let run = layer.nextData(0); run; run = layer.nextData(run.block + run.count)) {
      const end = run.block + run.count;
      for (let block = Math.max(0, run.block); block < end;) {
        const chunk = Math.floor(block / chunkBlocks);
        const stop = Math.min(end, (chunk + 1) * chunkBlocks);
        found.#add(chunk, block % chunkBlocks, stop - chunk * chunkBlocks);
        block = stop;
        if (pace.due) await pace.rest();
      }
    }
    return found;
  }

  #add(chunk: number, from: number, to: number): void {
    if (this.#count === 0 || this.#numbers[this.#count - 1] !== chunk) {
      if (this.#count === this.#numbers.length) {
        const larger = new Uint32Array(this.#count * 2);
        larger.set(this.#numbers);
        this.#numbers = larger;
      }
      if (this.#count % slabChunks === 0) this.#slabs.push(new Uint32Array(slabChunks * chunkWords));
      this.#numbers[this.#count++] = chunk;
    }
    this.#fill(this.#count - 1, from, to, true);
  }

  /** Bytes of memory. */
  get memory(): number {
    return this.#numbers.byteLength + this.#slabs.length * slabChunks * chunkWords * 4;
  }

  /** A map is about to show its chunks, from the first one on. */
  rewind(): void {
    this.#cursor = 0;
  }

  /** Somebody needs blocks [from, to) of a chunk, no earlier one than of the call before. */
  claim(chunk: number, from: number, to: number): void {
    if (this.#seek(chunk) === chunk) this.#fill(this.#cursor, from, to, false);
  }

  /** Somebody needs all blocks of `count` chunks. */
  claimChunks(chunk: number, count: number): void {
    const end = chunk + count;
    for (this.#seek(chunk); this.#cursor < this.#count && this.#numbers[this.#cursor] < end; this.#cursor++) {
      const at = (this.#cursor % slabChunks) * chunkWords;
      this.#slabs[Math.floor(this.#cursor / slabChunks)].fill(0, at, at + chunkWords);
    }
  }

  /** Moves to the first chunk with data at or behind `chunk`. @returns its number; undefined when there is none */
  #seek(chunk: number): number | undefined {
    while (this.#cursor < this.#count && this.#numbers[this.#cursor] < chunk) this.#cursor++;
    return this.#cursor < this.#count ? this.#numbers[this.#cursor] : undefined;
  }

  /** Sets or clears the bits of blocks [from, to) of the chunk with that index. */
  #fill(index: number, from: number, to: number, set: boolean): void {
    const words = this.#slabs[Math.floor(index / slabChunks)];
    const base = (index % slabChunks) * chunkWords;
    for (let at = from; at < to;) {
      const bit = at % 32;
      const count = Math.min(32 - bit, to - at);
      const mask = count === 32 ? 0xffffffff : ((1 << count) - 1) << bit;
      const word = base + Math.floor(at / 32);
      if (set) words[word] |= mask;
      else words[word] &= ~mask;
      at += count;
    }
  }

  /** What is left, in runs of at most `limit` blocks; undefined now and then, for the caller to rest. */
  *runs(limit: number): Generator<{ block: number; count: number } | undefined> {
    let block = 0;
    let count = 0;
    for (let index = 0; index < this.#count; index++) {
      const words = this.#slabs[Math.floor(index / slabChunks)];
      const base = (index % slabChunks) * chunkWords;
      const first = this.#numbers[index] * chunkBlocks;
      for (let at = 0; at < chunkBlocks; at++) {
        const word = words[base + (at >>> 5)];
        if (word === 0) at |= 31;
        else if (((word >>> (at & 31)) & 1) === 1) {
          if (count > 0 && (first + at !== block + count || count === limit)) {
            yield { block, count };
            count = 0;
          }
          if (count === 0) block = first + at;
          count++;
        }
      }
      if (index % slabChunks === 0) yield undefined;
    }
    if (count > 0) yield { block, count };
  }
}
