import type { Clock } from "../base/clock.ts";
import { IoError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import type { Range, RangeLock } from "../base/range-lock.ts";
import type { Journal } from "./log/journal.ts";
import type { Head } from "./layers/head.ts";
import type { VolumeLimits } from "./limits.ts";
import { RecordType } from "./log/log-record.ts";
import { blockBytes, chunkBlocks, type OwnerMap, zeroOwner } from "./map/owner-map.ts";
import type { OwnerReader } from "./owner-reader.ts";
import type { Strays } from "./layers/strays.ts";

/*
 * Writes, trims and zeroes. Each goes through these steps, and a crash between any two is harmless (docs/DURABILITY.md):
 *
 *     fetch what partial blocks need -> range lock -> whole blocks to the head -> record appended -> map changed ->
 *     lock released -> answered
 *
 * The synchronous form does all of it in one turn of the event loop and needs no lock of its own; it only steps aside
 * where somebody holds one. Nothing waits for the network, a flush or a client while it holds a range (durability rule
 * 21), and whatever waited for a range looks again at what it found before (rule 15).
 */

const zeros = new IoBuffer(1024 * 1024);
zeros.bytes.fill(0);

/** So many writes go through the pool after one on the calling thread was slow. */
const slowWritesAfterOne = 32;
/**
 * A larger write copies for so long that everybody else on the event loop would notice; in the thread pool several are
 * copied at once.
 */
const largestOnLoop = 256 * 1024;

export class OwnerWriter {
  readonly #clock: Clock;
  readonly #limits: VolumeLimits;
  readonly #size: () => number;
  readonly #map: OwnerMap;
  readonly #reader: OwnerReader;
  readonly #head: Head;
  readonly #journal: Journal;
  readonly #checkWritable: () => void;
  readonly #locks: RangeLock;
  readonly #strays: Strays;
  #slowWrites = 0;
  #flushing = false;

  constructor(options: {
    clock: Clock;
    limits: VolumeLimits;
    /** bytes of the volume, now */
    size: () => number;
    map: OwnerMap;
    reader: OwnerReader;
    head: Head;
    journal: Journal;
    locks: RangeLock;
    strays: Strays;
    /** throws when the volume takes no writes (any more) */
    checkWritable: () => void;
  }) {
    this.#clock = options.clock;
    this.#limits = options.limits;
    this.#size = options.size;
    this.#map = options.map;
    this.#reader = options.reader;
    this.#head = options.head;
    this.#journal = options.journal;
    this.#locks = options.locks;
    this.#strays = options.strays;
    this.#checkWritable = options.checkWritable;
  }

  /** A few whole blocks, on the calling thread. @returns false when it has to be done by `write` */
  tryWrite(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    if (length > largestOnLoop || offset % blockBytes !== 0 || length % blockBytes !== 0) return false;
    const block = offset / blockBytes;
    const count = length / blockBytes;
    if (!this.#locks.idle && this.#locks.overlaps(block, block + count)) return false;
    if (this.#slowWrites > 0) {
      this.#slowWrites--;
      return false;
    }
    const { layer, owner } = this.#head;
    if (layer.unsyncedBytes >= this.#limits.dirtyBytes) {
      this.#flushBeside();
      if (layer.unsyncedBytes >= this.#limits.dirtyBytes * 2) return false;
    }
    const owned = this.#map.ownsAll(owner, block, count);
    if (!owned) {
      if (this.#journal.full) return false;
      this.#journal.reserve();
    }
    const started = this.#clock.now();
    layer.noteWrite(length);
    try {
      layer.file.writeNow(buffer, at, length, layer.position(offset));
      if (!owned) this.#claim(block, count);
    } catch (error) {
      if (!owned) this.#strays.abandoned(block, block + count);
      throw error;
    }
    if (this.#clock.now() - started > this.#limits.slowWriteMs) this.#slowWrites = slowWritesAfterOne;
    return true;
  }

  /** Too much is unsynced: the kernel would soon put writers to sleep. */
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
    this.#journal.append(RecordType.set, this.#head.owner, block, count, false);
    this.#map.set(block, count, this.#head.owner);
  }

  async write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    await this.#exclusively(offset, offset + length, () => this.#writeLocked(offset, length, buffer, at));
  }

  /** The whole blocks of the range; its unaligned edges are left alone. */
  async trim(offset: number, length: number): Promise<void> {
    const { first, last } = this.#wholeBlocks(offset, length);
    if (first >= last) return;
    await this.#exclusively(first * blockBytes, last * blockBytes, () => this.#trimLocked(first, last));
  }

  async zero(offset: number, length: number, options: { allocate: boolean; fast: boolean }): Promise<void> {
    if (options.allocate) {
      if (options.fast) throw new IoError("ENOTSUP", "zeroing with allocation is no faster than writing");
      await this.#zeroByWriting(offset, length);
      return;
    }
    const { first, last } = this.#wholeBlocks(offset, length);
    if (first >= last) {
      await this.write(offset, length, zeros, 0);
      return;
    }
    const end = Math.max(offset + length, last * blockBytes);
    await this.#exclusively(offset, end, async () => {
      const before = first * blockBytes - offset;
      const behind = end - last * blockBytes;
      if (before > 0) await this.#writeLocked(offset, before, zeros, 0);
      if (behind > 0) await this.#writeLocked(end - behind, behind, zeros, 0);
      await this.#trimLocked(first, last);
    });
  }

  async #zeroByWriting(offset: number, length: number): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end;) {
      const piece = Math.min(end - at, zeros.length - (at % blockBytes));
      await this.write(at, piece, zeros, 0);
      at += piece;
    }
  }

  /** The blocks that lie wholly inside a range; the last block of the volume counts as whole up to the volume's end. */
  #wholeBlocks(offset: number, length: number): { first: number; last: number } {
    const end = offset + length;
    const last = end === this.#size() ? this.#map.blocks : Math.floor(end / blockBytes);
    return { first: Math.ceil(offset / blockBytes), last };
  }

  /** Runs `work` while it alone may change the blocks of [offset, end), all partial ones among them being local. */
  async #exclusively(offset: number, end: number, work: () => Promise<void>): Promise<void> {
    const range = await this.#acquire(offset, end);
    try {
      this.#checkWritable();
      await work();
    } finally {
      this.#locks.release(range);
    }
  }

  async #acquire(offset: number, end: number): Promise<Range> {
    const edges = partialBlocks(offset, end);
    for (;;) {
      for (const edge of edges) await this.#reader.fetch(edge, blockBytes);
      if (this.#journal.full) await this.#journal.makeRoom();
      const range = await this.#locks.acquire(Math.floor(offset / blockBytes), Math.ceil(end / blockBytes));
      if (edges.every((edge) => this.#reader.ready(edge, blockBytes))) return range;
      this.#locks.release(range); // while this waited, the block was lost from the cache (rule 15)
    }
  }

  async #writeLocked(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    const end = offset + length;
    const firstWhole = Math.ceil(offset / blockBytes) * blockBytes;
    const lastWhole = Math.max(firstWhole, Math.floor(end / blockBytes) * blockBytes);
    if (offset < firstWhole) await this.#writePartial(offset, Math.min(end, firstWhole), buffer, at);
    if (firstWhole < lastWhole) {
      await this.#writeWhole(firstWhole, lastWhole - firstWhole, buffer, at + firstWhole - offset);
    }
    if (lastWhole < end) await this.#writePartial(lastWhole, end, buffer, at + lastWhole - offset);
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
    const { layer, owner } = this.#head; // stays the head: a snapshot waits for the range lock
    const owned = this.#map.ownsAll(owner, block, count);
    if (!owned) this.#journal.reserve();
    if (layer.unsyncedBytes >= this.#limits.dirtyBytes) this.#flushBeside();
    layer.noteWrite(length);
    try {
      await layer.file.write(buffer, at, length, layer.position(offset));
      layer.noteWrite(0); // a sync that ran meanwhile need not have covered these bytes
      if (!owned) this.#claim(block, count);
    } catch (error) {
      layer.noteWrite(0);
      if (!owned) this.#strays.abandoned(block, block + count);
      throw error;
    }
  }

  /**
   * Blocks [first, last) read as zeros; runs under the range lock for all of them (rules 5, 30). Those of the head are
   * punched at once, since zeros are the trim's result (rule 4), and the head counts as written: the next commit makes
   * the record durable only after the holes.
   */
  async #trimLocked(first: number, last: number): Promise<void> {
    const { layer, owner } = this.#head;
    const inHead = this.#map.next(owner, first, last) >= 0;
    const sliceBlocks = this.#limits.sliceChunks * chunkBlocks;
    for (let at = first; at < last;) {
      const count = Math.min(sliceBlocks - (at % sliceBlocks), last - at);
      if (!this.#map.ownsAll(zeroOwner, at, count)) {
        this.#journal.append(RecordType.set, zeroOwner, at, count, true);
        this.#map.set(at, count, zeroOwner);
      }
      at += count;
      if (at < last) await this.#clock.sleep(0);
    }
    // Not every file system can punch: the blocks read as zeros by the map, only their space stays.
    if (inHead) await layer.punch(first, last - first);
  }
}

/** Offsets of the blocks that [offset, end) covers in part, two at most. */
function partialBlocks(offset: number, end: number): number[] {
  const head = offset - (offset % blockBytes);
  const tail = end - (end % blockBytes);
  const blocks: number[] = [];
  if (head !== offset) blocks.push(head);
  if (tail !== end && (tail !== head || head === offset)) blocks.push(tail);
  return blocks;
}
