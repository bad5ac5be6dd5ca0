import { Neighbours } from "./neighbours.ts";
import { Readahead } from "./readahead.ts";
import { Strides, STRIDES_AHEAD } from "./strides.ts";

/** Readahead asks for nothing more while so much of it is under way. */
const MAX_UNDER_WAY_BYTES = 32 * 1024 * 1024;

/** Fetches what the readers of a blob will probably want next, as far as it is not there. */
export class ReadaheadFetcher {
  readonly #readahead = new Readahead();
  readonly #strides = new Strides();
  readonly #neighbours: Neighbours;
  readonly #size: number;
  readonly #isReady: (offset: number, length: number) => boolean;
  readonly #fetch: (offset: number, length: number) => Promise<void>;
  #underWayBytes = 0;

  /** @param blob sizes in bytes @param missBytes see `Neighbours` */
  constructor(
    { size, unitBytes }: { size: number; unitBytes: number },
    missBytes: number,
    isReady: (offset: number, length: number) => boolean,
    fetch: (offset: number, length: number) => Promise<void>,
  ) {
    this.#size = size;
    this.#neighbours = new Neighbours(missBytes, unitBytes);
    this.#isReady = isReady;
    this.#fetch = fetch;
  }

  /** A range was read. Cheap, never throws. */
  note(offset: number, length: number): void {
    this.#noteMiss(offset, length);
    const ahead = this.#readahead;
    if (ahead.note(offset, length)) this.#want(ahead.offset, ahead.length);
    const stride = this.#strides.note(offset, length);
    if (stride === 0) return;
    for (let each = 1; each <= STRIDES_AHEAD; each++) this.#want(offset + each * stride, length);
  }

  #noteMiss(offset: number, length: number): void {
    const neighbours = this.#neighbours;
    neighbours.noteRead(offset, length);
    if (this.#isReady(offset, length)) return;
    const beside = neighbours.missed(offset, length);
    if (beside < 0 || beside >= this.#size || this.#isReady(beside, neighbours.half)) return;
    neighbours.fetching(beside);
    queueMicrotask(() => this.#want(beside, neighbours.half)); // who reads makes his request first
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
