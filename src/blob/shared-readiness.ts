import { closeSync } from "node:fs";
import { CorruptionError } from "../base/errors.ts";
import { keepsItsSize, mapShared, memoryFile, sealMemoryFile } from "../base/posix.ts";
import type { CheckState } from "./content-check.ts";
import { bitmapBytes } from "./range-map.ts";

/*
 * Readiness that other processes see as it changes: a memory file that its maker writes and everybody else maps
 * read-only (durability rule 12). It can't become shorter, so that a mapping of it is safe, and it ends with its users:
 * nothing in it is ever believed after a restart. Integers are little-endian.
 *
 *     0  8   magic "ULLGRDY1"
 *     8  u32 sequence: odd while units are being taken back, and higher by two afterwards
 *    16  f64 bytes of ready units
 *    24  f64 units
 *    32  f64 where the durable bits begin
 *    40  f64 whether all of it has the bytes of its digest: 0 there is none, 1 unchecked, 2 verified, 3 given up
 *  4096  …   which units are ready: unit n is bit (n & 7) of byte n >> 3
 *     …  …   which are durably ready, the same way
 *
 * A read of the cache file counts if the sequence was even before it, the unit ready after that, and the sequence still
 * the same when the read had ended.
 */

const MAGIC = Buffer.from("ULLGRDY1");
const HEADER_BYTES = 4096;

export class SharedReadiness {
  /** The memory file. */
  readonly fd: number;
  readonly ready: Uint8Array;
  readonly durable: Uint8Array;
  readonly #sequence: Int32Array;
  readonly #figures: Float64Array;

  private constructor(fd: number, memory: Uint8Array, units: number) {
    const bits = bitmapBytes(units);
    const durableAt = durableOffset(units);
    this.fd = fd;
    this.ready = memory.subarray(HEADER_BYTES, HEADER_BYTES + bits);
    this.durable = memory.subarray(durableAt, durableAt + bits);
    this.#sequence = new Int32Array(memory.buffer, 8, 1);
    this.#figures = new Float64Array(memory.buffer, 16, 4);
  }

  /** @throws Error with `code` ENOMEM, EMFILE, … */
  static create(units: number): SharedReadiness {
    const fd = memoryFile("ullage-readiness", totalBytes(units));
    try {
      const memory = mapShared(fd, totalBytes(units), true);
      sealMemoryFile(fd);
      memory.set(MAGIC, 0);
      const shared = new SharedReadiness(fd, memory, units);
      shared.#figures[1] = units;
      shared.#figures[2] = durableOffset(units);
      return shared;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * Maps what somebody else made. The descriptor is not needed afterwards.
   * @throws CorruptionError when it is not a readiness file of so many units, or may become shorter
   */
  static adopt(fd: number, units: number): SharedReadiness {
    if (!keepsItsSize(fd)) throw new CorruptionError("the readiness that was passed is not sealed", "");
    const memory = mapShared(fd, totalBytes(units), false);
    const shared = new SharedReadiness(fd, memory, units);
    const valid = MAGIC.equals(memory.subarray(0, 8)) && shared.#figures[1] === units;
    if (!valid) throw new CorruptionError("the readiness that was passed belongs to something else", "");
    return shared;
  }

  /** See above; odd: nothing counts as ready now. */
  get sequence(): number {
    return Atomics.load(this.#sequence, 0);
  }

  get readyBytes(): number {
    return this.#figures[0];
  }

  set readyBytes(bytes: number) {
    this.#figures[0] = bytes;
  }

  /** Undefined: there is no digest. */
  get check(): CheckState | undefined {
    return checkStates[this.#figures[3]];
  }

  set check(state: CheckState | undefined) {
    this.#figures[3] = checkStates.indexOf(state);
  }

  /** Runs `work`, which takes units back. */
  takeBack<T>(work: () => T): T {
    Atomics.add(this.#sequence, 0, 1);
    try {
      return work();
    } finally {
      Atomics.add(this.#sequence, 0, 1);
    }
  }

  /** Closes the descriptor; the memory goes with its last mapping. */
  close(): void {
    closeSync(this.fd);
  }
}

const checkStates = [undefined, "unchecked", "verified", "givenUp"] as const;

const durableOffset = (units: number): number => HEADER_BYTES + 8 * Math.ceil(bitmapBytes(units) / 8);

function totalBytes(units: number): number {
  return durableOffset(units) + 8 * Math.ceil(bitmapBytes(units) / 8);
}
