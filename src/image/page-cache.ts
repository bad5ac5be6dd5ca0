import type { ReadOptions } from "../backend/backend.ts";
import { SharedWork } from "../base/shared-work.ts";
import type { ImageReader } from "./image-format.ts";
import { readBytes } from "./read-bytes.ts";

/*
 * An image's tables, in pages of the object that holds them. Each page is read once at a time, whoever needs it; pages
 * that are needed together and lie near each other come with one request. The least recently used go when there are too
 * many. A page that could not be read is asked for again by the next one who needs it.
 */

const PAGE_BYTES = 64 * 1024;

/** Of one image. */
const BUDGET_BYTES = 4 * 1024 * 1024;

/** Missing pages with up to so many pages between them are read at once. */
const MAX_GAP_PAGES = 2;

/** One request brings at most this. */
const MAX_REQUEST_PAGES = 32;

type Pages = Map<number, Buffer>;

export interface ByteRange {
  offset: number;
  length: number;
}

export class PageCache {
  readonly #source: ImageReader;
  /** In the order of their last use. */
  readonly #pages = new Map<number, Buffer>();
  readonly #coming = new Map<number, SharedWork<Pages>>();

  constructor(source: ImageReader) {
    this.#source = source;
  }

  /** Bytes of the object that the cache is about. */
  get size(): number {
    return this.#source.size;
  }

  /** One range; it must lie within the object. */
  async bytes(offset: number, length: number, options?: ReadOptions): Promise<Buffer> {
    return (await this.view([{ offset, length }], options)).bytes(offset, length);
  }

  /** Everything in these ranges at once; they must lie within the object. */
  async view(ranges: readonly ByteRange[], options: ReadOptions = {}): Promise<PageView> {
    const wanted = new Set<number>();
    for (const { offset, length } of ranges) {
      if (offset < 0 || offset + length > this.size) throw new RangeError(`${offset}+${length} of ${this.size} bytes`);
      for (let page = Math.floor(offset / PAGE_BYTES); page * PAGE_BYTES < offset + length; page++) wanted.add(page);
    }
    const view = new PageView();
    const joined = new Set<SharedWork<Pages>>();
    const missing: number[] = [];
    for (const page of wanted) {
      const known = this.#pages.get(page);
      const work = this.#coming.get(page);
      if (known !== undefined) view.set(page, this.#keep(page, known));
      else if (work !== undefined && !work.aborted) joined.add(work);
      else missing.push(page);
    }
    const own = runsOf(missing).map(([first, end]) => this.#load(first, end, options));
    const outcomes = await Promise.allSettled([...own, ...joined].map((work) => work.join(options.signal)));
    const failed = outcomes.findIndex(({ status }) => status === "rejected");
    // What failed for somebody else, who may have been in the background, is tried again for us.
    if (failed >= own.length && options.signal?.aborted !== true) return this.view(ranges, options);
    for (const outcome of outcomes) {
      if (outcome.status === "rejected") throw outcome.reason;
      for (const [page, bytes] of outcome.value) if (wanted.has(page)) view.set(page, bytes);
    }
    return view;
  }

  #load(first: number, end: number, options: ReadOptions): SharedWork<Pages> {
    const { background = false, onRetry } = options;
    const work: SharedWork<Pages> = new SharedWork(async (signal) => {
      try {
        const offset = first * PAGE_BYTES;
        const length = Math.min(end * PAGE_BYTES, this.size) - offset;
        const read = { signal, background, ...(onRetry === undefined ? {} : { onRetry }) };
        const bytes = await readBytes(this.#source, offset, length, read);
        const pages: Pages = new Map();
        for (let page = first; page < end; page++) {
          const at = (page - first) * PAGE_BYTES;
          // A copy: a page must not keep alive all that came with it.
          pages.set(page, this.#keep(page, Buffer.from(bytes.subarray(at, at + PAGE_BYTES))));
        }
        return pages;
      } finally {
        for (let page = first; page < end; page++) if (this.#coming.get(page) === work) this.#coming.delete(page);
      }
    });
    for (let page = first; page < end; page++) this.#coming.set(page, work);
    return work;
  }

  #keep(page: number, bytes: Buffer): Buffer {
    this.#pages.delete(page);
    this.#pages.set(page, bytes);
    while (this.#pages.size * PAGE_BYTES > BUDGET_BYTES) this.#pages.delete(this.#pages.keys().next().value!);
    return bytes;
  }
}

/** Pages that stay for as long as somebody works with them. */
export class PageView {
  readonly #pages = new Map<number, Buffer>();

  set(page: number, bytes: Buffer): void {
    this.#pages.set(page, bytes);
  }

  /** A range that the view was asked for; do not change it. */
  bytes(offset: number, length: number): Buffer {
    const first = Math.floor(offset / PAGE_BYTES);
    const at = offset - first * PAGE_BYTES;
    if (at + length <= PAGE_BYTES) return this.#page(first).subarray(at, at + length);
    const parts: Buffer[] = [];
    for (let page = first; page * PAGE_BYTES < offset + length; page++) parts.push(this.#page(page));
    return Buffer.concat(parts).subarray(at, at + length);
  }

  #page(page: number): Buffer {
    const bytes = this.#pages.get(page);
    if (bytes === undefined) throw new RangeError(`page ${page} was not asked for`);
    return bytes;
  }
}

/** [first, end) of each request that brings all of the pages. */
function runsOf(pages: number[]): [number, number][] {
  const runs: [number, number][] = [];
  for (const page of pages.sort((a, b) => a - b)) {
    const last = runs.at(-1);
    const near = last !== undefined && page - last[1] <= MAX_GAP_PAGES && page - last[0] < MAX_REQUEST_PAGES;
    if (near) last[1] = page + 1;
    else runs.push([page, page + 1]);
  }
  return runs;
}
