import { closeSync, fstatSync } from "node:fs";
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
 *    48  f64 where the bits of the zeros begin; 0: nothing is ever known of them
 *    56  f64 units that were told of
 *  4096  …   which units are ready: unit n is bit (n & 7) of byte n >> 3
 *     …  …   which are durably ready, the same way
 *     …  …   which are zeros as the image's tables tell, ready or not
 *     …  …   which the tables told of
 *
 * A read of the cache file counts if the sequence was even before it, the unit ready after that, and the sequence still
 * the same when the read had ended. What is known of zeros holds for ever.
 */

const MAGIC = Buffer.from("ULLGRDY1");
const HEADER_BYTES = 4096;

/** What is known of a blob's zeros; see known-zeros.ts. */
export interface SharedZeros {
  readonly zeros: Uint8Array;
  readonly told: Uint8Array;
  toldUnits: number;
}

export class SharedReadiness {
  /** The memory file. */
  readonly fd: number;
  readonly ready: Uint8Array;
  readonly durable: Uint8Array;
  /** Undefined: nothing is ever known of zeros, or who made it tells nothing of them. */
  readonly zeros: SharedZeros | undefined;
  readonly #sequence: Int32Array;
  readonly #figures: Float64Array;

  private constructor(fd: number, memory: Uint8Array, units: number, zerosAt: number) {
    const bits = bitmapBytes(units);
    const bitsAt = (start: number): Uint8Array => memory.subarray(start, start + bits);
    const figures = new Float64Array(memory.buffer, 16, 6);
    this.fd = fd;
    this.ready = bitsAt(HEADER_BYTES);
    this.durable = bitsAt(HEADER_BYTES + bitmapRoom(units));
    this.#sequence = new Int32Array(memory.buffer, 8, 1);
    this.#figures = figures;
    if (zerosAt === 0) return;
    this.zeros = {
      zeros: bitsAt(zerosAt),
      told: bitsAt(zerosAt + bitmapRoom(units)),
      get toldUnits() {
        return figures[5];
      },
      set toldUnits(count: number) {
        figures[5] = count;
      },
    };
  }

  /**
   * @param options.zeros with room for what will be known of them
   * @throws Error with `code` ENOMEM, EMFILE, …
   */
  static create(units: number, { zeros = false }: { zeros?: boolean } = {}): SharedReadiness {
    const readinessEnd = HEADER_BYTES + 2 * bitmapRoom(units);
    const length = readinessEnd + (zeros ? 2 * bitmapRoom(units) : 0);
    const fd = memoryFile("ullage-readiness", length);
    try {
      const memory = mapShared(fd, length, true);
      sealMemoryFile(fd);
      memory.set(MAGIC, 0);
      const zerosAt = zeros ? readinessEnd : 0;
      const shared = new SharedReadiness(fd, memory, units, zerosAt);
      shared.#figures[1] = units;
      shared.#figures[2] = HEADER_BYTES + bitmapRoom(units);
      shared.#figures[4] = zerosAt;
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
    const { size } = fstatSync(fd);
    const readinessEnd = HEADER_BYTES + 2 * bitmapRoom(units);
    if (size < readinessEnd) throw new CorruptionError(`the readiness that was passed has ${size} bytes only`, "");
    const length = Math.min(size, readinessEnd + 2 * bitmapRoom(units));
    const memory = mapShared(fd, length, false);
    const [, madeFor, , , zerosAt] = new Float64Array(memory.buffer, 16, 6);
    const fits = zerosAt === 0 || (zerosAt === readinessEnd && zerosAt + 2 * bitmapRoom(units) <= length);
    if (!MAGIC.equals(memory.subarray(0, 8)) || madeFor !== units || !fits) {
      throw new CorruptionError("the readiness that was passed belongs to something else", "");
    }
    return new SharedReadiness(fd, memory, units, zerosAt);
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

/** Bytes that a bitmap of so many units has for itself. */
const bitmapRoom = (units: number): number => 8 * Math.ceil(bitmapBytes(units) / 8);
