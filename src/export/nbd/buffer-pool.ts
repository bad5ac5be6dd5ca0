import { IoBuffer } from "../../base/io-buffer.ts";
import {
  CHUNK_BYTES,
  CHUNKS_KEPT,
  FRAGMENT_BUFFER_BYTES,
  FRAGMENT_BUFFERS_KEPT,
  LARGE_RECEIVE_BYTES,
  LARGE_RECEIVES_KEPT,
  PAYLOAD_BUDGET_BYTES,
  SCARCITY_BYTES,
} from "./limits.ts";

/** A buffer with a view for header fields and a count of those who still need its content. */
export class Chunk {
  readonly io: IoBuffer;
  readonly bytes: Buffer;
  readonly view: DataView;
  readonly length: number;
  /** Part of the payload budget that goes back with it; 0 for recycled sizes. */
  readonly budget: number;
  references = 1;

  constructor(length: number, budget = 0) {
    this.io = new IoBuffer(length);
    this.bytes = this.io.bytes;
    this.view = new DataView(this.bytes.buffer, this.bytes.byteOffset, length);
    this.length = length;
    this.budget = budget;
  }
}

/** Who wants a part of the payload budget. The waiter at the head of the queue is served first. */
export interface BudgetWaiter {
  readonly budgetWanted: number;
  /** The part is there now, for this call only: ask again. */
  budgetFree(): void;
}

const kept = new Map([
  [CHUNK_BYTES, CHUNKS_KEPT],
  [FRAGMENT_BUFFER_BYTES, FRAGMENT_BUFFERS_KEPT],
  [LARGE_RECEIVE_BYTES, LARGE_RECEIVES_KEPT],
]);

/**
 * The data memory of all connections of a server: recycled chunks, buffers for fragments and large receive buffers, and a
 * budget for the rare requests that fit neither. Buffers are handed out most recently used first, because their memory
 * is in the processor's cache. Nothing here ever waits: a connection whose part of the budget is not free stops reading
 * from its client and is called back.
 */
export class BufferPool {
  /** Where data arrives for every connection that holds no buffer of its own: it is parsed or copied in the same turn. */
  readonly shared = new Chunk(CHUNK_BYTES);
  /** By their length. */
  readonly #spare = new Map<number, Chunk[]>([...kept.keys()].map((length) => [length, []]));
  readonly #spareChunks = this.#spare.get(CHUNK_BYTES)!;
  #bytesInUse = 0;
  #budgetLeft = PAYLOAD_BUDGET_BYTES;
  #waiters: BudgetWaiter[] = [];
  #serving = false;
  #serveScheduled = false;
  /** Called when somebody begins to wait. */
  onWait: () => void = () => undefined;

  /** So many buffers are in use that connections must make do with their minimum. */
  get scarce(): boolean {
    return this.#bytesInUse > SCARCITY_BYTES;
  }

  /** Bytes of recycled buffers that are handed out. */
  get bytesInUse(): number {
    return this.#bytesInUse;
  }

  /** Bytes of the payload budget that are handed out. */
  get budgetInUse(): number {
    return PAYLOAD_BUDGET_BYTES - this.#budgetLeft;
  }

  get someoneWaits(): boolean {
    return this.#waiters.length > 0;
  }

  chunk(): Chunk {
    return this.#recycled(this.#spareChunks, CHUNK_BYTES);
  }

  large(): Chunk {
    return this.#recycled(this.#spare.get(LARGE_RECEIVE_BYTES)!, LARGE_RECEIVE_BYTES);
  }

  fragment(): Chunk {
    return this.#recycled(this.#spare.get(FRAGMENT_BUFFER_BYTES)!, FRAGMENT_BUFFER_BYTES);
  }

  #recycled(spare: Chunk[], length: number): Chunk {
    this.#bytesInUse += length;
    const chunk = spare.pop();
    if (chunk === undefined) return new Chunk(length);
    chunk.references = 1;
    return chunk;
  }

  /** A buffer of exactly `length` bytes out of the budget; undefined when it is used up: then `wait`. */
  payload(length: number): Chunk | undefined {
    if (length > this.#budgetLeft || (this.#waiters.length > 0 && !this.#serving)) return undefined;
    this.#budgetLeft -= length;
    return new Chunk(length, length);
  }

  wait(waiter: BudgetWaiter): void {
    if (this.#waiters.includes(waiter)) return;
    this.#waiters.push(waiter);
    this.onWait();
  }

  forget(waiter: BudgetWaiter): void {
    const index = this.#waiters.indexOf(waiter);
    if (index >= 0) this.#waiters.splice(index, 1);
    this.#serveLater();
  }

  /** Gives up one reference; the last one returns the buffer. */
  release(chunk: Chunk): void {
    if (--chunk.references > 0) return;
    if (chunk.references < 0) throw new Error("a buffer was released twice");
    if (chunk.budget > 0) {
      this.#budgetLeft += chunk.budget;
      this.#serveLater();
      return;
    }
    this.#bytesInUse -= chunk.length;
    const spare = this.#spare.get(chunk.length)!;
    if (spare.length < kept.get(chunk.length)!) spare.push(chunk);
  }

  /** In a turn of its own: who is served runs requests, and who releases may be in the middle of something. */
  #serveLater(): void {
    if (this.#waiters.length === 0 || this.#serveScheduled) return;
    this.#serveScheduled = true;
    setImmediate(() => {
      this.#serveScheduled = false;
      this.#serve();
    });
  }

  #serve(): void {
    this.#serving = true;
    while (this.#waiters.length > 0 && this.#waiters[0].budgetWanted <= this.#budgetLeft) {
      this.#waiters.shift()!.budgetFree();
    }
    this.#serving = false;
  }
}
