import { bitmapBytes, type RangeMap } from "./range-map.ts";

/** Units [first, end). */
export interface UnitRun {
  first: number;
  end: number;
}

/**
 * Which units of a blob were read lately, by the clock algorithm: a hand goes round, takes the mark of every unit that it
 * passes, and picks those that have none. What is read between two passes stays.
 */
export class ColdUnits {
  readonly #map: RangeMap;
  readonly #read: Uint8Array;
  #hand = 0;

  constructor(map: RangeMap) {
    this.#map = map;
    this.#read = new Uint8Array(bitmapBytes(map.units));
  }

  /** A range was read. Allocates nothing. */
  noteRead(offset: number, length: number): void {
    const end = this.#map.unitEnd(offset, length);
    for (let unit = this.#map.unitAt(offset); unit < end; unit++) this.#read[unit >> 3] |= 1 << (unit & 7);
  }

  /** Ready units that were not read lately, of about so many bytes; all ready ones were when it finds none. */
  pick(bytes: number): UnitRun[] {
    const map = this.#map;
    const runs: UnitRun[] = [];
    let found = 0;
    for (let passed = 0; passed < 2 * map.units && found < bytes; passed++) {
      const unit = this.#hand;
      this.#hand = (unit + 1) % map.units;
      if (!map.has(unit)) continue;
      const bit = 1 << (unit & 7);
      if ((this.#read[unit >> 3] & bit) !== 0) {
        this.#read[unit >> 3] &= ~bit;
        continue;
      }
      const last = runs.at(-1);
      if (last?.end === unit) last.end++;
      else if (runs.some((run) => run.first <= unit && unit < run.end))
        break; // once round
      else runs.push({ first: unit, end: unit + 1 });
      found += map.bytesOf(unit, unit + 1);
    }
    return runs;
  }
}
