import type { Blob } from "../../blob/blob.ts";
import type { TracedRead } from "../../blob/boot-trace.ts";

/** What hydration knows of the volume that it fills. */
export interface HydrationTarget {
  /** The volume's id: 32 hex digits. */
  readonly id: string;
  /** The blobs that its owner map may refer to, the same objects every time. */
  blobs(): readonly Blob[];
  /**
   * The first range at or behind `from` that the volume's map takes from the blob: where a read would go to the blob.
   * May be shorter than it could be, and go beyond the blob's end.
   */
  neededRun(blob: Blob, from: number): { offset: number; length: number } | undefined;
  /** Makes the map durable, with everything that was answered before the call. */
  flush(): Promise<void>;
}

/** What the volume needs of its blobs, in whole units (the last one of a blob counted short). */
export interface Need {
  bytes: number;
  readyBytes: number;
  /** All of it would survive a power cut. */
  durable: boolean;
}

/** What one request asks for, bytes. */
export interface Piece {
  offset: number;
  length: number;
}

/** Who follows a trace runs ahead of its reader by more than this soon, so that within it the order matters little. */
const TRACE_BATCH_BYTES = 2 * 1024 * 1024;

/** A step looks at this many bytes at most; after so many steps the event loop gets its turn. */
const STEP_BYTES = 64 * 1024 * 1024;
const STEPS_PER_SLICE = 128;

/**
 * Walks over the units that the volume needs, or all when they have to be checked as a whole, run by run: [offset, end) in
 * bytes, on unit boundaries or the blob's end.
 */
async function* neededUnits(
  target: HydrationTarget,
  blob: Blob,
): AsyncGenerator<{ offset: number; end: number }, void, undefined> {
  const unit = blob.unitBytes;
  // Only a blob that is here as a whole can be compared with its digest.
  const whole = blob.check?.state === "unchecked";
  let at = 0;
  for (let step = 1; ; step++) {
    const run = whole ? { offset: at, length: blob.size - at } : target.neededRun(blob, at);
    if (run === undefined || run.offset >= blob.size) return;
    const offset = Math.max(at, Math.floor(run.offset / unit) * unit);
    const runEnd = Math.min(run.offset + run.length, offset + STEP_BYTES);
    const end = Math.min(Math.ceil(runEnd / unit) * unit, blob.size);
    yield { offset, end };
    at = end;
    if (step % STEPS_PER_SLICE === 0) await new Promise(setImmediate);
  }
}

/** Whether the volume needs something of a range on unit boundaries that is not ready. */
export function isMissing(target: HydrationTarget, blob: Blob, { offset, length }: Piece): boolean {
  if (blob.isReady(offset, length)) return false;
  if (blob.check?.state === "unchecked") return true;
  const run = target.neededRun(blob, offset);
  return run !== undefined && run.offset < offset + length;
}

export async function measureNeed(target: HydrationTarget): Promise<Need> {
  const need = { bytes: 0, readyBytes: 0, durable: true };
  for (const blob of target.blobs()) {
    for await (const { offset, end } of neededUnits(target, blob)) {
      need.bytes += end - offset;
      for (let at = offset; at < end;) {
        const run = blob.readyRun(at, end - at);
        if (blob.isReady(at, run)) need.readyBytes += run;
        at += run;
      }
      need.durable &&= blob.isDurable(offset, end - offset);
    }
  }
  return need;
}

/**
 * What is needed and not ready of the ranges that were read when a disk like this was first used, in whole units and as
 * requests of at most `maxBytes`; what comes twice is asked for once. In the order of the reads, but for a batch at a time,
 * within which neighbours become one request.
 */
export async function* tracedPieces(
  target: HydrationTarget,
  blob: Blob,
  reads: readonly TracedRead[],
  maxBytes: number,
): AsyncGenerator<Piece, void, undefined> {
  const unit = blob.unitBytes;
  const asked = new Set<number>();
  let batch: number[] = [];
  for (const [index, [, offset, length]] of reads.entries()) {
    if (index % STEPS_PER_SLICE === 0) await new Promise(setImmediate);
    const end = Math.min(offset + length, blob.size);
    for (let at = Math.floor(offset / unit) * unit; at < end; at += unit) {
      if (asked.has(at)) continue;
      asked.add(at);
      const bytes = Math.min(unit, blob.size - at);
      const run = target.neededRun(blob, at);
      if (run !== undefined && run.offset < at + bytes && !blob.isReady(at, bytes)) batch.push(at);
    }
    if (batch.length * unit < TRACE_BATCH_BYTES) continue;
    yield* joined(unitsAt(batch, blob), maxBytes);
    batch = [];
  }
  yield* joined(unitsAt(batch, blob), maxBytes);
}

/** @param starts where the units begin, in any order */
function* unitsAt(starts: readonly number[], blob: Blob): Generator<Piece, void, undefined> {
  for (const offset of starts.toSorted((a, b) => a - b)) {
    yield { offset, length: Math.min(blob.unitBytes, blob.size - offset) };
  }
}

/** What is needed and not ready, as requests of at most `maxBytes`, in ascending order. */
export function missingPieces(
  target: HydrationTarget,
  blob: Blob,
  maxBytes: number,
): AsyncGenerator<Piece, void, undefined> {
  return joined(missingRuns(target, blob, maxBytes), maxBytes);
}

async function* missingRuns(
  target: HydrationTarget,
  blob: Blob,
  maxBytes: number,
): AsyncGenerator<Piece, void, undefined> {
  for await (const { offset, end } of neededUnits(target, blob)) {
    for (let at = offset; at < end;) {
      let length = blob.readyRun(at, end - at);
      if (!blob.isReady(at, length)) {
        length = Math.min(length, maxBytes);
        yield { offset: at, length };
      }
      at += length;
    }
  }
}

/** Neighbours become one, of at most `maxBytes`. */
async function* joined(
  pieces: AsyncIterable<Piece> | Iterable<Piece>,
  maxBytes: number,
): AsyncGenerator<Piece, void, undefined> {
  let whole: Piece | undefined;
  for await (const { offset, length } of pieces) {
    if (whole !== undefined && whole.offset + whole.length === offset && whole.length + length <= maxBytes) {
      whole.length += length;
      continue;
    }
    if (whole !== undefined) yield whole;
    whole = { offset, length };
  }
  if (whole !== undefined) yield whole;
}
