import { UllageError } from "../../base/errors.ts";
import { formatSize } from "../../base/units.ts";
import type { Run } from "../../base/zero-blocks.ts";
import { clusterBytes, groupClusters, type DataClusters } from "../data-clusters.ts";

/*
 * A qcow2 image, version 3 (QEMU's docs/interop/qcow2.txt), of which every byte is known as soon as it is known which
 * clusters of the disk hold data: so it can be sent from its beginning to its end, and any part of it at any time.
 *
 *     header | refcount table | refcount blocks | L1 table | L2 tables | data clusters, in the order of the disk
 *
 * Each part begins with a cluster of its own. Nothing is shared, so that every refcount is 1. A cluster of the disk without
 * data is not allocated, and a group of them without data (512 MiB) has no L2 table.
 */

const clusterBits = 16;
const entryBytes = 8;
const refcountOrder = 4;
const refcountBytes = 2;
const refcountsPerBlock = clusterBytes / refcountBytes;
const entriesPerCluster = clusterBytes / entryBytes;
const headerBytes = 104;
/** QEMU opens no image with a larger L1 table. */
const maxL1Entries = (32 * 1024 * 1024) / entryBytes;
/** Nobody else refers to this cluster. */
const copied = 1n << 63n;

/** A part of the file: its first cluster, and how many it has. */
interface Part {
  first: number;
  count: number;
}

export class Qcow2Layout {
  /** Bytes of the file. */
  readonly size: number;
  readonly #map: DataClusters;
  /** The groups of clusters with data, and with that an L2 table each. */
  readonly #groups: number[] = [];
  readonly #refcountTable: Part;
  readonly #refcountBlocks: Part;
  readonly #l1: Part;
  readonly #l2: Part;
  readonly #data: Part;
  readonly #clusters: number;
  /** The cluster of tables that was asked for last. */
  #cached: { cluster: number; bytes: Buffer } | undefined;

  /** @throws UllageError `too-large` for disks of more than 2 PiB */
  constructor(map: DataClusters) {
    if (map.groups > maxL1Entries) {
      throw new UllageError("too-large", `a disk of ${formatSize(map.diskBytes)} is too large for a qcow2 image`, {
        hint: "export it as raw",
      });
    }
    this.#map = map;
    for (let group = 0; group < map.groups; group++) {
      if (map.before(group) !== map.before(group + 1)) this.#groups.push(group);
    }
    const l1 = Math.max(1, Math.ceil(map.groups / entriesPerCluster));
    const rest = 1 + l1 + this.#groups.length + map.count;
    let blocks = 1;
    let table = 1;
    for (;;) {
      const needed = Math.ceil((rest + blocks + table) / refcountsPerBlock);
      if (needed <= blocks && Math.ceil(blocks / entriesPerCluster) <= table) break;
      blocks = needed;
      table = Math.ceil(blocks / entriesPerCluster);
    }
    this.#refcountTable = { first: 1, count: table };
    this.#refcountBlocks = { first: 1 + table, count: blocks };
    this.#l1 = { first: 1 + table + blocks, count: l1 };
    this.#l2 = { first: this.#l1.first + l1, count: this.#groups.length };
    this.#data = { first: this.#l2.first + this.#l2.count, count: map.count };
    this.#clusters = this.#data.first + this.#data.count;
    this.size = this.#clusters * clusterBytes;
  }

  /** Bytes in all that is no hole: there is none. */
  get bytes(): number {
    return this.size;
  }

  /** Everything is data, as far as this knows. */
  next(offset: number): Run | undefined {
    return offset < this.size ? { offset, length: this.size - offset } : undefined;
  }

  /**
   * What is at an offset of the file: tables, which are given, or a piece of the disk, which the caller has. It goes on at
   * the end of the piece.
   */
  at(offset: number): { tables: Buffer } | { disk: Run } {
    const cluster = Math.floor(offset / clusterBytes);
    const inside = offset % clusterBytes;
    if (cluster < this.#data.first) return { tables: this.#tables(cluster).subarray(inside) };
    const guest = this.#map.nth(cluster - this.#data.first);
    return { disk: { offset: guest * clusterBytes + inside, length: clusterBytes - inside } };
  }

  #tables(cluster: number): Buffer {
    if (this.#cached?.cluster !== cluster) this.#cached = { cluster, bytes: this.#build(cluster) };
    return this.#cached.bytes;
  }

  #build(cluster: number): Buffer {
    if (cluster === 0) return this.#header();
    const within = ({ first, count }: Part): boolean => cluster >= first && cluster < first + count;
    if (within(this.#refcountTable)) {
      const { first, count } = this.#refcountBlocks;
      return entries((cluster - this.#refcountTable.first) * entriesPerCluster, (index) =>
        index < count ? address(first + index) : 0n,
      );
    }
    if (within(this.#refcountBlocks)) return this.#refcounts(cluster - this.#refcountBlocks.first);
    if (within(this.#l1)) return this.#l1Entries((cluster - this.#l1.first) * entriesPerCluster);
    return this.#l2Entries(this.#groups[cluster - this.#l2.first]);
  }

  #header(): Buffer {
    const bytes = Buffer.alloc(clusterBytes);
    bytes.write("QFI\xfb", "latin1");
    bytes.writeUInt32BE(3, 4); // version
    bytes.writeUInt32BE(clusterBits, 20);
    bytes.writeBigUInt64BE(BigInt(this.#map.diskBytes), 24);
    bytes.writeUInt32BE(this.#map.groups, 36); // entries of the L1 table
    bytes.writeBigUInt64BE(address(this.#l1.first), 40);
    bytes.writeBigUInt64BE(address(this.#refcountTable.first), 48);
    bytes.writeUInt32BE(this.#refcountTable.count, 56);
    bytes.writeUInt32BE(refcountOrder, 96);
    bytes.writeUInt32BE(headerBytes, 100);
    return bytes; // behind the header, zeros: no extensions
  }

  #refcounts(block: number): Buffer {
    const used = Math.min(refcountsPerBlock, this.#clusters - block * refcountsPerBlock);
    const bytes = Buffer.alloc(clusterBytes);
    for (let index = 0; index < used; index++) bytes.writeUInt16BE(1, index * refcountBytes);
    return bytes;
  }

  #l1Entries(from: number): Buffer {
    const bytes = Buffer.alloc(clusterBytes);
    for (const [index, group] of this.#groups.entries()) {
      if (group < from || group >= from + entriesPerCluster) continue;
      bytes.writeBigUInt64BE(copied | address(this.#l2.first + index), (group - from) * entryBytes);
    }
    return bytes;
  }

  #l2Entries(group: number): Buffer {
    let data = this.#data.first + this.#map.before(group);
    return entries(group * groupClusters, (cluster) => (this.#map.has(cluster) ? copied | address(data++) : 0n));
  }
}

/** A cluster of entries, numbered from `from` on. */
function entries(from: number, value: (index: number) => bigint): Buffer {
  const bytes = Buffer.alloc(clusterBytes);
  for (let index = 0; index < entriesPerCluster; index++) {
    bytes.writeBigUInt64BE(value(from + index), index * entryBytes);
  }
  return bytes;
}

/** Where a cluster of the file begins. */
function address(cluster: number): bigint {
  return BigInt(cluster) * BigInt(clusterBytes);
}
