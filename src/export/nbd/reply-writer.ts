import type { Socket } from "node:net";
import { SendVector } from "../../base/send-vector.ts";
import type { BufferPool, Chunk } from "./buffer-pool.ts";
import { OUTPUT_LIMIT_BYTES, SCARCE_OUTPUT_BYTES, SEND_SEGMENTS } from "./limits.ts";

/** One turn fills and sends a vector, so the thread needs only one. */
const vector = new SendVector(SEND_SEGMENTS);

/**
 * The replies of one connection on their way out. They are laid down in pool chunks and handed to the kernel together:
 *
 *     segments[0..count) ....... ranges of chunks in the order of sending, each holding a reference
 *     chunk[from, at) .......... the range that is being filled; becomes a segment when it is full or sent
 *     queuedBytes .............. what the kernel did not take; owned by the socket's queue until it was written
 *
 * A plain socket is written to directly with sendmsg(2), because a stream costs more than the call; only what the
 * kernel has no room for goes through the stream, which waits for the client. With TLS everything does.
 */
export class ReplyWriter {
  readonly #pool: BufferPool;
  readonly #socket: Socket;
  readonly #fd: number;
  readonly #onRoom: () => void;
  /** The chunk being filled; undefined between turns. */
  chunk: Chunk | undefined;
  at = 0;
  #from = 0;
  readonly #chunks: Chunk[] = [];
  readonly #froms: number[] = [];
  readonly #tos: number[] = [];
  /** Bytes that are ready and were not handed over yet. */
  readyBytes = 0;
  /** Bytes in the socket's queue. */
  queuedBytes = 0;
  #broken = false;
  /** Ranges in the socket's queue that hold a part of the payload budget. */
  queuedPayloads = 0;
  /** Bytes that the kernel took since the connection began. */
  sentBytes = 0;

  /**
   * @param fd the socket's descriptor, or -1 when bytes must go through the stream (TLS)
   * @param onRoom called when the queue has fallen below the level at which the connection may go on
   */
  constructor(pool: BufferPool, socket: Socket, fd: number, onRoom: () => void) {
    this.#pool = pool;
    this.#socket = socket;
    this.#fd = fd;
    this.#onRoom = onRoom;
  }

  /** The client does not take its replies: nothing more may be started for it. */
  get full(): boolean {
    return this.queuedBytes > (this.#pool.scarce ? SCARCE_OUTPUT_BYTES : OUTPUT_LIMIT_BYTES);
  }

  /** Room for `length` bytes in one piece, at `this.at` of the returned chunk; `commit` what was filled. */
  reserve(length: number): Chunk {
    const chunk = this.chunk;
    if (chunk !== undefined && this.at + length <= chunk.length) return chunk;
    if (this.#chunks.length >= SEND_SEGMENTS - 2) this.send();
    this.#close();
    this.#from = 0;
    this.at = 0;
    return (this.chunk = this.#pool.chunk());
  }

  commit(length: number): void {
    this.at += length;
    this.readyBytes += length;
  }

  /** Sends a range of the caller's chunk next; the caller's reference passes to the writer. */
  add(chunk: Chunk, from: number, to: number): void {
    const open = this.chunk;
    if (open !== undefined && this.at > this.#from) {
      // What was filled before goes first; the rest of that chunk is filled further behind this range.
      open.references++;
      this.#push(open, this.#from, this.at);
      this.#from = this.at;
    }
    this.#push(chunk, from, to);
    this.readyBytes += to - from;
    if (this.#chunks.length >= SEND_SEGMENTS - 2) this.send();
  }

  /** Hands over all that is ready. */
  send(): void {
    this.#close();
    const count = this.#chunks.length;
    if (count === 0) return;
    let taken = 0;
    if (this.#broken || this.#socket.destroyed) {
      taken = this.readyBytes;
    } else if (this.#fd >= 0 && this.queuedBytes === 0) {
      for (let i = 0; i < count; i++) vector.add(this.#chunks[i].io, this.#froms[i], this.#tos[i] - this.#froms[i]);
      taken = vector.send(this.#fd);
      if (taken < 0) {
        // EPIPE, ECONNRESET: the client is gone. The stream learns of it when it reads.
        taken = this.readyBytes;
        this.#broken = true;
        this.#socket.destroy();
      }
    }
    this.sentBytes += taken;
    if (taken === this.readyBytes) {
      for (let i = 0; i < count; i++) this.#pool.release(this.#chunks[i]);
    } else {
      this.#queue(taken);
    }
    this.#chunks.length = 0;
    this.#froms.length = 0;
    this.#tos.length = 0;
    this.readyBytes = 0;
  }

  /** Drops what was not handed over. What is in the socket's queue comes back when the socket is destroyed. */
  close(): void {
    this.#close();
    for (const chunk of this.#chunks) this.#pool.release(chunk);
    this.#chunks.length = 0;
    this.#froms.length = 0;
    this.#tos.length = 0;
    this.readyBytes = 0;
  }

  #queue(taken: number): void {
    this.#socket.cork();
    for (let i = 0; i < this.#chunks.length; i++) {
      const chunk = this.#chunks[i];
      const from = this.#froms[i];
      const length = this.#tos[i] - from;
      if (taken >= length) {
        taken -= length;
        this.#pool.release(chunk);
        continue;
      }
      const bytes = chunk.bytes.subarray(from + taken, from + length);
      taken = 0;
      this.queuedBytes += bytes.length;
      if (chunk.budget > 0) this.queuedPayloads++;
      this.#socket.write(bytes, (error) => {
        this.queuedBytes -= bytes.length;
        if (chunk.budget > 0) this.queuedPayloads--;
        this.#pool.release(chunk);
        if (error) {
          // The stream is about to be destroyed, and must not be written to from its own error handling.
          this.#broken = true;
          return;
        }
        this.sentBytes += bytes.length;
        const limit = this.#pool.scarce ? SCARCE_OUTPUT_BYTES : OUTPUT_LIMIT_BYTES;
        if (this.queuedBytes <= limit / 2) this.#onRoom();
      });
    }
    this.#socket.uncork();
  }

  /** Ends the filling of the open chunk. */
  #close(): void {
    const chunk = this.chunk;
    if (chunk === undefined) return;
    this.chunk = undefined;
    if (this.at > this.#from) this.#push(chunk, this.#from, this.at);
    else this.#pool.release(chunk);
  }

  #push(chunk: Chunk, from: number, to: number): void {
    this.#chunks.push(chunk);
    this.#froms.push(from);
    this.#tos.push(to);
  }
}
