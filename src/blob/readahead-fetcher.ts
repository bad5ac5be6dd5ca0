import { Readahead } from "./readahead.ts";

/** Readahead asks for nothing more while so much of it is under way. */
const MAX_UNDER_WAY_BYTES = 32 * 1024 * 1024;

/** Fetches what the readers of a blob will probably want next, as far as it is not there. */
export class ReadaheadFetcher {
  readonly #readahead = new Readahead();
  readonly #isReady: (offset: number, length: number) => boolean;
  readonly #fetch: (offset: number, length: number) => Promise<void>;
  #underWayBytes = 0;

  constructor(
    isReady: (offset: number, length: number) => boolean,
    fetch: (offset: number, length: number) => Promise<void>,
  ) {
    this.#isReady = isReady;
    this.#fetch = fetch;
  }

  /** A range was read. Cheap, never throws. */
  note(offset: number, length: number): void {
    const ahead = this.#readahead;
    if (!ahead.note(offset, length) || this.#isReady(ahead.offset, ahead.length)) return;
    if (this.#underWayBytes < MAX_UNDER_WAY_BYTES) void this.#run(ahead.offset, ahead.length);
  }

  async #run(offset: number, length: number): Promise<void> {
    this.#underWayBytes += length;
    // A failure is met again, and reported, by the read that needs these bytes.
    await this.#fetch(offset, length).catch(() => undefined);
    this.#underWayBytes -= length;
  }
}
