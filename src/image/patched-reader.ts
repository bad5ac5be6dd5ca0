import type { ReadOptions, Sink } from "../backend/backend.ts";
import { firstIndex } from "../base/first-index.ts";
import type { ImageReader } from "./image-format.ts";
import { sendZeros } from "./read-bytes.ts";

interface Patch {
  offset: number;
  length: number;
  /** undefined: zeros */
  bytes: Buffer | undefined;
}

/** An object with other bytes in some places, as if they had been written to it. Behind its old end it has zeros. */
export class PatchedReader implements ImageReader {
  readonly #source: ImageReader;
  #size: number;
  /** In ascending order, none in another. */
  readonly #patches: Patch[] = [];

  constructor(source: ImageReader) {
    this.#source = source;
    this.#size = source.size;
  }

  get size(): number {
    return this.#size;
  }

  /** Makes it so long at least. */
  extend(size: number): void {
    this.#size = Math.max(this.#size, size);
  }

  /** @param bytes as many as `length`; undefined: zeros */
  write(offset: number, length: number, bytes: Buffer | undefined): void {
    const end = offset + length;
    const first = this.#firstBehind(offset);
    const last = this.#patches.findIndex((patch, index) => index >= first && patch.offset >= end);
    const covered = this.#patches.slice(first, last < 0 ? undefined : last);
    const kept = covered.flatMap((patch) => [part(patch, patch.offset, offset), part(patch, end, endOf(patch))]);
    const all = [...kept, { offset, length, bytes }].filter((patch) => patch.length > 0);
    this.#patches.splice(first, covered.length, ...all.sort((a, b) => a.offset - b.offset));
    this.extend(end);
  }

  async read(offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    const end = offset + length;
    for (let at = offset, next = this.#firstBehind(offset); at < end; next++) {
      const patch = this.#patches.at(next);
      const start = Math.min(end, patch?.offset ?? end);
      if (start > at) await this.#readSource(at, start - at, sink, options);
      at = Math.max(at, start);
      if (patch === undefined || at === end) continue;
      const taken = part(patch, at, end);
      if (taken.bytes === undefined) await sendZeros(taken.length, sink);
      else await sink(taken.bytes);
      at += taken.length;
    }
  }

  async #readSource(offset: number, length: number, sink: Sink, options: ReadOptions | undefined): Promise<void> {
    const inside = Math.max(0, Math.min(length, this.#source.size - offset));
    if (inside > 0) await this.#source.read(offset, inside, sink, options);
    await sendZeros(length - inside, sink);
  }

  /** The first patch that ends behind an offset. */
  #firstBehind(offset: number): number {
    return firstIndex(this.#patches.length, (index) => endOf(this.#patches[index]) > offset);
  }
}

const endOf = ({ offset, length }: Patch): number => offset + length;

/** What of a patch lies in [from, to). */
function part(patch: Patch, from: number, to: number): Patch {
  const offset = Math.max(from, patch.offset);
  const length = Math.max(0, Math.min(to, endOf(patch)) - offset);
  const at = offset - patch.offset;
  return { offset, length, bytes: patch.bytes?.subarray(at, at + length) };
}
