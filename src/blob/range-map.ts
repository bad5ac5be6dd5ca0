/**
 * Which units of a blob are ready: one bit per unit, unit n in bit (n & 7) of byte n >> 3. The asking is O(1) per unit
 * and allocates nothing, for it is on the path of every read.
 *
 * Offsets and lengths are bytes; everything at or beyond `size` counts as ready, because nobody has to fetch it.
 */
export class RangeMap {
  /** bytes */
  readonly size: number;
  /** bytes, a power of two */
  readonly unitBytes: number;
  /** units; the last one may be short */
  readonly units: number;
  #bits: Uint8Array;
  #missing: number;

  /** @param bits initial content, used as it is (not copied); bits beyond the last unit must be zero */
  constructor(size: number, unitBytes: number, bits?: Uint8Array) {
    this.size = size;
    this.unitBytes = unitBytes;
    this.units = Math.ceil(size / unitBytes);
    this.#bits = bits ?? new Uint8Array(bitmapBytes(this.units));
    if (this.#bits.length !== bitmapBytes(this.units)) {
      throw new RangeError(`${this.#bits.length} bytes of bits for ${this.units} units`);
    }
    this.#missing = this.units - countBits(this.#bits);
  }

  /** Units that are not ready. */
  get missing(): number {
    return this.#missing;
  }

  /** Bytes of ready units, the last one counted short. */
  get readyBytes(): number {
    if (this.#missing === this.units) return 0;
    const whole = (this.units - this.#missing) * this.unitBytes;
    return this.has(this.units - 1) ? whole - (this.units * this.unitBytes - this.size) : whole;
  }

  has(unit: number): boolean {
    return (this.#bits[unit >> 3] & (1 << (unit & 7))) !== 0;
  }

  add(unit: number): void {
    if (this.has(unit)) return;
    this.#bits[unit >> 3] |= 1 << (unit & 7);
    this.#missing--;
  }

  remove(unit: number): void {
    if (!this.has(unit)) return;
    this.#bits[unit >> 3] &= ~(1 << (unit & 7));
    this.#missing++;
  }

  /** Removes all units. */
  clear(): void {
    this.#bits.fill(0);
    this.#missing = this.units;
  }

  /** Adds the units [first, end). */
  addRun(first: number, end: number): void {
    let unit = first;
    while (unit < end && (unit & 7) !== 0) this.add(unit++);
    const whole = Math.floor((end - unit) / 8);
    if (whole > 0) {
      const bytes = this.#bits.subarray(unit >> 3, (unit >> 3) + whole);
      this.#missing -= 8 * whole - countBits(bytes);
      bytes.fill(0xff);
      unit += 8 * whole;
    }
    while (unit < end) this.add(unit++);
  }

  /** The unit that holds the byte at `offset`. */
  unitAt(offset: number): number {
    return Math.floor(offset / this.unitBytes);
  }

  /** One past the unit that holds the last byte of the range, as far as it lies below `size`. */
  unitEnd(offset: number, length: number): number {
    return Math.ceil(Math.min(offset + length, this.size) / this.unitBytes);
  }

  /** Bytes from the start of `first` to the end of the unit before `end`; the blob's last unit counts short. */
  bytesOf(first: number, end: number): number {
    return Math.min(end * this.unitBytes, this.size) - first * this.unitBytes;
  }

  isReady(offset: number, length: number): boolean {
    if (this.#missing === 0 || offset >= this.size) return true;
    const end = this.unitEnd(offset, length);
    for (let unit = this.unitAt(offset); unit < end; unit++) if (!this.has(unit)) return false;
    return true;
  }

  /** How many bytes from `offset` on, at most `length`, have the same readiness as the byte at `offset`. */
  readyRun(offset: number, length: number): number {
    if (this.#missing === 0 || offset >= this.size) return length;
    const first = this.unitAt(offset);
    const ready = this.has(first);
    const end = this.runEnd(first, this.unitEnd(offset, length));
    if (end * this.unitBytes >= this.size) return ready ? length : Math.min(length, this.size - offset);
    return Math.min(length, end * this.unitBytes - offset);
  }

  /** One past the last unit, at most `limit`, of the run of units like `unit`. */
  runEnd(unit: number, limit: number): number {
    const ready = this.has(unit);
    const uniform = ready ? 0xff : 0;
    let end = unit + 1;
    while (end < limit) {
      if ((end & 7) === 0 && end + 8 <= limit && this.#bits[end >> 3] === uniform) end += 8;
      else if (this.has(end) === ready) end++;
      else break;
    }
    return end;
  }

  /** The first unit in [from, limit) that is not ready, or `limit`. */
  nextMissing(from: number, limit: number): number {
    if (from >= limit || !this.has(from)) return Math.min(from, limit);
    return this.runEnd(from, limit);
  }

  /** Goes on in other memory, with the bits as they are now. @param bits as long, all zero; used as it is */
  moveTo(bits: Uint8Array): void {
    if (bits.length !== this.#bits.length) throw new RangeError(`${bits.length} bytes for ${this.#bits.length}`);
    bits.set(this.#bits);
    this.#bits = bits;
  }

  /** A copy of the bits, as they are now. */
  copyBits(): Uint8Array {
    return this.#bits.slice();
  }

  /** Adds every unit whose bit is set in `bits`. */
  addAll(bits: Uint8Array): void {
    for (let i = 0; i < bits.length; i++) this.#bits[i] |= bits[i];
    this.#missing = this.units - countBits(this.#bits);
  }

  /** Removes every unit that `other` does not have. @returns how many were removed */
  keepOnly(other: RangeMap): number {
    const before = this.#missing;
    for (let i = 0; i < this.#bits.length; i++) this.#bits[i] &= other.#bits[i];
    this.#missing = this.units - countBits(this.#bits);
    return this.#missing - before;
  }
}

/** Bytes that a bitmap of so many units takes. */
export const bitmapBytes = (units: number): number => Math.ceil(units / 8);

function countBits(bits: Uint8Array): number {
  let count = 0;
  for (let i = 0; i < bits.length; i++) {
    let byte = bits[i];
    if (byte === 0xff) count += 8;
    else for (; byte !== 0; byte &= byte - 1) count++;
  }
  return count;
}
