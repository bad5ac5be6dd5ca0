import type { BlockDevice } from "../block-device.ts";
import type { BufferPool, Chunk } from "./buffer-pool.ts";
import { CHUNK_DATA_BYTES, FRAGMENT_BYTES, LARGE_RECEIVE_BYTES, SYNC_BYTES } from "./limits.ts";
import { Command, CommandFlag, OFFSET_DATA_BYTES, REPLY_FLAG_DONE, SIMPLE_REPLY_BYTES } from "../../nbd/protocol.ts";
import { putOffsetDataHeader, putReadHeader, putSimpleReply } from "./reply-format.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import type { RequestMeter } from "./request-meter.ts";
import { LongRead, type SlowOperations } from "./slow-operations.ts";
import type { TransmissionContext } from "./transmission-context.ts";

/**
 * NBD_CMD_READ, by length and by what the client allows:
 *
 *     to 256 KiB ........ header and data together in the chunk that is being filled
 *     to 1 MiB .......... one header, data in several chunks
 *     above, structured . fragments of 1 MiB, each when the client took the ones before
 *     above, simple or DF one buffer for all of it, since nothing may be sent before all of it was read
 *
 * Each is tried at once first and goes to the slow operations when the device can't.
 */
export class Reads {
  readonly #device: BlockDevice;
  readonly #pool: BufferPool;
  readonly #writer: ReplyWriter;
  readonly #meter: RequestMeter;
  readonly #structured: boolean;
  readonly #headerBytes: number;
  readonly #slow: SlowOperations;
  /** A read that is being answered in fragments: `nextFragment` until it is through. */
  pending: LongRead | undefined;

  constructor(context: TransmissionContext, slow: SlowOperations) {
    this.#device = context.device;
    this.#pool = context.pool;
    this.#writer = context.writer;
    this.#meter = context.meter;
    this.#structured = context.structured;
    this.#headerBytes = context.structured ? OFFSET_DATA_BYTES : SIMPLE_REPLY_BYTES;
    this.#slow = slow;
  }

  /** @returns bytes of the payload budget that must be free first, or 0: the read is under way */
  start(cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number): number {
    if (length <= CHUNK_DATA_BYTES) {
      this.#small(cookieHigh, cookieLow, offset, length);
    } else if (length <= FRAGMENT_BYTES) {
      this.#medium(cookieHigh, cookieLow, offset, length);
    } else if (this.#structured && (flags & CommandFlag.df) === 0) {
      this.pending = new LongRead(cookieHigh, cookieLow, offset, length);
    } else {
      return this.#whole(cookieHigh, cookieLow, offset, length);
    }
    return 0;
  }

  /** @returns bytes of the fragment */
  nextFragment(read: LongRead): number {
    const length = Math.min(FRAGMENT_BYTES, read.remaining);
    const offset = read.offset;
    read.offset += length;
    read.remaining -= length;
    const last = read.remaining === 0;
    try {
      const flags = last && read.pending === 0 ? REPLY_FLAG_DONE : 0;
      if (!this.#tryPieces(read.cookieHigh, read.cookieLow, offset, length, flags)) {
        void this.#slow.readFragment(read, offset, length);
      } else if (flags === REPLY_FLAG_DONE) {
        this.pending = undefined;
        this.#meter.readEnded(read.began, read.length, read.fromSource);
        return length;
      }
    } catch (error) {
      read.failure = { error, offset, length };
    }
    if (last || read.failure !== undefined) {
      this.pending = undefined;
      read.issued = true;
      this.#slow.finishLongRead(read);
    }
    return length;
  }

  #small(cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    const header = this.#headerBytes;
    const writer = this.#writer;
    const chunk = writer.reserve(header + length);
    const at = writer.at;
    try {
      if (this.#device.tryRead(offset, length, chunk.io, at + header)) {
        putReadHeader(chunk.view, at, this.#structured, cookieHigh, cookieLow, offset, length);
        writer.commit(header + length);
        this.#meter.reads++;
        this.#meter.readBytes += length;
        return;
      }
    } catch (error) {
      this.#slow.fail(Command.read, cookieHigh, cookieLow, 0, offset, length, error);
      return;
    }
    void this.#slow.read(cookieHigh, cookieLow, offset, length);
  }

  #medium(cookieHigh: number, cookieLow: number, offset: number, length: number): void {
    try {
      if (this.#tryPieces(cookieHigh, cookieLow, offset, length, REPLY_FLAG_DONE)) {
        this.#meter.reads++;
        this.#meter.readBytes += length;
        return;
      }
    } catch (error) {
      this.#slow.fail(Command.read, cookieHigh, cookieLow, 0, offset, length, error);
      return;
    }
    void this.#slow.read(cookieHigh, cookieLow, offset, length);
  }

  #whole(cookieHigh: number, cookieLow: number, offset: number, length: number): number {
    const header = this.#headerBytes;
    const total = header + length;
    const chunk = total <= LARGE_RECEIVE_BYTES ? this.#pool.large() : this.#pool.payload(total);
    if (chunk === undefined) return total;
    try {
      if (length <= SYNC_BYTES && this.#device.tryRead(offset, length, chunk.io, header)) {
        putReadHeader(chunk.view, 0, this.#structured, cookieHigh, cookieLow, offset, length);
        this.#writer.add(chunk, 0, total);
        this.#meter.reads++;
        this.#meter.readBytes += length;
        return 0;
      }
    } catch (error) {
      this.#pool.release(chunk);
      this.#slow.fail(Command.read, cookieHigh, cookieLow, 0, offset, length, error);
      return 0;
    }
    void this.#slow.readInto(chunk, 0, cookieHigh, cookieLow, offset, length);
    return 0;
  }

  /** Reads into as many chunks as it takes and sends them as one reply chunk, or does nothing and returns false. */
  #tryPieces(cookieHigh: number, cookieLow: number, offset: number, length: number, flags: number): boolean {
    const pieces: Chunk[] = [];
    let complete = false;
    try {
      for (let done = 0; done < length; done += CHUNK_DATA_BYTES) {
        const piece = this.#pool.chunk();
        pieces.push(piece);
        const bytes = Math.min(CHUNK_DATA_BYTES, length - done);
        if (!this.#device.tryRead(offset + done, bytes, piece.io, 0)) return false;
      }
      complete = true;
    } finally {
      if (!complete) for (const piece of pieces) this.#pool.release(piece);
    }
    const writer = this.#writer;
    const header = writer.reserve(OFFSET_DATA_BYTES);
    if (this.#structured) putOffsetDataHeader(header.view, writer.at, flags, cookieHigh, cookieLow, offset, length);
    else putSimpleReply(header.view, writer.at, 0, cookieHigh, cookieLow);
    writer.commit(this.#headerBytes);
    for (let i = 0; i < pieces.length; i++) {
      writer.add(pieces[i], 0, Math.min(CHUNK_DATA_BYTES, length - i * CHUNK_DATA_BYTES));
    }
    return true;
  }
}
