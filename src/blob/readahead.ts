/*
 * Recognises sequential readers among the reads of a blob. A stream is a place where the next read is expected; a read
 * that comes near it moves it on, any other read opens a new stream in the place of the one that was quiet longest. So
 * several readers may be interleaved, and random reads only ever turn over the table.
 *
 * Once a stream has covered START_BYTES, the window ahead of it is fetched; each time the reader has come half-way into
 * it the window doubles, MIN_WINDOW_BYTES to MAX_WINDOW_BYTES.
 */

/** Streams told apart at once. */
const STREAMS = 8;

/** A stream is believed after so many bytes in sequence; booting systems read many short runs that go nowhere. */
const START_BYTES = 128 * 1024;

/** Reads at a queue depth overtake each other by this much at most and are still one stream. */
const SLACK_BYTES = 256 * 1024;

const MIN_WINDOW_BYTES = 256 * 1024;
const MAX_WINDOW_BYTES = 8 * 1024 * 1024;

interface Stream {
  /** One past the highest byte read. */
  next: number;
  /** Bytes read in sequence so far. */
  covered: number;
  /** Bytes to be fetched ahead of `next`; 0 until the stream is believed. */
  window: number;
  /** One past the last byte asked for ahead. */
  ahead: number;
  /** Number of the read that moved it last. */
  usedAt: number;
}

export class Readahead {
  readonly #streams: Stream[] = Array.from({ length: STREAMS }, () => ({
    next: -Infinity,
    covered: 0,
    window: 0,
    ahead: 0,
    usedAt: 0,
  }));
  #reads = 0;
  /** After `note` returned true: the range to be fetched, in bytes. It may go beyond the blob's end. */
  offset = 0;
  length = 0;

  /** Notes a read. Allocates nothing. @returns whether `offset` and `length` are to be fetched now */
  note(offset: number, length: number): boolean {
    this.#reads++;
    const stream = this.#find(offset);
    if (stream === undefined) {
      this.#open(offset + length);
      return false;
    }
    const next = Math.max(stream.next, offset + length);
    stream.covered += Math.min(next - stream.next, length);
    stream.next = next;
    stream.usedAt = this.#reads;
    if (stream.covered < START_BYTES) return false;
    if (stream.window > 0 && stream.ahead - next > stream.window / 2) return false;
    stream.window = stream.window === 0 ? MIN_WINDOW_BYTES : Math.min(stream.window * 2, MAX_WINDOW_BYTES);
    this.offset = Math.max(stream.ahead, next);
    this.length = next + stream.window - this.offset;
    stream.ahead = next + stream.window;
    return this.length > 0;
  }

  #find(offset: number): Stream | undefined {
    for (const stream of this.#streams) {
      if (Math.abs(offset - stream.next) <= SLACK_BYTES) return stream;
    }
    return undefined;
  }

  #open(next: number): void {
    let oldest = this.#streams[0];
    for (const stream of this.#streams) if (stream.usedAt < oldest.usedAt) oldest = stream;
    oldest.next = next;
    oldest.covered = 0;
    oldest.window = 0;
    oldest.ahead = 0;
    oldest.usedAt = this.#reads;
  }
}
