import { OracleError } from "./oracle-error.ts";
import { sectorBytes } from "./sim-inode.ts";
import { type Frozen, SnapshotOracle } from "./snapshot-oracle.ts";

/** One content that a sector had, has, or may have. Zeros of one operation are shared by all its sectors. */
interface Version {
  content: Buffer;
  /** when the operation that makes it was issued */
  issued: number;
  /** when it was answered, failed or cut off by a crash; Infinity while it runs */
  settled: number;
  /** It was answered without an error: everything answered before it was issued is overwritten. */
  effective: boolean;
  /** when a read showed that the sector holds another version */
  ruledOut: number;
}

/** A write, trim or zero under way. */
export interface OracleOperation {
  issued: number;
  settled: number;
  versions: Version[];
  /** sectors, both included */
  first: number;
  last: number;
  /** of these, those that it covers in part */
  partial: number[];
}

/** A read under way: what it may return per touched sector. */
export interface OracleRead {
  offset: number;
  length: number;
  started: number;
}

/** What a crash may take away. */
export type Loss =
  /** nothing that was answered (kill -9, durability rule 7) */
  | "nothing"
  /** what was not flushed (power loss, durability rule 26); what is read next is on the disk */
  | "unflushed"
  /** the same, but what is read next may still be in the page cache alone */
  | "unflushed, cache kept";

function newVersion(content: Buffer, issued: number): Version {
  return { content, issued, settled: Infinity, effective: false, ruledOut: Infinity };
}

/** Versions of a sector beyond which it is written as a whole only. */
const maxVersions = 24;
const zeroSector = Buffer.alloc(sectorBytes);

/**
 * Knows, per 512-byte sector, every content that a correct volume may show: now, and after a power cut (durability rule
 * 26: the content of the last flush or of anything issued since). A content is impossible now once an operation that was
 * issued after it had settled is answered, and impossible after a power cut once such an operation is also covered by a
 * completed flush. Sectors that nothing touched hold what `initial` says.
 *
 * Operations that cover a part of a sector must not overlap others on it that are still running (`conflicts`).
 */
export class Oracle {
  readonly #initial: (sector: number) => Buffer;
  readonly #tears: boolean;
  readonly #sectors = new Map<number, Version[]>();
  /** Sectors with more than one version. */
  readonly #unsettled = new Set<number>();
  readonly #running = new Set<OracleOperation>();
  readonly #reads = new Set<OracleRead>();
  /** Snapshots being taken, and since when. */
  readonly #snapshots = new Map<SnapshotOracle, OracleRead>();
  #time = 1;
  /** What settled before this moment is durable. */
  #durable = 0;
  /** Sectors not read since a recovery that had to forget the page cache. */
  readonly #onDisk = new Set<number>();

  /**
   * @param options.tears Reads share the page cache with writes that run beside them, as under Linux: while a sector is
   * being written, a read may show a part of what it is to hold. What it shows afterwards must be one content.
   */
  constructor(initial: (sector: number) => Buffer, options: { tears?: boolean } = {}) {
    this.#initial = initial;
    this.#tears = options.tears ?? false;
  }

  /** Every sector that any operation touched. */
  get touched(): number[] {
    return [...this.#sectors.keys()].sort((one, other) => one - other);
  }

  /** @param bytes what is written; undefined: zeros. They are kept, not copied */
  issue(offset: number, length: number, bytes: Buffer | undefined): OracleOperation {
    const operation: OracleOperation = {
      issued: ++this.#time,
      settled: Infinity,
      versions: [],
      first: Math.floor(offset / sectorBytes),
      last: Math.ceil((offset + length) / sectorBytes) - 1,
      partial: partialSectors(offset, length),
    };
    const end = offset + length;
    const add = (sector: number, versions: Version[], version: Version): void => {
      versions.push(version);
      this.#unsettled.add(sector);
      this.#onDisk.delete(sector);
    };
    const zeros = newVersion(zeroSector, operation.issued);
    if (!bytes) operation.versions.push(zeros);
    for (let sector = operation.first; sector <= operation.last; sector++) {
      const from = Math.max(0, offset - sector * sectorBytes);
      const to = Math.min(sectorBytes, end - sector * sectorBytes);
      const at = sector * sectorBytes + from - offset;
      const piece = bytes ? bytes.subarray(at, at + to - from) : zeroSector.subarray(0, to - from);
      const versions = this.#versions(sector);
      const whole = from === 0 && to === sectorBytes;
      if (whole && !bytes) {
        add(sector, versions, zeros);
        continue;
      }
      for (const content of whole ? [piece] : overlays(this.#possible(versions), piece, from)) {
        const version = newVersion(content, operation.issued);
        add(sector, versions, version);
        operation.versions.push(version);
      }
    }
    this.#running.add(operation);
    return operation;
  }

  /** @param answered without an error; otherwise any part of it may have happened, but nothing more will */
  settle(operation: OracleOperation, answered: boolean): void {
    operation.settled = ++this.#time;
    for (const version of operation.versions) {
      version.settled = operation.settled;
      version.effective = answered;
    }
    this.#running.delete(operation);
  }

  /**
   * Whether the range and an operation that runs share a sector that one of them covers only in part, or the range covers
   * a part of a sector about which too little is known: each failed write of a part doubles what the sector may hold.
   */
  conflicts(offset: number, length: number): boolean {
    const first = Math.floor(offset / sectorBytes);
    const last = Math.ceil((offset + length) / sectorBytes) - 1;
    const partial = partialSectors(offset, length);
    if (partial.some((sector) => (this.#sectors.get(sector)?.length ?? 0) > maxVersions)) return true;
    for (const operation of this.#running) {
      if (partial.some((sector) => operation.first <= sector && sector <= operation.last)) return true;
      if (operation.partial.some((sector) => first <= sector && sector <= last)) return true;
    }
    return false;
  }

  flushStart(): number {
    return ++this.#time;
  }

  /** @param token what `flushStart` gave */
  flushDone(token: number): void {
    this.#durable = Math.max(this.#durable, token);
    // A read that runs may still show what it found when it began.
    const oldest = Math.min(...[...this.#reads].map((read) => read.started));
    for (const sector of this.#unsettled) this.#prune(sector, Math.min(this.#durable, oldest));
  }

  readStart(offset: number, length: number): OracleRead {
    const read = { offset, length, started: ++this.#time };
    this.#reads.add(read);
    return read;
  }

  /** A read failed: it says nothing. */
  readFailed(read: OracleRead): void {
    this.#reads.delete(read);
  }

  /** @throws OracleError when the read shows what no order of the operations explains */
  readDone(read: OracleRead, bytes: Buffer): void {
    this.#reads.delete(read);
    const { offset, length, started } = read;
    const end = offset + length;
    for (let sector = Math.floor(offset / sectorBytes); sector * sectorBytes < end; sector++) {
      const from = Math.max(0, offset - sector * sectorBytes);
      const to = Math.min(sectorBytes, end - sector * sectorBytes);
      const at = sector * sectorBytes + from - offset;
      const seen = bytes.subarray(at, at + to - from);
      const versions = this.#sectors.get(sector);
      if (!versions) {
        if (!this.#initial(sector).subarray(from, to).equals(seen)) {
          throw new OracleError(sector, seen, [this.#initial(sector)]);
        }
        continue;
      }
      // A version is possible in the read's whole time if nothing that settled before it started has replaced it.
      const possible = this.#possible(versions, started);
      const matching = possible.filter((version) => version.content.subarray(from, to).equals(seen));
      if (matching.length === 0) {
        if (this.#tears && torn(seen, possible, from, started)) continue;
        throw new OracleError(
          sector,
          seen,
          possible.map((version) => version.content),
        );
      }
      this.#observe(sector, versions, matching, started);
    }
  }

  /** A snapshot is being taken: it shows what was there at one moment from now until `snapshotEnd`. */
  snapshotStart(size: number): SnapshotOracle {
    const snapshot = new SnapshotOracle(size, this.#initial);
    this.#snapshots.set(snapshot, this.readStart(0, 0));
    return snapshot;
  }

  /** It was answered, or failed: then it may be there all the same. */
  snapshotEnd(snapshot: SnapshotOracle): void {
    const read = this.#snapshots.get(snapshot);
    if (read === undefined) return; // a crash has ended it
    this.#snapshots.delete(snapshot);
    this.#reads.delete(read);
    const moments = { from: read.started, to: ++this.#time };
    const sectors = new Map<number, Frozen[]>();
    for (const [sector, versions] of this.#sectors) sectors.set(sector, frozenVersions(versions, moments));
    snapshot.taken(moments, sectors);
  }

  /** The process or the machine died; recovery has not begun. */
  crash(loss: Loss): void {
    for (const operation of this.#running) this.settle(operation, false);
    for (const snapshot of this.#snapshots.keys()) this.snapshotEnd(snapshot);
    this.#reads.clear();
    const now = ++this.#time;
    if (loss === "nothing") return;
    for (const sector of this.#unsettled) this.#prune(sector, this.#durable);
    for (const sector of this.#unsettled) {
      const versions = this.#sectors.get(sector)!;
      for (const version of versions) {
        // Any of them is possible again, and none of them replaces another any more.
        version.effective = false;
        version.ruledOut = Infinity;
        version.settled = now;
      }
      if (loss === "unflushed") this.#onDisk.add(sector);
    }
  }

  #versions(sector: number): Version[] {
    let versions = this.#sectors.get(sector);
    if (!versions) {
      versions = [{ content: this.#initial(sector), issued: 0, settled: 0, effective: true, ruledOut: Infinity }];
      this.#sectors.set(sector, versions);
    }
    return versions;
  }

  /** Versions that nothing answered before `time` has replaced or ruled out. */
  #possible(versions: Version[], time = Infinity): Version[] {
    let replaced = -1;
    for (const { effective, settled, issued } of versions) {
      if (effective && settled < time && issued > replaced) replaced = issued;
    }
    return versions.filter((version) => version.settled >= replaced && version.ruledOut >= time);
  }

  /** A read that began at `started` saw one of `matching`. */
  #observe(sector: number, versions: Version[], matching: Version[], started: number): void {
    if (versions.length === 1) return;
    // What is written while the read runs may have come before or after it.
    if (versions.some((version) => version.settled > started)) return;
    if (this.#onDisk.has(sector)) {
      // A part of the sector may look the same in several versions.
      this.#sectors.set(sector, matching);
      if (matching.length > 1) return;
      this.#onDisk.delete(sector);
      this.#unsettled.delete(sector);
      return;
    }
    for (const [index, version] of versions.entries()) {
      if (matching.includes(version) || version.ruledOut <= started) continue;
      versions[index] = { ...version, ruledOut: started };
    }
  }

  /** Forgets versions that what settled before `horizon` has replaced. */
  #prune(sector: number, horizon: number): void {
    const versions = this.#sectors.get(sector)!;
    const kept = this.#possible(versions, horizon);
    this.#sectors.set(sector, kept);
    if (kept.length === 1) this.#unsettled.delete(sector);
  }
}

/** Whether a sector was being written after `started`, and each of its bytes is that of something it may have held then. */
function torn(seen: Buffer, possible: Version[], from: number, started: number): boolean {
  if (!possible.some((version) => version.settled > started)) return false;
  return seen.every((byte, at) => possible.some((version) => version.content[from + at] === byte));
}

/** Which versions a sector may have shown within a span, and when in it. */
function frozenVersions(versions: Version[], span: { from: number; to: number }): Frozen[] {
  return versions.flatMap((version) => {
    let to = Math.min(span.to, version.ruledOut);
    for (const { effective, issued, settled } of versions) {
      if (effective && issued > version.settled && settled < to) to = settled;
    }
    const from = Math.max(span.from, version.issued);
    return from <= to ? [{ content: version.content, from, to }] : [];
  });
}

/** Bytes of which every aligned 512 name the operation and the sector. */
export function stamp(operation: number | string, offset: number, length: number): Buffer {
  const bytes = Buffer.allocUnsafeSlow(length);
  const end = offset + length;
  for (let sector = Math.floor(offset / sectorBytes); sector * sectorBytes < end; sector++) {
    const from = Math.max(offset, sector * sectorBytes);
    const to = Math.min(end, (sector + 1) * sectorBytes);
    bytes.write(
      `op ${operation} sector ${sector}.`
        .padEnd(32, "-")
        .repeat(16)
        .slice(from % sectorBytes),
      from - offset,
      to - from,
      "latin1",
    );
  }
  return bytes;
}

function partialSectors(offset: number, length: number): number[] {
  const end = offset + length;
  const first = Math.floor(offset / sectorBytes);
  const last = Math.ceil(end / sectorBytes) - 1;
  return [first, last].filter((sector) => sector * sectorBytes < offset || (sector + 1) * sectorBytes > end);
}

function overlays(bases: Version[], piece: Buffer, from: number): Buffer[] {
  return bases.map((base) => {
    const content = Buffer.from(base.content);
    piece.copy(content, from);
    return content;
  });
}
