import { UllageError } from "../base/errors.ts";

/** ms since the first read; offset and length in bytes */
export type TracedRead = readonly [number, number, number];

/** What was read of an image when a disk made from it was first used, in this order: what the next one should fetch first. */
export interface BootTrace {
  /** of the disk */
  imageBytes: number;
  /** RFC 3339 */
  recordedAt: string;
  reads: readonly TracedRead[];
}

/** Reads are told apart at this grain: what was read once need not be written down again. */
const GRAIN_BYTES = 64 * 1024;
/** Of one trace; a recording that is full goes on for nothing. */
export const maxTracedReads = 65_536;

/** Notes first reads. Allocates only for those. */
export class TraceRecorder {
  readonly #imageBytes: number;
  readonly #seen: Uint8Array;
  readonly #now: () => number;
  readonly #reads: [number, number, number][] = [];
  #startedAt = Number.NaN;

  /** @param now monotonic ms */
  constructor(imageBytes: number, now: () => number) {
    this.#imageBytes = imageBytes;
    this.#seen = new Uint8Array(Math.ceil(imageBytes / GRAIN_BYTES / 8));
    this.#now = now;
  }

  get count(): number {
    return this.#reads.length;
  }

  note(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#imageBytes);
    const last = Math.ceil(end / GRAIN_BYTES);
    let fresh = false;
    for (let grain = Math.floor(offset / GRAIN_BYTES); grain < last; grain++) {
      const bit = 1 << (grain & 7);
      fresh ||= (this.#seen[grain >> 3] & bit) === 0;
      this.#seen[grain >> 3] |= bit;
    }
    if (!fresh || this.#reads.length >= maxTracedReads) return;
    const now = this.#now();
    if (this.#reads.length === 0) this.#startedAt = now;
    const before = this.#reads.at(-1);
    if (before !== undefined && before[1] + before[2] === offset) before[2] += end - offset;
    else this.#reads.push([Math.round(now - this.#startedAt), offset, end - offset]);
  }

  trace(recordedAt: string): BootTrace {
    return { imageBytes: this.#imageBytes, recordedAt, reads: this.#reads.map(([...read]) => read) };
  }
}

/**
 * A trace that came from elsewhere.
 * @param imageBytes of the image that it is to be for
 * @throws UllageError `bad-trace`
 */
export function checkTrace(raw: unknown, imageBytes: number): BootTrace {
  const { imageBytes: size, recordedAt, reads } = (raw ?? {}) as Record<string, unknown>;
  if (!Array.isArray(reads) || typeof recordedAt !== "string" || Number.isNaN(Date.parse(recordedAt))) {
    throw badTrace("it is not what `ullage image trace export` writes");
  }
  if (size !== imageBytes) throw badTrace(`it is of an image of ${String(size)} bytes, and this one has ${imageBytes}`);
  if (reads.length > maxTracedReads) throw badTrace(`it has more than ${maxTracedReads} reads`);
  const wrong = (reads as unknown[]).find((read) => !isRead(read, imageBytes));
  if (wrong !== undefined) throw badTrace(`${JSON.stringify(wrong)} is no read of the image`);
  return { imageBytes, recordedAt, reads: reads as TracedRead[] };
}

function isRead(read: unknown, imageBytes: number): boolean {
  if (!Array.isArray(read) || read.length !== 3) return false;
  const [ms, offset, length] = read as unknown[];
  const whole = [ms, offset, length].every((value) => Number.isSafeInteger(value) && (value as number) >= 0);
  return whole && (length as number) > 0 && (offset as number) + (length as number) <= imageBytes;
}

function badTrace(why: string): UllageError {
  return new UllageError("bad-trace", `the trace can't be used: ${why}`, {
    hint: "`ullage image trace record VOLUME` makes one",
  });
}
