/*
 * The owner map: for each 4096-byte block of a volume the small id of the layer or blob that holds it; 0 = zeros.
 *
 * One 32-bit entry per chunk of 1024 blocks (4 MiB):
 *
 *     entry <  0x10000   every block of the chunk has this owner
 *     entry >= 0x10000   the chunk is mixed: slot (entry - 0x10000) of the pool holds its 1024 owners
 *
 * So a lookup is O(1), trim of terabytes is O(chunks), and a fresh 1 TiB map takes 1 MiB. Slots are counted: a frozen
 * copy shares them, and whoever writes to a shared slot first takes a copy (copy-on-write).
 *
 * The blocks that layers hold are counted as they change, per slot and in all, so that the sum costs nothing to ask for and
 * giving away a mixed chunk stays O(1). Whoever is no layer must be named (`noteBlob`) before it gets its first block.
 */

export const blockBytes = 4096;
export const chunkBlocks = 1024;
/** Reads as zeros, takes no space. */
export const zeroOwner = 0;
/** Ids are 1 … maxOwner; 0xffff is reserved (durability rule 18). */
export const maxOwner = 0xfffe;

const firstSlot = 0x10000;
const slabSlots = 256;

/** Where the owners of mixed chunks live: slabs of 256 x 1024 owners, recycled through a free list. */
class MixedPool {
  readonly #slabs: Uint16Array[] = [];
  /** The same memory, two owners at a time. */
  readonly #pairs: Int32Array[] = [];
  #references = new Uint32Array(slabSlots);
  /** Blocks of layers, of those inside the volume, in each slot. */
  #written = new Uint16Array(slabSlots);
  readonly #blobs: number[] = [];
  readonly #free: number[] = [];

  noteBlob(owner: number): void {
    this.#blobs.push(owner);
  }

  /** Whether the owner is a layer. */
  isLayer(owner: number): boolean {
    return owner !== zeroOwner && !this.#blobs.includes(owner);
  }

  /** Blocks of layers among [from, to) of a slot. */
  countWritten(slot: number, from: number, to: number): number {
    const slab = this.slab(slot);
    const base = (slot % slabSlots) * chunkBlocks;
    let count = 0;
    let last = zeroOwner;
    let written = false;
    for (let i = base + from; i < base + to; i++) {
      if (slab[i] !== last) written = this.isLayer((last = slab[i]));
      if (written) count++;
    }
    return count;
  }

  writtenIn(slot: number): number {
    return this.#written[slot];
  }

  setWrittenIn(slot: number, blocks: number): void {
    this.#written[slot] = blocks;
  }

  /** A slot with one reference, filled with `owner`. @param length blocks of the chunk that are inside the volume */
  allocate(owner: number, length: number): number {
    const slot = this.#free.pop() ?? this.#grow();
    this.#references[slot] = 1;
    this.#written[slot] = this.isLayer(owner) ? length : 0;
    const base = (slot % slabSlots) * chunkBlocks;
    this.slab(slot).fill(owner, base, base + chunkBlocks);
    return slot;
  }

  #grow(): number {
    const first = this.#slabs.length * slabSlots;
    const slab = new Uint16Array(slabSlots * chunkBlocks);
    this.#slabs.push(slab);
    this.#pairs.push(new Int32Array(slab.buffer));
    if (this.#references.length < first + slabSlots) {
      const larger = new Uint32Array(Math.max(first + slabSlots, this.#references.length * 2));
      larger.set(this.#references);
      this.#references = larger;
      const counts = new Uint16Array(larger.length);
      counts.set(this.#written);
      this.#written = counts;
    }
    for (let slot = first + slabSlots - 1; slot > first; slot--) this.#free.push(slot);
    return first;
  }

  slab(slot: number): Uint16Array {
    return this.#slabs[(slot / slabSlots) | 0];
  }

  pairs(slot: number): Int32Array {
    return this.#pairs[(slot / slabSlots) | 0];
  }

  share(slot: number): void {
    this.#references[slot]++;
  }

  release(slot: number): void {
    if (--this.#references[slot] === 0) this.#free.push(slot);
  }

  /** A slot with the same owners that only the caller has; gives up the caller's reference to `slot`. */
  own(slot: number): number {
    if (this.#references[slot] === 1) return slot;
    const copy = this.allocate(zeroOwner, 0);
    this.#written[copy] = this.#written[slot];
    const from = (slot % slabSlots) * chunkBlocks;
    this.slab(copy).set(this.slab(slot).subarray(from, from + chunkBlocks), (copy % slabSlots) * chunkBlocks);
    this.release(slot);
    return copy;
  }
}

export class OwnerMap {
  #blocks: number;
  readonly #pool: MixedPool;
  #entries: Uint32Array;
  #written: number;

  constructor(blocks: number, shared?: { pool: MixedPool; entries: Uint32Array; written: number }) {
    this.#blocks = blocks;
    this.#written = shared?.written ?? 0;
    this.#pool = shared?.pool ?? new MixedPool();
    this.#entries = shared?.entries ?? new Uint32Array(Math.ceil(blocks / chunkBlocks));
  }

  /** Blocks of the volume; the last chunk may be short. */
  get blocks(): number {
    return this.#blocks;
  }

  get chunks(): number {
    return this.#entries.length;
  }

  /** Blocks that layers hold: all that belong to somebody, without those of blobs. */
  get writtenBlocks(): number {
    return this.#written;
  }

  /** `owner`, which no block has yet, is a blob: its blocks do not count as written. */
  noteBlob(owner: number): void {
    this.#pool.noteBlob(owner);
  }

  /** Blocks of a chunk that are inside the volume. */
  #lengthOf(chunk: number): number {
    return Math.min(chunkBlocks, this.#blocks - chunk * chunkBlocks);
  }

  /** Makes the map larger; what is new belongs to nobody. */
  grow(blocks: number): void {
    if (blocks < this.#blocks) throw new RangeError(`a map of ${this.#blocks} blocks can't shrink to ${blocks}`);
    if (blocks === this.#blocks) return;
    const end = this.#blocks;
    const lastChunk = Math.ceil(end / chunkBlocks) * chunkBlocks;
    const entries = new Uint32Array(Math.ceil(blocks / chunkBlocks));
    entries.set(this.#entries);
    this.#entries = entries;
    this.#blocks = blocks;
    // The short last chunk counted as a whole one; what its rest holds was never looked at.
    const rest = Math.min(lastChunk, blocks) - end;
    if (rest <= 0) return;
    this.#countBehind(end, rest);
    this.set(end, rest, zeroOwner);
  }

  /** Blocks that were behind the end until now are counted, too. */
  #countBehind(start: number, count: number): void {
    const chunk = (start / chunkBlocks) | 0;
    const entry = this.#entries[chunk];
    if (entry < firstSlot) {
      if (this.#pool.isLayer(entry)) this.#written += count;
      return;
    }
    const slot = this.#pool.own(entry - firstSlot);
    this.#entries[chunk] = slot + firstSlot;
    const from = start - chunk * chunkBlocks;
    const found = this.#pool.countWritten(slot, from, from + count);
    this.#pool.setWrittenIn(slot, this.#pool.writtenIn(slot) + found);
    this.#written += found;
  }

  ownerOf(block: number): number {
    const entry = this.#entries[(block / chunkBlocks) | 0];
    if (entry < firstSlot) return entry;
    const slot = entry - firstSlot;
    return this.#pool.slab(slot)[(slot % slabSlots) * chunkBlocks + (block % chunkBlocks)];
  }

  /** How many blocks from `block` on, at most `limit`, have the same owner as `block`; at least 1. */
  runLength(block: number, limit: number): number {
    const end = Math.min(block + limit, this.#blocks);
    const owner = this.ownerOf(block);
    let at = block + 1;
    while (at < end) {
      const chunk = (at / chunkBlocks) | 0;
      const entry = this.#entries[chunk];
      const chunkEnd = Math.min((chunk + 1) * chunkBlocks, end);
      if (entry < firstSlot) {
        if (entry !== owner) return at - block;
        at = chunkEnd;
        continue;
      }
      const slot = entry - firstSlot;
      const slab = this.#pool.slab(slot);
      const base = (slot % slabSlots) * chunkBlocks - chunk * chunkBlocks;
      while (at < chunkEnd) {
        if (slab[base + at] !== owner) return at - block;
        at++;
      }
    }
    return end - block;
  }

  /** Gives [start, start + count) to `owner`. */
  set(start: number, count: number, owner: number): void {
    const end = start + count;
    let at = start;
    while (at < end) {
      const chunk = (at / chunkBlocks) | 0;
      const chunkStart = chunk * chunkBlocks;
      const chunkEnd = Math.min(chunkStart + chunkBlocks, this.#blocks);
      const stop = Math.min(end, chunkEnd);
      if (at === chunkStart && stop === chunkEnd) this.setChunk(chunk, owner);
      else this.#setPart(chunk, at - chunkStart, stop - chunkStart, chunkEnd - chunkStart, owner);
      at = stop;
    }
  }

  /** Gives whole chunks to `owner`. */
  setChunks(chunk: number, count: number, owner: number): void {
    for (let end = chunk + count; chunk < end; chunk++) this.setChunk(chunk, owner);
  }

  /** Gives a whole chunk to `owner`. */
  setChunk(chunk: number, owner: number): void {
    const entry = this.#entries[chunk];
    if (entry === owner) return; // memory that was never written to takes no space: a fresh map stays small
    const length = this.#lengthOf(chunk);
    if (entry >= firstSlot) {
      this.#written -= this.#pool.writtenIn(entry - firstSlot);
      this.#pool.release(entry - firstSlot);
    } else if (this.#pool.isLayer(entry)) this.#written -= length;
    if (this.#pool.isLayer(owner)) this.#written += length;
    this.#entries[chunk] = owner;
  }

  #setPart(chunk: number, from: number, to: number, length: number, owner: number): void {
    const entry = this.#entries[chunk];
    if (entry === owner) return;
    const slot = entry < firstSlot ? this.#pool.allocate(entry, length) : this.#pool.own(entry - firstSlot);
    const slab = this.#pool.slab(slot);
    const base = (slot % slabSlots) * chunkBlocks;
    const change = (this.#pool.isLayer(owner) ? to - from : 0) - this.#pool.countWritten(slot, from, to);
    this.#pool.setWrittenIn(slot, this.#pool.writtenIn(slot) + change);
    this.#written += change;
    slab.fill(owner, base + from, base + to);
    this.#entries[chunk] = slot + firstSlot;
    // A chunk that was filled piece by piece becomes uniform again when its last or first block is written.
    if (to !== length && from !== 0) return;
    for (let i = base; i < base + length; i++) if (slab[i] !== owner) return;
    this.setChunk(chunk, owner);
  }

  /** The chunk's only owner, or -1 when it is mixed. */
  uniformOwner(chunk: number): number {
    const entry = this.#entries[chunk];
    return entry < firstSlot ? entry : -1;
  }

  /** The 1024 owners of a mixed chunk: a view that is valid until the map changes. */
  mixedOwners(chunk: number): Uint16Array {
    const slot = this.#entries[chunk] - firstSlot;
    const base = (slot % slabSlots) * chunkBlocks;
    return this.#pool.slab(slot).subarray(base, base + chunkBlocks);
  }

  /** In a mixed chunk: where the run of blocks that begins with `from` ends, `to` at most. For whole maps: compares fast. */
  mixedRunEnd(chunk: number, from: number, to: number): number {
    const slot = this.#entries[chunk] - firstSlot;
    const slab = this.#pool.slab(slot);
    const base = (slot % slabSlots) * chunkBlocks;
    const owner = slab[base + from];
    const end = base + to;
    let at = base + from + 1;
    if ((at & 1) === 1 && at < end && slab[at] === owner) at++;
    if ((at & 1) === 0) {
      const pairs = this.#pool.pairs(slot);
      const wanted = owner | (owner << 16);
      const last = (end >> 1) - 4;
      let pair = at >> 1;
      while (
        pair <= last &&
        ((pairs[pair] ^ wanted) |
          (pairs[pair + 1] ^ wanted) |
          (pairs[pair + 2] ^ wanted) |
          (pairs[pair + 3] ^ wanted)) ===
          0
      ) {
        pair += 4;
      }
      at = pair * 2;
    }
    while (at < end && slab[at] === owner) at++;
    return at - base;
  }

  /** Sets all owners of a chunk, from 1024 values; blocks beyond the volume's end are ignored. */
  setMixedChunk(chunk: number, owners: Uint16Array): void {
    const length = this.#lengthOf(chunk);
    const first = owners[0];
    let same = 1;
    while (same < length && owners[same] === first) same++;
    if (same === length) {
      this.setChunk(chunk, first);
      return;
    }
    const entry = this.#entries[chunk];
    if (entry >= firstSlot) this.#written -= this.#pool.writtenIn(entry - firstSlot);
    else if (this.#pool.isLayer(entry)) this.#written -= length;
    const slot = entry < firstSlot ? this.#pool.allocate(zeroOwner, 0) : this.#pool.own(entry - firstSlot);
    this.#pool.slab(slot).set(owners, (slot % slabSlots) * chunkBlocks);
    const written = this.#pool.countWritten(slot, 0, length);
    this.#pool.setWrittenIn(slot, written);
    this.#written += written;
    this.#entries[chunk] = slot + firstSlot;
  }

  /** First block in [from, to) that `owner` holds, or -1. O(chunks) over uniform parts. */
  next(owner: number, from: number, to: number): number {
    let at = from;
    while (at < to) {
      if (this.ownerOf(at) === owner) return at;
      at += this.runLength(at, to - at);
    }
    return -1;
  }

  /** Whether every block of [from, from + count) belongs to `owner`. */
  ownsAll(owner: number, from: number, count: number): boolean {
    return this.ownerOf(from) === owner && this.runLength(from, count) === count;
  }

  /** Blocks that `owner` holds. O(chunks) + O(1024 x mixed chunks). */
  count(owner: number): number {
    let total = 0;
    for (let chunk = 0; chunk < this.chunks; chunk++) {
      const length = Math.min(chunkBlocks, this.#blocks - chunk * chunkBlocks);
      const uniform = this.uniformOwner(chunk);
      if (uniform === owner) total += length;
      else if (uniform < 0) {
        const owners = this.mixedOwners(chunk);
        for (let i = 0; i < length; i++) if (owners[i] === owner) total++;
      }
    }
    return total;
  }

  /** A copy as of now: the table is copied, mixed chunks are shared until somebody writes. */
  freeze(): OwnerMap {
    const entries = this.#entries.slice();
    // By index: an iterator would allocate an object per chunk.
    for (let chunk = 0; chunk < entries.length; chunk++) {
      const entry = entries[chunk];
      if (entry >= firstSlot) this.#pool.share(entry - firstSlot);
    }
    return new OwnerMap(this.#blocks, { pool: this.#pool, entries, written: this.#written });
  }

  /** Gives up the table, at once, and the shared chunks of a frozen copy; the map must not be used afterwards. */
  release(): void {
    for (let chunk = 0; chunk < this.chunks; chunk++) {
      const entry = this.#entries[chunk];
      if (entry >= firstSlot) this.#pool.release(entry - firstSlot);
    }
    (this.#entries.buffer as ArrayBuffer).transfer(0); // the collector would take its time
  }
}
