import { errnoOf } from "../../base/errors.ts";
import { ExtentState } from "../block-device.ts";
import type { Chunk } from "./buffer-pool.ts";
import { CHUNK_BYTES } from "./limits.ts";
import {
  Command,
  CommandFlag,
  NbdError,
  nbdErrorOf,
  OFFSET_DATA_BYTES,
  SIMPLE_REPLY_BYTES,
} from "../../nbd/protocol.ts";
import { putOffsetDataHeader, putReadHeader, writeDone, writeError, writeNone } from "./reply-format.ts";
import { commandNames } from "./request-gate.ts";
import type { TransmissionContext } from "./transmission-context.ts";

/** A payload above this that has a buffer of its own takes the buffer along instead of being copied. */
const DETACH_BYTES = 64 * 1024;

/** Runs that are looked at to find out whether a read has to wait for the source. */
const SOURCE_RUNS = 256;

/** A read that is answered in several fragments; the last word is said when all of them have ended. */
export class LongRead {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** Of the next fragment. */
  offset: number;
  remaining: number;
  /** bytes of all fragments */
  readonly length: number;
  readonly began = performance.now();
  /** Some fragment had to wait for the source. */
  fromSource = false;
  /** Fragments that wait for the device. */
  pending = 0;
  /** No more fragments will be started. */
  issued = false;
  failure: { error: unknown; offset: number; length: number } | undefined;

  constructor(cookieHigh: number, cookieLow: number, offset: number, length: number) {
    this.cookieHigh = cookieHigh;
    this.cookieLow = cookieLow;
    this.offset = offset;
    this.remaining = length;
    this.length = length;
  }
}

/**
 * The operations of a connection that the device could not do at once. Each holds its own data until it ends: small
 * ones share a chunk (`slab`), which is returned when the last of them has ended. When the connection breaks they run
 * to their end unanswered, and only then is the connection released from the device (durability rule 25).
 */
export class SlowOperations {
  readonly #context: TransmissionContext;
  readonly #onEnd: () => void;
  count = 0;
  bytes = 0;
  #abandoned = false;
  #slab: Chunk | undefined;
  #slabAt = 0;

  /** @param onEnd an operation has ended, and its reply is in the writer */
  constructor(context: TransmissionContext, onEnd: () => void) {
    this.#context = context;
    this.#onEnd = onEnd;
  }

  /** Replies are dropped from now on. */
  abandon(): void {
    this.#abandoned = true;
    this.#dropSlab();
  }

  /** Answers with the device's error. */
  fail(
    command: number,
    cookieHigh: number,
    cookieLow: number,
    flags: number,
    offset: number,
    length: number,
    error: unknown,
  ): void {
    if (this.#abandoned) return;
    const errno = errnoOf(error);
    this.#context.meter.failed(command, errno);
    let code = nbdErrorOf(errno);
    // "The server SHOULD NOT return NBD_ENOTSUP except" for a fast zero.
    if (code === NbdError.ENOTSUP && (flags & CommandFlag.fastZero) === 0) code = NbdError.EIO;
    const what = `${commandNames[command]} of ${length} bytes at ${offset}`;
    const { writer, structured } = this.#context;
    writeError(writer, structured, cookieHigh, cookieLow, code, `${what} failed: ${errno}`);
    if (code !== NbdError.ENOTSUP) this.#context.failed(what, error);
  }

  async read(cookieHigh: number, cookieLow: number, offset: number, length: number): Promise<void> {
    const total = this.#headerBytes + length;
    if (total <= CHUNK_BYTES) {
      const chunk = this.#take(total);
      await this.readInto(chunk, this.#slabAt - total, cookieHigh, cookieLow, offset, length);
    } else {
      await this.readInto(this.#context.pool.fragment(), 0, cookieHigh, cookieLow, offset, length);
    }
  }

  /** Reads to `chunk`, whose reference it takes, behind a header that starts at `at`. */
  async readInto(
    chunk: Chunk,
    at: number,
    cookieHigh: number,
    cookieLow: number,
    offset: number,
    length: number,
  ): Promise<void> {
    const { device, pool, writer, structured, meter } = this.#context;
    const header = this.#headerBytes;
    const began = performance.now();
    this.#begin(length);
    try {
      const fromSource = this.#waitsForSource(offset, length);
      await device.read(offset, length, chunk.io, at + header);
      meter.readEnded(began, length, fromSource);
      if (this.#abandoned) {
        pool.release(chunk);
      } else {
        putReadHeader(chunk.view, at, structured, cookieHigh, cookieLow, offset, length);
        writer.add(chunk, at, at + header + length);
      }
    } catch (error) {
      pool.release(chunk);
      this.fail(Command.read, cookieHigh, cookieLow, 0, offset, length, error);
    }
    this.#end(length);
  }

  async readFragment(read: LongRead, offset: number, length: number): Promise<void> {
    const { device, pool, writer } = this.#context;
    const chunk = pool.fragment();
    read.pending++;
    this.#begin(length);
    try {
      read.fromSource ||= this.#waitsForSource(offset, length);
      await device.read(offset, length, chunk.io, OFFSET_DATA_BYTES);
      if (this.#abandoned) {
        pool.release(chunk);
      } else {
        putOffsetDataHeader(chunk.view, 0, 0, read.cookieHigh, read.cookieLow, offset, length);
        writer.add(chunk, 0, OFFSET_DATA_BYTES + length);
      }
    } catch (error) {
      pool.release(chunk);
      read.failure ??= { error, offset, length };
    }
    read.pending--;
    this.finishLongRead(read);
    this.#end(length);
  }

  /** Says the last word when every fragment has ended. */
  finishLongRead(read: LongRead): void {
    if (!read.issued || read.pending > 0 || this.#abandoned) return;
    if (read.failure === undefined) {
      this.#context.meter.readEnded(read.began, read.length, read.fromSource);
      writeNone(this.#context.writer, read.cookieHigh, read.cookieLow);
    } else {
      const { error, offset, length } = read.failure;
      this.fail(Command.read, read.cookieHigh, read.cookieLow, 0, offset, length, error);
    }
  }

  /** A write whose payload is complete in the receive buffer, before its unparsed bytes. */
  write(cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number, payloadAt: number): void {
    const { device, pool, received } = this.#context;
    let chunk: Chunk;
    let at: number;
    if (length > DETACH_BYTES && received.chunk !== pool.shared) {
      chunk = received.detach();
      at = payloadAt;
    } else {
      chunk = this.#take(length);
      at = this.#slabAt - length;
      chunk.bytes.set(received.chunk.bytes.subarray(payloadAt, payloadAt + length), at);
    }
    void this.#perform(Command.write, cookieHigh, cookieLow, flags, offset, length, async () => {
      try {
        await device.write(offset, length, chunk.io, at);
      } finally {
        pool.release(chunk);
      }
    });
  }

  /** A block status that waits for what the source tells of zeros. @param tell answers it, about so many bytes */
  async learn(learning: Promise<number>, tell: (length: number) => void): Promise<void> {
    this.#begin(0);
    try {
      const length = await learning;
      if (!this.#abandoned) tell(length);
    } catch (error) {
      this.#context.defect(error);
    }
    this.#end(0);
  }

  /** The flush of a write with FUA that is done already. */
  persist(command: number, cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number): void {
    void this.#perform(command, cookieHigh, cookieLow, flags, offset, length, () => Promise.resolve());
  }

  /** Flush, trim, cache and write-zeroes. */
  run(command: number, cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number): void {
    const { device } = this.#context;
    void this.#perform(command, cookieHigh, cookieLow, flags, offset, length, () => {
      switch (command) {
        case Command.flush:
          return device.flush();
        case Command.trim:
          return device.trim(offset, length);
        case Command.cache:
          return device.prefetch(offset, length);
        default:
          return device.zero(offset, length, {
            allocate: (flags & CommandFlag.noHole) !== 0,
            fast: (flags & CommandFlag.fastZero) !== 0,
          });
      }
    });
  }

  async #perform(
    command: number,
    cookieHigh: number,
    cookieLow: number,
    flags: number,
    offset: number,
    length: number,
    operation: () => Promise<void>,
  ): Promise<void> {
    const { meter } = this.#context;
    const began = performance.now();
    // Only payloads occupy memory: a trim of terabytes counts as one request.
    const held = command === Command.write ? length : 0;
    this.#begin(held);
    try {
      await operation();
      const modifies = command === Command.write || command === Command.trim || command === Command.writeZeroes;
      if (modifies && (flags & CommandFlag.fua) !== 0) await this.#context.device.flush();
      meter.ended(command, began, length);
      if (!this.#abandoned) writeDone(this.#context.writer, cookieHigh, cookieLow);
    } catch (error) {
      this.fail(command, cookieHigh, cookieLow, flags, offset, length, error);
    }
    this.#end(held);
  }

  /** Whether some of the range is at the source only. */
  #waitsForSource(offset: number, length: number): boolean {
    const extents = this.#context.device.extents(offset, length, SOURCE_RUNS);
    return extents.some(({ state }) => state === ExtentState.remote);
  }

  get #headerBytes(): number {
    return this.#context.structured ? OFFSET_DATA_BYTES : SIMPLE_REPLY_BYTES;
  }

  #begin(bytes: number): void {
    this.count++;
    this.bytes += bytes;
  }

  #end(bytes: number): void {
    this.count--;
    this.bytes -= bytes;
    if (this.count === 0) this.#dropSlab();
    this.#onEnd();
  }

  /** `length` bytes of the slab, with a reference: they end at `#slabAt`. */
  #take(length: number): Chunk {
    if (this.#slab === undefined || this.#slabAt + length > CHUNK_BYTES) {
      this.#dropSlab();
      this.#slab = this.#context.pool.chunk();
      this.#slabAt = 0;
    }
    this.#slabAt += length;
    this.#slab.references++;
    return this.#slab;
  }

  #dropSlab(): void {
    if (this.#slab !== undefined) this.#context.pool.release(this.#slab);
    this.#slab = undefined;
  }
}
