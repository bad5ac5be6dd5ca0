import type { Random } from "./random.ts";

export const pageBytes = 4096;
export const sectorBytes = 512;

/** A page's bytes, never changed in place; undefined is a hole. */
export type Page = Buffer | undefined;

interface Version {
  /** position in the order of everything that ever changed this disk */
  seq: number;
  page: Page;
}

interface PageState {
  /** what reads return */
  cached: Page;
  /**
   * What a power cut may leave. The first is on the disk for sure, each later one may have been written back already;
   * the last equals `cached`, unless the page is lost.
   */
  versions: Version[];
  /** Write-back failed: the page is clean, `cached` shows what the disk does not have. */
  lost: boolean;
}

/** How a power cut treats what no sync covered, per file. */
export type Survival = "nothing" | "everything" | "mixed";

/**
 * One file's content: what the page cache shows, and for each page all versions that may be on the disk. A write, punch
 * or truncation adds versions; a completed sync drops those older than what it covered; a power cut picks one each.
 */
export class SimInode {
  readonly number: number;
  readonly pages = new Map<number, PageState>();
  /** Pages with more than one version. */
  readonly dirty = new Set<number>();
  readonly lost = new Set<number>();
  /** Pages that are holes after a power cut though extents had been reserved for them (XFS, experiment E11). */
  readonly reserved = new Set<number>();
  /** Pages that had a durable extent once, or a hole punched into them: they show stale bytes in no mode. */
  readonly #hadExtent = new Set<number>();
  readSinceMount = false;
  /** chmod 0400; no sync makes it durable. */
  sealed = false;
  /** It was sealed, and may be opened for punching. */
  unsealed = false;
  /** errseq_t: the number of failed write-backs, and whether anyone has been told of the last. */
  errorCount = 0;
  errorSeen = true;
  errno = "EIO";
  /** Directory entries and open descriptors. */
  links = 0;
  opens = 0;
  allocatedPages = 0;
  #sizes: { seq: number; size: number }[] = [{ seq: 0, size: 0 }];

  constructor(number: number) {
    this.number = number;
  }

  get size(): number {
    return this.#sizes.at(-1)!.size;
  }

  read(target: Buffer, at: number, length: number, offset: number): number {
    const count = Math.max(0, Math.min(length, this.size - offset));
    for (let done = 0; done < count;) {
      const position = offset + done;
      const inPage = position % pageBytes;
      const part = Math.min(pageBytes - inPage, count - done);
      const page = this.pages.get((position - inPage) / pageBytes)?.cached;
      if (page) page.copy(target, at + done, inPage, inPage + part);
      else target.fill(0, at + done, at + done + part);
      done += part;
    }
    if (count > 0) this.readSinceMount = true;
    return count;
  }

  /** How many leading bytes of the write fit when only `freePages` more pages can be allocated. */
  fitting(offset: number, length: number, freePages: number): number {
    let free = freePages;
    for (let position = offset; position < offset + length;) {
      const number = Math.floor(position / pageBytes);
      if (!this.pages.get(number)?.cached && free-- <= 0) return position - offset;
      position = (number + 1) * pageBytes;
    }
    return length;
  }

  write(seq: number, source: Buffer, at: number, length: number, offset: number): void {
    for (let done = 0; done < length;) {
      const position = offset + done;
      const inPage = position % pageBytes;
      const part = Math.min(pageBytes - inPage, length - done);
      const number = (position - inPage) / pageBytes;
      const page = newPage();
      if (part < pageBytes) {
        const old = this.pages.get(number)?.cached;
        if (old) old.copy(page);
        else page.fill(0);
      }
      source.copy(page, inPage, at + done, at + done + part);
      this.#put(seq, number, page);
      done += part;
    }
    if (offset + length > this.size) this.#sizes.push({ seq, size: offset + length });
  }

  punch(seq: number, offset: number, length: number): void {
    const end = Math.min(offset + length, Math.ceil(this.size / pageBytes) * pageBytes);
    const touched = [...this.pages.keys()].filter(
      (number) => number * pageBytes < end && (number + 1) * pageBytes > offset,
    );
    for (const number of touched) {
      const old = this.pages.get(number)!.cached;
      if (!old) continue;
      const from = Math.max(0, offset - number * pageBytes);
      const to = Math.min(pageBytes, end - number * pageBytes);
      this.#hadExtent.add(number);
      if (from === 0 && to === pageBytes) this.#put(seq, number, undefined);
      else this.#put(seq, number, Buffer.from(old).fill(0, from, to));
    }
  }

  truncate(seq: number, size: number): void {
    if (size < this.size) this.punch(seq, size, Math.ceil(this.size / pageBytes) * pageBytes - size);
    if (size !== this.size) this.#sizes.push({ seq, size });
  }

  /** Everything up to `seq` is on the disk: what an fdatasync that started there has achieved when it returns. */
  makeDurable(seq: number): void {
    for (const number of this.dirty) this.#dropBefore(number, seq);
    let covered = 0;
    while (covered + 1 < this.#sizes.length && this.#sizes[covered + 1].seq <= seq) covered++;
    this.#sizes.splice(0, covered);
  }

  /**
   * Write-back of some pages fails (experiment E3): they stay as they are in the page cache, clean, and the disk keeps
   * an older version. The others are written. Pages changed after `seq` are dirty again.
   */
  failWriteback(seq: number, random: Random, errno: string): void {
    this.errorCount++;
    this.errorSeen = false;
    this.errno = errno;
    const all = random.chance(0.5);
    for (const number of this.dirty) {
      const state = this.pages.get(number)!;
      const covered = state.versions.filter((version) => version.seq <= seq).length;
      // a hole that could not be written back does not exist: punches are the journal's business
      if (covered < 2 || !state.versions[covered - 1].page || !(all || random.chance(0.5))) continue;
      const kept = state.versions[random.below(covered - 1)];
      state.versions = [kept, ...state.versions.slice(covered)];
      if (state.versions.length === 1) {
        this.dirty.delete(number);
        state.lost = true;
        this.lost.add(number);
      }
    }
    this.makeDurable(seq);
  }

  /** Clean pages leave the page cache: lost ones show the disk's content from now on. @returns whether all were clean */
  evict(): boolean {
    for (const number of this.lost) {
      const state = this.pages.get(number)!;
      state.lost = false;
      this.#show(state, state.versions[0].page);
      this.#forgetIfHole(number, state);
    }
    this.lost.clear();
    this.readSinceMount = false;
    return this.dirty.size === 0;
  }

  isData(number: number, claimsReserved: boolean): boolean {
    const state = this.pages.get(number);
    if (claimsReserved && this.readSinceMount && this.reserved.has(number)) return true;
    if (!state) return false;
    return state.lost ? state.versions[0].page !== undefined : state.cached !== undefined;
  }

  /**
   * The page cache is gone; the disk has, for each page, one of its versions. Pages that were overwritten in place may
   * be torn between sectors; a page that gets its first extent is there as a whole or not at all.
   * @param stale what a never-synced extent may hold instead (ext4 data=writeback); undefined: nothing else
   */
  cut(random: Random, survival: Survival, stale: (() => Buffer) | undefined): void {
    this.evict();
    this.reserved.clear();
    if (this.sealed && random.chance(0.5)) this.sealed = false;
    this.unsealed = false;
    for (const number of this.dirty) {
      const state = this.pages.get(number)!;
      let page = pickVersion(state.versions, random, survival).page;
      if (survival === "mixed" && page && random.chance(0.4)) {
        const other = random.pick(state.versions).page;
        if (other) page = tear(page, other, random);
      }
      if (stale && state.versions[0].page === undefined && !this.#hadExtent.has(number) && random.chance(0.3)) {
        page = stale();
      }
      if (page) this.#hadExtent.add(number);
      if (!page) this.reserved.add(number);
      state.versions = [{ seq: 0, page }];
      this.#show(state, page);
      this.#forgetIfHole(number, state);
    }
    this.dirty.clear();
    const size = this.#pickSize(random, survival);
    this.#sizes = [{ seq: 0, size }];
    for (const [number, state] of this.pages) {
      const end = size - number * pageBytes;
      if (end >= pageBytes || !state.cached) continue;
      const page = end <= 0 ? undefined : Buffer.from(state.cached).fill(0, end);
      state.versions = [{ seq: 0, page }];
      this.#show(state, page);
      this.#forgetIfHole(number, state);
    }
    this.errorCount = 0;
    this.errorSeen = true;
    this.readSinceMount = false;
  }

  #pickSize(random: Random, survival: Survival): number {
    const sizes = this.#sizes;
    if (survival === "nothing") return sizes[0].size;
    const index = survival === "everything" ? sizes.length - 1 : random.below(sizes.length);
    const size = sizes[index].size;
    const next = sizes[index + 1]?.size;
    if (next === undefined || next <= size || random.chance(0.5)) return size;
    // write-back had come to some page in the middle of this append
    const first = Math.floor(size / pageBytes) + 1;
    const last = Math.ceil(next / pageBytes) - 1;
    return last < first ? size : random.between(first, last) * pageBytes;
  }

  #put(seq: number, number: number, page: Page): void {
    let state = this.pages.get(number);
    if (!state) {
      state = { cached: undefined, versions: [{ seq: 0, page: undefined }], lost: false };
      this.pages.set(number, state);
    }
    state.versions.push({ seq, page });
    this.dirty.add(number);
    if (state.lost) {
      state.lost = false;
      this.lost.delete(number);
    }
    this.#show(state, page);
  }

  #show(state: PageState, page: Page): void {
    this.allocatedPages += (page ? 1 : 0) - (state.cached ? 1 : 0);
    state.cached = page;
  }

  #dropBefore(number: number, seq: number): void {
    const state = this.pages.get(number)!;
    let covered = 0;
    while (covered + 1 < state.versions.length && state.versions[covered + 1].seq <= seq) covered++;
    state.versions.splice(0, covered);
    if (state.versions[0].page) this.#hadExtent.add(number);
    if (state.versions.length > 1) return;
    this.dirty.delete(number);
    this.#forgetIfHole(number, state);
  }

  #forgetIfHole(number: number, state: PageState): void {
    if (!state.cached && state.versions.length === 1 && !state.versions[0].page) this.pages.delete(number);
  }
}

let slab = Buffer.alloc(0);

/** Undefined bytes for a page; pages are cut from slabs, because allocating each would take most of a run's time. */
function newPage(): Buffer {
  if (slab.length < pageBytes) slab = Buffer.allocUnsafeSlow(64 * pageBytes);
  const page = slab.subarray(0, pageBytes);
  slab = slab.subarray(pageBytes);
  return page;
}

function pickVersion(versions: Version[], random: Random, survival: Survival): Version {
  if (survival === "nothing") return versions[0];
  if (survival === "everything") return versions.at(-1)!;
  if (random.chance(0.4)) return versions[0];
  return random.chance(0.6) ? versions.at(-1)! : random.pick(versions);
}

function tear(one: Buffer, other: Buffer, random: Random): Buffer {
  const torn = Buffer.from(one);
  for (let at = 0; at < pageBytes; at += sectorBytes) {
    if (random.chance(0.5)) other.copy(torn, at, at, at + sectorBytes);
  }
  return torn;
}
