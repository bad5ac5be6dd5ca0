import { Readahead } from "./readahead.ts";
import { Strides, STRIDES_AHEAD } from "./strides.ts";

/** Readahead asks for nothing more while so much of it is under way. */
const MAX_UNDER_WAY_BYTES = 32 * 1024 * 1024;

/** Fetches what the readers of a blob will probably want next, as far as it is not there. */
export class ReadaheadFetcher {
  readonly #readahead = new Readahead();
  readonly #strides = new Strides();
  readonly #size: number;
  readonly #isReady: (offset: number, length: number) => boolean;
  readonly #fetch: (offset: number, length: number) => Promise<void>;
  #underWayBytes = 0;

  /** @param size of the blob, bytes */
  constructor(
    size: number,
    isReady: (offset: number, length: number) => boolean,
    fetch: (offset: number, length: number) => Promise<void>,
  ) {
    this.#size = size;
    this.#isReady = isReady;
    this.#fetch = fetch;
  }

  /** A range was read. Cheap, never throws. */
  note(offset: number, length: number): void {
    const ahead = this.#readahead;
    if (ahead.note(offset, length)) this.#want(ahead.offset, ahead.length);
    const stride = this.#strides.note(offset, length);
    if (stride === 0) return;
    for (let each = 1; each <= STRIDES_AHEAD; each++) this.#want(offset + each * stride, length);
  }

  #want(offset: number, length: number): void {
    if (offset < 0 || offset >= this.#size || this.#isReady(offset, length)) return;
    if (this.#underWayBytes < MAX_UNDER_WAY_BYTES) void this.#run(offset, length);
  }

  async #run(offset: number, length: number): Promise<void> {
    this.#underWayBytes += length;
    // A failure is met again, and reported, by the read that needs these bytes.
    await this.#fetch(offset, length).catch(() => undefined);
    this.#underWayBytes -= length;
  }
}
