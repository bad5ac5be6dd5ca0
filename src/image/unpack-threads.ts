import { availableParallelism } from "node:os";
import { BatchThreads } from "../base/threads/batch-threads.ts";
import { threadFile } from "../base/threads/thread-file.ts";
import type { Expected } from "./unpack.ts";

/*
 * Threads that unpack many small pieces with one message, which costs less than half of what as many trips through the
 * thread pool do, and next to nothing on the event loop. Packed and unpacked bytes lie in memory that all threads share.
 * Who comes before the threads run uses the thread pool, instead of waiting for a start.
 */

/** Of packed bytes, and of unpacked ones: whoever needs more gets memory of its own. */
const SLAB_BYTES = 1024 * 1024;
const SPARE_SLABS = 16;

/** A piece of the packed bytes. */
export interface Piece extends Expected {
  from: number;
  length: number;
}

export interface UnpackRequest {
  memory: SharedArrayBuffer;
  pieces: Piece[];
  /** Where in the memory the unpacked pieces go, one behind the other. */
  to: number;
}

export interface UnpackReply {
  /** Of the pieces, unpacked. */
  lengths: number[];
  /** Why the next piece could not be. */
  failure?: string;
}

/** Memory for a batch: packed bytes in front, room for what they unpack to behind them. */
export class Slab {
  readonly memory: SharedArrayBuffer;
  readonly packed: Buffer;
  readonly unpackedAt: number;
  readonly reusable: boolean;

  constructor(packedBytes: number, unpackedBytes: number) {
    this.reusable = packedBytes === SLAB_BYTES && unpackedBytes === SLAB_BYTES;
    this.memory = new SharedArrayBuffer(packedBytes + unpackedBytes);
    this.packed = Buffer.from(this.memory, 0, packedBytes);
    this.unpackedAt = packedBytes;
  }
}

class UnpackThreads {
  readonly #spare: Slab[] = [];
  readonly #threads = new BatchThreads<UnpackRequest, UnpackReply>({
    file: threadFile("unpack-worker", import.meta.url),
    count: Math.min(4, availableParallelism()),
    perThread: 2,
    onIdle: () => void (this.#spare.length = 0),
  });

  /** Whether a batch would be begun soon. Starts the threads if there are none. */
  ready(): boolean {
    return this.#threads.ready();
  }

  /** To be given back when nobody looks at its bytes any more, and no thread works on it. */
  take(packedBytes: number, unpackedBytes: number): Slab {
    const fits = packedBytes <= SLAB_BYTES && unpackedBytes <= SLAB_BYTES;
    if (fits) return this.#spare.pop() ?? new Slab(SLAB_BYTES, SLAB_BYTES);
    return new Slab(packedBytes, unpackedBytes);
  }

  give(slab: Slab): void {
    if (slab.reusable && this.#spare.length < SPARE_SLABS) this.#spare.push(slab);
  }

  /**
   * Unpacks pieces of a slab's packed bytes; what they come to lies one behind the other from `unpackedAt` on.
   * @throws Error when a thread has ended
   */
  unpack(slab: Slab, pieces: Piece[], background: boolean): Promise<UnpackReply> {
    return this.#threads.run({ memory: slab.memory, pieces, to: slab.unpackedAt }, background);
  }
}

/** Of the process. */
export const unpackThreads = new UnpackThreads();
