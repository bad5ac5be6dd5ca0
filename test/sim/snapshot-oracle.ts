import { OracleError } from "./oracle-error.ts";
import { sectorBytes } from "./sim-inode.ts";

/** A content that a sector may have had, and the span of moments in which it may have had it; both ends included. */
export interface Frozen {
  content: Buffer;
  from: number;
  to: number;
}

interface Span {
  from: number;
  to: number;
}

/**
 * Knows what a snapshot may show: for each sector what was there when it was taken. That was one moment for all of them,
 * so every sector that is read narrows what the others may show, and what was shown once is shown for ever.
 */
export class SnapshotOracle {
  /** bytes, as far as it is known */
  size: number;
  readonly #initial: (sector: number) => Buffer;
  /** Sectors that nobody has read yet, of those that were ever touched. */
  #open = new Map<number, Frozen[]>();
  readonly #known = new Map<number, Buffer>();
  #moments: Span[] = [];

  constructor(size: number, initial: (sector: number) => Buffer) {
    this.size = size;
    this.#initial = initial;
  }

  /** @param moments when it was taken @param sectors all that were touched before its end */
  taken(moments: Span, sectors: Map<number, Frozen[]>): void {
    this.#moments = [moments];
    this.#open = sectors;
  }

  /** Every sector of it that an operation has touched. */
  get touched(): number[] {
    return [...this.#open.keys(), ...this.#known.keys()].filter((sector) => sector * sectorBytes < this.size);
  }

  /** What a sector holds; it has been read, unless nothing ever touched it. */
  content(sector: number): Buffer {
    if (sector * sectorBytes >= this.size) return Buffer.alloc(sectorBytes);
    if (this.#open.has(sector)) throw new Error(`sector ${sector} of a snapshot was not read yet`);
    return this.#known.get(sector) ?? this.#initial(sector);
  }

  /** Whole sectors were read. @throws OracleError */
  check(offset: number, bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += sectorBytes) {
      this.#checkSector((offset + at) / sectorBytes, bytes.subarray(at, at + sectorBytes));
    }
  }

  #checkSector(sector: number, seen: Buffer): void {
    const versions = this.#open.get(sector);
    if (versions === undefined) {
      const content = this.content(sector);
      if (!content.equals(seen)) throw new OracleError(sector, seen, [content], "of a snapshot: ");
      return;
    }
    const matching = versions.filter(({ content }) => content.equals(seen));
    const moments = intersect(this.#moments, matching);
    if (moments.length === 0) {
      const [{ from, to }] = this.#moments;
      const when = matching.length > 0 ? ` taken between ${from} and ${to}, when it was not that` : "";
      const allowed = versions.map(({ content }) => content);
      throw new OracleError(sector, seen, allowed, `of a snapshot${when}: `);
    }
    this.#moments = moments;
    this.#open.delete(sector);
    this.#known.set(sector, Buffer.from(seen));
  }
}

function intersect(some: Span[], others: Span[]): Span[] {
  const both = some
    .flatMap((one) => others.map(({ from, to }) => ({ from: Math.max(one.from, from), to: Math.min(one.to, to) })))
    .filter(({ from, to }) => from <= to)
    .sort((one, other) => one.from - other.from);
  const merged: Span[] = [];
  for (const span of both) {
    const last = merged.at(-1);
    if (last !== undefined && span.from <= last.to) last.to = Math.max(last.to, span.to);
    else merged.push(span);
  }
  return merged;
}
