import type { Run } from "../base/zero-blocks.ts";

/** Bytes of a cluster: what is told of a disk, and what qcow2 allocates. */
export const clusterBytes = 64 * 1024;

/** Clusters of a group: those that one L2 table of qcow2 is for. */
export const groupClusters = clusterBytes / 8;

const clustersPerByte = 8;
const groupBytes = groupClusters / clustersPerByte;
const ones = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/**
 * Which clusters of a disk may hold anything but zeros: one bit each, 2 MiB for each TiB. Clusters are added in any order,
 * then `seal` counts them, and only then it can be asked.
 */
export class DataClusters {
  /** Bytes of the disk. */
  readonly diskBytes: number;
  readonly clusters: number;
  readonly groups: number;
  readonly #bits: Uint8Array;
  /** How many clusters with data there are before each group, and in all. */
  readonly #before: Float64Array;

  constructor(diskBytes: number) {
    this.diskBytes = diskBytes;
    this.clusters = Math.ceil(diskBytes / clusterBytes);
    this.groups = Math.ceil(this.clusters / groupClusters);
    this.#bits = new Uint8Array(this.groups * groupBytes);
    this.#before = new Float64Array(this.groups + 1);
  }

  /** The range, in bytes, holds data. */
  add(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / clusterBytes);
    for (let cluster = Math.floor(offset / clusterBytes); cluster < end;) {
      if (cluster % clustersPerByte === 0 && cluster + clustersPerByte <= end) {
        const bytes = Math.floor((end - cluster) / clustersPerByte);
        this.#bits.fill(255, cluster / clustersPerByte, cluster / clustersPerByte + bytes);
        cluster += bytes * clustersPerByte;
      } else {
        this.#bits[Math.floor(cluster / clustersPerByte)] |= 1 << (cluster % clustersPerByte);
        cluster++;
      }
    }
  }

  seal(): this {
    for (let group = 0; group < this.groups; group++) {
      let count = 0;
      for (let at = group * groupBytes; at < (group + 1) * groupBytes; at++) count += ones[this.#bits[at]];
      this.#before[group + 1] = this.#before[group] + count;
    }
    return this;
  }

  /** Clusters with data. */
  get count(): number {
    return this.#before[this.groups];
  }

  /** Clusters with data before a group. */
  before(group: number): number {
    return this.#before[group];
  }

  has(cluster: number): boolean {
    return (this.#bits[Math.floor(cluster / clustersPerByte)] & (1 << (cluster % clustersPerByte))) !== 0;
  }

  /** The cluster with data before which there are `index` others. */
  nth(index: number): number {
    let group = 0;
    for (let end = this.groups; end - group > 1;) {
      const middle = Math.floor((group + end) / 2);
      if (this.#before[middle] <= index) group = middle;
      else end = middle;
    }
    let left = index - this.#before[group];
    let at = group * groupBytes;
    for (; left >= ones[this.#bits[at]]; at++) left -= ones[this.#bits[at]];
    let cluster = at * clustersPerByte;
    for (; left > 0 || !this.has(cluster); cluster++) if (this.has(cluster)) left--;
    return cluster;
  }

  // ---- as runs of bytes ----------------------------------------------------------------------------------------------

  /** Bytes in clusters with data. */
  get bytes(): number {
    return this.count * clusterBytes;
  }

  /** The next run of clusters with data that ends behind `offset`, cut to begin there at the earliest. */
  next(offset: number): Run | undefined {
    if (offset >= this.diskBytes) return undefined; // perhaps inside the last cluster
    let first = Math.floor(offset / clusterBytes);
    while (first < this.clusters && !this.has(first)) first += this.#emptyAt(first);
    if (first >= this.clusters) return undefined;
    let end = first + 1;
    while (end < this.clusters && this.has(end)) end += this.#fullAt(end);
    const start = Math.max(offset, first * clusterBytes);
    return { offset: start, length: Math.min(end * clusterBytes, this.diskBytes) - start };
  }

  /** How many clusters from here on, of this byte or this group, have no data. */
  #emptyAt(cluster: number): number {
    if (cluster % groupClusters === 0) {
      const group = cluster / groupClusters;
      if (this.#before[group] === this.#before[group + 1]) return groupClusters;
    }
    if (cluster % clustersPerByte === 0 && this.#bits[cluster / clustersPerByte] === 0) return clustersPerByte;
    return 1;
  }

  #fullAt(cluster: number): number {
    const whole = cluster % clustersPerByte === 0 && this.#bits[cluster / clustersPerByte] === 255;
    return whole ? Math.min(clustersPerByte, this.clusters - cluster) : 1;
  }
}
