import { receiveNow } from "../../base/receive-now.ts";
import type { BufferPool, Chunk } from "./buffer-pool.ts";
import { CHUNK_BYTES, LARGE_RECEIVE_BYTES, RECEIVE_LONGEST_MS, RECEIVE_PATIENCE_MS } from "./limits.ts";

/** Less room than this behind a partial small request is not worth a read(2) of its own. */
const WORTHWHILE_BYTES = 32 * 1024;
/** A connection that sent requests above `BULKY_BYTES` keeps its buffer while so many reads in a row were complete. */
const KEEP_READS = 16;
const BULKY_BYTES = 64 * 1024;

/**
 * The unparsed bytes of one connection: `chunk[start, end)`.
 *
 * Most reads bring complete requests only. They arrive in the pool's shared chunk, are parsed in the same turn, and the
 * connection holds no memory when it is idle. What is left of an incomplete request moves to a buffer of the
 * connection's own, which is big enough for all of it, and the rest arrives right behind it: a payload is copied by
 * user space once at most, and not at all on a connection that keeps sending large ones, since it keeps its buffer:
 *
 *     nothing left ........ shared chunk (or its own, kept)
 *     incomplete request .. own: a pool chunk (260 KiB), a large one (2 MiB), or out of the payload budget (to 32 MiB)
 */
export class ReceiveBuffer {
  readonly #pool: BufferPool;
  chunk: Chunk;
  start = 0;
  end = 0;
  /** Bytes that have arrived since the connection began. */
  totalBytes = 0;
  /** Bytes from `start` on that the request in front needs to be complete. */
  #need = 0;
  #keep = 0;
  #target: Chunk;
  #targetAt = 0;

  constructor(pool: BufferPool) {
    this.#pool = pool;
    this.chunk = pool.shared;
    this.#target = pool.shared;
  }

  /**
   * Where the next bytes from the socket go; never empty. The socket keeps this place until it has read into it, so a
   * paused connection, whose buffers may change hands meanwhile, gets the shared chunk; while it is not paused, buffers
   * change only between a read and the next call.
   */
  nextTarget(paused: boolean): Buffer {
    const chunk = paused ? this.#pool.shared : this.chunk;
    this.#target = chunk;
    this.#targetAt = paused ? 0 : this.end;
    if (this.#targetAt === 0) return chunk.bytes;
    // A bulky payload is read up to its end, so that the request behind it starts at the front of the buffer.
    const missing = this.start + this.#need - this.end;
    return chunk.bytes.subarray(this.end, missing > BULKY_BYTES ? this.end + missing : chunk.length);
  }

  /** `length` bytes have arrived in the last target. */
  filled(length: number): void {
    this.totalBytes += length;
    if (this.#target === this.chunk && this.#targetAt === this.end) this.end += length;
    else this.#append(this.#target.bytes.subarray(this.#targetAt, this.#targetAt + length));
  }

  /**
   * Receives more of a bulky payload that has its place already, without a turn of the event loop.
   * @returns whether anything came
   */
  receiveRest(fd: number): boolean {
    const missing = this.start + this.#need - this.end;
    if (missing <= BULKY_BYTES || this.end + missing > this.chunk.length) return false;
    const got = receiveNow(fd, this.chunk.io, this.end, missing, RECEIVE_PATIENCE_MS, RECEIVE_LONGEST_MS);
    this.end += got;
    this.totalBytes += got;
    return got > 0;
  }

  /** Takes bytes that arrived elsewhere (TLS, or a target that was chosen before the buffer changed). */
  append(bytes: Uint8Array): void {
    this.totalBytes += bytes.length;
    this.#append(bytes);
  }

  #append(bytes: Uint8Array): void {
    if (this.chunk.length - this.end < bytes.length) {
      const total = this.end - this.start + bytes.length;
      if (total > LARGE_RECEIVE_BYTES) throw new Error(`${total} bytes received ahead of their turn`);
      this.#move(total > CHUNK_BYTES ? this.#pool.large() : this.#pool.chunk());
    }
    this.chunk.bytes.set(bytes, this.end);
    this.end += bytes.length;
  }

  /**
   * To be called when nothing more can be parsed in this turn.
   * @param need bytes that the request in front needs in one piece, header included
   * @returns false when they must come out of the payload budget and it is used up
   */
  settle(need: number): boolean {
    this.#need = need;
    const left = this.end - this.start;
    if (need > BULKY_BYTES) this.#keep = KEEP_READS;
    if (left === 0) {
      this.start = 0;
      this.end = 0;
      const kept = this.chunk.budget === 0 && this.#keep-- > 0 && !this.#pool.scarce;
      if (this.chunk !== this.#pool.shared && !kept) this.close();
      return true;
    }
    const shared = this.chunk === this.#pool.shared;
    if (!shared && need <= this.chunk.length) {
      const room = this.chunk.length - this.end;
      const fits = this.start + need <= this.chunk.length && (need > WORTHWHILE_BYTES || room >= WORTHWHILE_BYTES);
      if (!fits) {
        this.chunk.bytes.copyWithin(0, this.start, this.end);
        this.start = 0;
        this.end = left;
      }
      return true;
    }
    if (need <= CHUNK_BYTES) {
      this.#move(this.#pool.chunk());
      return true;
    }
    if (need <= LARGE_RECEIVE_BYTES) {
      this.#move(this.#pool.large());
      return true;
    }
    const payload = this.#pool.payload(this.budgetWanted);
    if (payload !== undefined) this.#move(payload);
    else if (shared) this.#move(this.#pool.chunk());
    return payload !== undefined;
  }

  /** What `settle` takes out of the payload budget: with room for what may arrive together with the payload's end. */
  get budgetWanted(): number {
    return this.#need + CHUNK_BYTES;
  }

  /** Gives the connection's own buffer to the caller, who releases it; for payloads that took one out of the budget. */
  detach(): Chunk {
    const chunk = this.chunk;
    const rest = chunk.bytes.subarray(this.start, this.end);
    this.chunk = this.#pool.shared;
    this.start = 0;
    this.end = 0;
    if (rest.length > 0) {
      this.chunk = this.#pool.chunk();
      this.#append(rest);
    }
    return chunk;
  }

  close(): void {
    if (this.chunk !== this.#pool.shared) this.#pool.release(this.chunk);
    this.chunk = this.#pool.shared;
    this.start = 0;
    this.end = 0;
  }

  #move(to: Chunk): void {
    const left = this.end - this.start;
    to.bytes.set(this.chunk.bytes.subarray(this.start, this.end), 0);
    if (this.chunk !== this.#pool.shared) this.#pool.release(this.chunk);
    this.chunk = to;
    this.start = 0;
    this.end = left;
  }
}
