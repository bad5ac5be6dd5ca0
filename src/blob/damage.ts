import { SourceError, describeError } from "../base/errors.ts";
import type { Blob, FetchOptions } from "./blob.ts";

/*
 * What of an image can't be had though its source answers: a cluster that can't be unpacked, a sector that can't be read. Who
 * fills a blob fetches everything around it, keeps such pieces in mind, and tells of them at the end.
 */

/** So many pieces are kept in mind; with more the image as a whole is not worth going on with. */
const MAX_PIECES = 4096;

/** So many are told one by one. */
const TOLD = 16;

/** A source of which so many requests in a row could not be read for once is taken to be down, and not damaged in places. */
const TROUBLED_IN_A_ROW = 16;

/** Whether a failure is one of the bytes asked for, so that others of the same object may well be read. */
export function isOfAPlace(error: unknown): error is SourceError {
  return error instanceof SourceError && (error.code === "image-damaged" || error.code === "source-io");
}

/** Bytes on unit boundaries, or up to the blob's end, that can't be had. */
export interface Damage {
  readonly blob: Blob;
  readonly offset: number;
  readonly length: number;
  readonly error: SourceError;
}

/** What is told of a piece that can't be had. */
export interface DamagedRange {
  /** bytes of the disk that the image holds */
  offset: number;
  length: number;
  reason: string;
}

/**
 * Makes ready what can be had of a range.
 * @returns the units that can't be had @throws any other failure: SourceError, IoError
 */
export async function fetchAround(
  blob: Blob,
  offset: number,
  length: number,
  options: FetchOptions,
): Promise<Damage[]> {
  const error = await failureOf(blob, offset, length, options);
  if (error === undefined) return [];
  const unit = blob.unitBytes;
  const from = Math.floor(offset / unit) * unit;
  const end = Math.min(Math.ceil((offset + length) / unit) * unit, blob.size);
  return narrow({ blob, offset: from, length: end - from, error }, options);
}

/** @param piece could not be had as a whole */
async function narrow(piece: Damage, options: FetchOptions): Promise<Damage[]> {
  const { blob, offset, length } = piece;
  const unit = blob.unitBytes;
  if (length <= unit) return [piece];
  const units = Math.ceil(length / unit);
  const middle = offset + Math.floor(units / 2) * unit;
  const end = offset + length;
  if (units > 2 && (await isDamagedThroughout(piece, [offset, middle, offset + (units - 1) * unit], options))) {
    return [piece];
  }
  const damages: Damage[] = [];
  for (const [from, to] of [
    [offset, middle],
    [middle, end],
  ]) {
    const failure = await failureOf(blob, from, to - from, options);
    if (failure !== undefined) {
      damages.push(...(await narrow({ blob, offset: from, length: to - from, error: failure }, options)));
    }
  }
  return joined(damages);
}

/** What is as damaged as the whole at both ends and in its middle is one large cluster, frame, or what a table tells of. */
async function isDamagedThroughout(
  { blob, offset, length, error }: Damage,
  starts: readonly number[],
  options: FetchOptions,
): Promise<boolean> {
  for (const at of starts) {
    const failure = await failureOf(blob, at, Math.min(blob.unitBytes, offset + length - at), options);
    if (failure?.message !== error.message) return false;
  }
  return true;
}

async function failureOf(
  blob: Blob,
  offset: number,
  length: number,
  options: FetchOptions,
): Promise<SourceError | undefined> {
  if (blob.isReady(offset, length)) return undefined;
  try {
    await blob.fetch(offset, length, options);
    return undefined;
  } catch (error) {
    if (isOfAPlace(error)) return error;
    throw error;
  }
}

/** Neighbours that fail in the same way become one. */
function joined(damages: readonly Damage[]): Damage[] {
  const result: Damage[] = [];
  for (const damage of damages) {
    const last = result.at(-1);
    const follows = last?.blob === damage.blob && last.offset + last.length === damage.offset;
    if (follows && last.error.message === damage.error.message) {
      result[result.length - 1] = { ...last, length: last.length + damage.length };
    } else result.push(damage);
  }
  return result;
}

/** The pieces of blobs that can't be had just now; the one that was tried longest ago is the first. */
export class DamagedPieces {
  readonly #pieces = new Set<Damage>();
  readonly #units = new Map<Blob, Set<number>>();
  /** What is told of them; undefined: they have changed since. */
  #told: DamagedRange[] | undefined;
  #bytes = 0;
  #troubledInARow = 0;

  get size(): number {
    return this.#pieces.size;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** As they are now. */
  list(): Damage[] {
    return [...this.#pieces];
  }

  /** What a request came to. @throws SourceError when it is more than a few places: to be taken as any other failure */
  note(damages: readonly Damage[]): void {
    // The same place may have been asked for twice at a time.
    for (const damage of damages.flatMap((found) => [...this.around(found.blob, found)])) {
      if (this.#pieces.size >= MAX_PIECES) {
        throw new SourceError(damage.error.code, `more than ${MAX_PIECES} places of the image can't be had`, {
          transient: damage.error.transient,
          cause: damage.error,
        });
      }
      this.#pieces.add(damage);
      this.#bytes += damage.length;
      this.#told = undefined;
      let units = this.#units.get(damage.blob);
      if (units === undefined) this.#units.set(damage.blob, (units = new Set()));
      for (const unit of unitsOf(damage)) units.add(unit);
    }
    const troubled = damages.find(({ error }) => error.transient);
    this.#troubledInARow = troubled === undefined ? 0 : this.#troubledInARow + 1;
    if (troubled !== undefined && this.#troubledInARow >= TROUBLED_IN_A_ROW) throw troubled.error;
  }

  forget(damage: Damage): void {
    if (!this.#pieces.delete(damage)) return;
    this.#bytes -= damage.length;
    this.#told = undefined;
    for (const unit of unitsOf(damage)) this.#units.get(damage.blob)!.delete(unit);
  }

  clear(): void {
    for (const damage of this.list()) this.forget(damage);
    this.#troubledInARow = 0;
  }

  /** What of a range, on unit boundaries, is not among them. */
  *around<T extends { offset: number; length: number }>(blob: Blob, piece: T): Generator<T> {
    const units = this.#units.get(blob);
    const unitBytes = blob.unitBytes;
    const end = piece.offset + piece.length;
    let from = piece.offset;
    for (let at = piece.offset; at < end; at += unitBytes) {
      if (units?.has(at / unitBytes) !== true) continue;
      if (at > from) yield { ...piece, offset: from, length: at - from };
      from = at + unitBytes;
    }
    if (from < end) yield { ...piece, offset: from, length: end - from };
  }

  /** In the order of the disk, the first of them. */
  told(): readonly DamagedRange[] {
    this.#told ??= joined(this.list().sort((a, b) => a.offset - b.offset))
      .slice(0, TOLD)
      .map(({ offset, length, error }) => ({ offset, length, reason: describeError(error) }));
    return this.#told;
  }

  /** To be called when everything else is there. @throws SourceError that tells of them all */
  demandNone(): void {
    const [first] = this.list().sort((a, b) => a.offset - b.offset);
    if (first === undefined) return;
    const { code, transient, hint } = first.error;
    throw new SourceError(code, `all was fetched but ${describeDamage(this.#bytes, first.offset)}`, {
      transient,
      cause: first.error,
      ...(hint === undefined ? {} : { hint }),
    });
  }
}

/** Begins a message whose cause says why. @param first where the first of them is */
export function describeDamage(bytes: number, first: number): string {
  return `${bytes} bytes of the image that can't be had, the first at byte ${first}`;
}

function* unitsOf({ blob, offset, length }: Damage): Generator<number> {
  for (let at = offset; at < offset + length; at += blob.unitBytes) yield at / blob.unitBytes;
}
