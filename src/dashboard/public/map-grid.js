/*
 * A volume's map, small enough to be drawn: the disk is cut into cells of equal size (a power of two of bytes), and each
 * cell knows how many of its bytes are of which sort. A sort is where bytes are, and for bytes that are somewhere also in
 * which layer or blob.
 */

/** @typedef {"zero" | "remote" | "local" | "written"} Kind */
/** @typedef {{ offset: number, length: number, kind: Kind, owner: string | null }} Run */
/** @typedef {{ kind: Kind, owner: string | null, bytes: number }} Sort with the amount over all cells */

export const blockBytes = 4096;

/** Owners beyond so many share the last one's place. */
const maxSorts = 24;

export class MapGrid {
  /**
   * @param {number} size of the disk, bytes
   * @param {number} maxCells
   */
  constructor(size, maxCells) {
    this.size = size;
    let cellBytes = blockBytes;
    while (cellBytes * maxCells < size) cellBytes *= 2;
    this.cellBytes = cellBytes;
    this.count = Math.max(1, Math.ceil(size / cellBytes));
    /** @type {Sort[]} */
    this.sorts = [];
    /** @type {Float64Array[]} bytes per cell, for each sort */
    this.amounts = [];
    /** Whether amounts were scaled up from samples. */
    this.sampled = false;
    /** @type {Map<string, number>} */
    this.index = new Map();
  }

  /** @param {Run} run */
  add({ offset, length, kind, owner }) {
    const sort = this.sortOf(kind, owner);
    this.sorts[sort].bytes += length;
    const amounts = this.amounts[sort];
    const end = offset + length;
    const last = Math.floor((end - 1) / this.cellBytes);
    for (let cell = Math.floor(offset / this.cellBytes); cell <= last; cell++) {
      const from = Math.max(offset, cell * this.cellBytes);
      amounts[cell] += Math.min(end, (cell + 1) * this.cellBytes) - from;
    }
  }

  /**
   * @param {Kind} kind
   * @param {string | null} owner
   */
  sortOf(kind, owner) {
    const key = `${kind} ${owner ?? ""}`;
    let sort = this.index.get(key);
    if (sort !== undefined) return sort;
    if (this.sorts.length >= maxSorts) {
      const same = this.sorts.findLastIndex((known) => known.kind === kind);
      if (same >= 0) return same;
    }
    sort = this.sorts.push({ kind, owner, bytes: 0 }) - 1;
    this.amounts.push(new Float64Array(this.count));
    this.index.set(key, sort);
    return sort;
  }

  /** @param {number} cell */
  bytesIn(cell) {
    return Math.min(this.cellBytes, this.size - cell * this.cellBytes);
  }

  /**
   * What a cell holds, the largest first.
   * @param {number} cell
   * @returns {{ sort: Sort, bytes: number }[]}
   */
  describe(cell) {
    return this.sorts
      .map((sort, index) => ({ sort, bytes: this.amounts[index][cell] }))
      .filter(({ bytes }) => bytes > 0)
      .sort((a, b) => b.bytes - a.bytes);
  }

  /** Bytes of a kind over the whole disk. @param {Kind} kind */
  total(kind) {
    return this.sorts.reduce((sum, sort) => (sort.kind === kind ? sum + sort.bytes : sum), 0);
  }

  /**
   * Whether a cell looks other than in an earlier grid of the same shape.
   * @param {number} cell
   * @param {MapGrid} before
   */
  differs(cell, before) {
    return this.sorts.some(({ kind, owner }, index) => {
      const earlier = before.index.get(`${kind} ${owner ?? ""}`);
      const bytes = earlier === undefined ? 0 : before.amounts[earlier][cell];
      return Math.abs(this.amounts[index][cell] - bytes) >= 1;
    });
  }
}

/** Runs in one page (the server is busy with it for a millisecond), and pages that are read before it is sampled instead. */
const pageRuns = 1_000;
const maxPages = 40;
/** Places to look at when there are too many runs to read them all, and runs to read at each. */
const samples = 256;
const sampleRuns = 32;

/**
 * Reads a volume's map into a grid. A map of more than 40,000 runs is sampled: at places spread evenly over the disk
 * some runs are read, and stand for their surroundings.
 * @param {number} size of the disk
 * @param {number} maxCells
 * @param {(offset: number, limit: number) => Promise<{ runs: Run[], next: number | null }>} read a page of the map
 * @returns {Promise<MapGrid>}
 */
export async function readMap(size, maxCells, read) {
  const grid = new MapGrid(size, maxCells);
  let offset = 0;
  for (let page = 0; page < maxPages; page++) {
    const { runs, next } = await read(offset, pageRuns);
    for (const run of runs) grid.add(run);
    if (next === null) return grid;
    offset = next;
  }
  return sampleMap(size, maxCells, read);
}

/**
 * @param {number} size
 * @param {number} maxCells
 * @param {(offset: number, limit: number) => Promise<{ runs: Run[], next: number | null }>} read
 */
async function sampleMap(size, maxCells, read) {
  const grid = new MapGrid(size, maxCells);
  grid.sampled = true;
  const stride = Math.max(grid.cellBytes, Math.ceil(size / samples / blockBytes) * blockBytes);
  for (let offset = 0; offset < size; offset += stride) {
    const end = Math.min(size, offset + stride);
    const { runs } = await read(offset, sampleRuns);
    const seen = runs
      .map((run) => ({ ...run, length: Math.min(run.offset + run.length, end) - run.offset }))
      .filter(({ length }) => length > 0);
    const seenBytes = seen.reduce((sum, { length }) => sum + length, 0);
    if (seenBytes === 0) continue;
    // What was seen is repeated over the stride, in proportion.
    const scale = (end - offset) / seenBytes;
    let at = offset;
    for (const run of seen) {
      const length = run.length * scale;
      grid.add({ ...run, offset: at, length });
      at += length;
    }
  }
  return grid;
}
