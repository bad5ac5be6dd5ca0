import type { BlockDevice, Extent } from "../block-device.ts";
import type { BudgetWaiter, BufferPool } from "./buffer-pool.ts";
import {
  BLOCK_STATUS_EXTENTS,
  FRAGMENT_BYTES,
  INFLIGHT_BYTES,
  INFLIGHT_REQUESTS,
  SEND_BYTES,
  SYNC_BYTES,
  TURN_BYTES,
  TURN_REQUESTS,
} from "./limits.ts";
import { changedExtents, writeDescriptors } from "./meta-context.ts";
import {
  Command,
  CommandFlag,
  REPLY_FLAG_DONE,
  ReplyType,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  STRUCTURED_REPLY_BYTES,
} from "../../nbd/protocol.ts";
import type { ReceiveBuffer } from "./receive-buffer.ts";
import { putStructuredHeader, writeDone, writeError } from "./reply-format.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import { Reads } from "./reads.ts";
import { refuse } from "./request-gate.ts";
import type { RequestMeter } from "./request-meter.ts";
import { SlowOperations } from "./slow-operations.ts";
import type { TransmissionContext } from "./transmission-context.ts";

/**
 * "Transmission": requests in, replies out.
 *
 * `run` takes every complete request from the receive buffer. Reads and writes that the device can do at once are done
 * right there, without a promise, a closure or an allocation: the data moves between the device and the buffers that
 * the socket reads into or is sent from. All others become slow operations, answered when they end, in any order.
 *
 * The connection is not read from while `run` can't go on:
 *
 *     turn ....... it had its share of this turn of the event loop; goes on in the next
 *     output ..... the client does not take its replies; goes on when the socket's queue is half empty
 *     in flight .. too many operations or bytes wait for the device; goes on when one ends
 *     budget ..... a request above 2 MiB needs memory that others hold; goes on when it is free
 *
 * A write is started only when all of its payload is here, so that a stalling client holds nothing but its own buffer.
 */
export class Transmission implements BudgetWaiter {
  readonly #context: TransmissionContext;
  readonly #device: BlockDevice;
  readonly #pool: BufferPool;
  readonly #received: ReceiveBuffer;
  readonly #writer: ReplyWriter;
  readonly #meter: RequestMeter;
  readonly #structured: boolean;
  /** Some context of the connection is about the device's extents. */
  readonly #asksExtents: boolean;
  readonly #slow: SlowOperations;
  readonly #reads: Reads;
  /** Payload bytes of refused writes that are still to come. */
  #discard = 0;
  #turnRequests = 0;
  #turnBytes = 0;
  #turnScheduled = false;
  #sendScheduled = false;
  #blocked = false;
  /** What the head of the queue needs out of the payload budget; 0: nothing. */
  budgetWanted = 0;
  #state: "running" | "draining" | "disconnecting" | "ended" = "running";
  requests = 0;
  readBytes = 0;
  writtenBytes = 0;

  constructor(context: TransmissionContext) {
    this.#context = context;
    this.#device = context.device;
    this.#pool = context.pool;
    this.#received = context.received;
    this.#writer = context.writer;
    this.#meter = context.meter;
    this.#structured = context.structured;
    this.#asksExtents = context.contexts.some(({ changes }) => changes === undefined);
    this.#slow = new SlowOperations(context, () => this.#slowEnded());
    this.#reads = new Reads(context, this.#slow);
  }

  get size(): number {
    return this.#device.size;
  }

  get readOnly(): boolean {
    return this.#context.readOnly;
  }

  get structured(): boolean {
    return this.#structured;
  }

  get hasContexts(): boolean {
    return this.#context.contexts.length > 0;
  }

  /** The client has sent NBD_CMD_DISC. */
  get saidGoodbye(): boolean {
    return this.#state === "disconnecting";
  }

  /** Operations that wait for the device. */
  get inflight(): number {
    return this.#slow.count;
  }

  /** Takes what arrived behind the handshake, and then reads. */
  start(): void {
    this.#blocked = true;
    this.run();
  }

  /** Requests that have arrived completely are still served, then `finished` is called. */
  drain(): void {
    if (this.#state !== "running") return;
    this.#state = "draining";
    this.#context.setReading(false);
    this.#finishWhenIdle();
  }

  /** The connection is gone: what has not started never will; replies of what has are dropped. */
  abandon(): void {
    this.#state = "ended";
    this.#pool.forget(this);
    this.#writer.close();
    this.#slow.abandon();
  }

  /** New bytes are in the receive buffer. @returns whether the socket may be read on */
  arrived(): boolean {
    if (!this.#blocked) this.run();
    return !this.#blocked && this.#state === "running";
  }

  /** The socket's queue has room again. */
  writable(): void {
    this.#resume();
    this.#finishWhenIdle();
  }

  budgetFree(): void {
    this.#resume();
  }

  /** Takes all complete requests, or as many as it may. A defect in here ends this connection and no other. */
  run(): void {
    if (this.#state === "ended" || this.#state === "disconnecting") return;
    try {
      this.#run();
    } catch (error) {
      this.#context.defect(error);
    }
  }

  #run(): void {
    const received = this.#received;
    this.#turnRequests = 0;
    this.#turnBytes = 0;
    this.budgetWanted = 0;
    let need = 0;
    let blocked = false;
    this.#meter.beginBatch();
    while (need === 0) {
      if (this.#mustWait()) {
        blocked = true;
        break;
      }
      if (this.#reads.pending === undefined) need = this.#next();
      else this.#turnBytes += this.#reads.nextFragment(this.#reads.pending);
      if (this.#writer.readyBytes >= SEND_BYTES) this.#writer.send();
    }
    this.#writer.send();
    this.#meter.endBatch();
    // The device or the socket may have ended the connection meanwhile.
    if (this.#ended()) return;
    if (blocked) need = received.end - received.start;
    // While draining nothing more is read: an incomplete request never will be complete.
    const hopeless = this.#state === "draining" && !blocked && this.budgetWanted === 0;
    if (!hopeless && this.budgetWanted === 0 && !received.settle(need)) this.budgetWanted = received.budgetWanted;
    if (this.budgetWanted > 0) {
      blocked = true;
      this.#pool.wait(this);
    }
    const wasBlocked = this.#blocked;
    this.#blocked = blocked;
    if (wasBlocked !== blocked && this.#state === "running") this.#context.setReading(!blocked);
    this.#finishWhenIdle();
  }

  #ended(): boolean {
    return this.#state === "ended";
  }

  #mustWait(): boolean {
    if (this.#turnRequests >= TURN_REQUESTS || this.#turnBytes >= TURN_BYTES) {
      if (!this.#turnScheduled) {
        this.#turnScheduled = true;
        setImmediate(() => {
          this.#turnScheduled = false;
          this.run();
        });
      }
      return true;
    }
    if (this.#writer.full) return true;
    const slow = this.#slow;
    if (slow.count === 0) return false;
    return slow.count >= INFLIGHT_REQUESTS || slow.bytes >= INFLIGHT_BYTES || this.#pool.scarce;
  }

  /** @returns 0 when a request was dealt with, otherwise how many bytes the next one needs to be complete */
  #next(): number {
    const received = this.#received;
    const available = received.end - received.start;
    if (this.#discard > 0) {
      const skipped = Math.min(this.#discard, available);
      received.start += skipped;
      this.#discard -= skipped;
      return skipped > 0 ? 0 : REQUEST_BYTES;
    }
    if (available < REQUEST_BYTES) return REQUEST_BYTES;
    const view = received.chunk.view;
    const at = received.start;
    if (view.getUint32(at) !== REQUEST_MAGIC) {
      this.#context.violation("a request without the request magic");
      return REQUEST_BYTES;
    }
    const flags = view.getUint16(at + 4);
    const command = view.getUint16(at + 6);
    const offset = view.getUint32(at + 16) * 4294967296 + view.getUint32(at + 20);
    const length = view.getUint32(at + 24);
    if (command === Command.disconnect) {
      this.#state = "disconnecting";
      this.#context.setReading(false);
      received.start = received.end;
      return REQUEST_BYTES;
    }
    const cookieHigh = view.getUint32(at + 8);
    const cookieLow = view.getUint32(at + 12);
    const refusal = refuse(this, command, flags, offset, length);
    if (refusal !== undefined) {
      received.start += REQUEST_BYTES;
      if (command === Command.write) this.#discard = length;
      this.#countRequest(0);
      this.#meter.refused(command, refusal.error);
      writeError(this.#writer, this.#structured, cookieHigh, cookieLow, refusal.error, refusal.message);
      return 0;
    }
    if (command === Command.write) {
      if (available < REQUEST_BYTES + length) return REQUEST_BYTES + length;
      received.start += REQUEST_BYTES + length;
      this.#countRequest(length);
      this.writtenBytes += length;
      this.#write(cookieHigh, cookieLow, flags, offset, length, at + REQUEST_BYTES);
      return 0;
    }
    if (command === Command.read) {
      this.budgetWanted = this.#reads.start(cookieHigh, cookieLow, flags, offset, length);
      if (this.budgetWanted > 0) return REQUEST_BYTES;
      received.start += REQUEST_BYTES;
      this.readBytes += length;
      this.#countRequest(Math.min(length, FRAGMENT_BYTES));
      return 0;
    }
    received.start += REQUEST_BYTES;
    this.#countRequest(0);
    if (command === Command.blockStatus) this.#blockStatus(cookieHigh, cookieLow, flags, offset, length);
    else this.#slow.run(command, cookieHigh, cookieLow, flags, offset, length);
    return 0;
  }

  #countRequest(bytes: number): void {
    this.requests++;
    this.#turnRequests++;
    this.#turnBytes += bytes;
  }

  #write(
    cookieHigh: number,
    cookieLow: number,
    flags: number,
    offset: number,
    length: number,
    payloadAt: number,
  ): void {
    try {
      if (length <= SYNC_BYTES && this.#device.tryWrite(offset, length, this.#received.chunk.io, payloadAt)) {
        if ((flags & CommandFlag.fua) === 0) {
          writeDone(this.#writer, cookieHigh, cookieLow);
          this.#meter.writes++;
          this.#meter.writtenBytes += length;
        } else this.#slow.persist(Command.write, cookieHigh, cookieLow, flags, offset, length);
        return;
      }
    } catch (error) {
      this.#slow.fail(Command.write, cookieHigh, cookieLow, flags, offset, length, error);
      return;
    }
    this.#slow.write(cookieHigh, cookieLow, flags, offset, length, payloadAt);
  }

  #blockStatus(cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number): void {
    const tell = (count: number): void => this.#tellStatus(cookieHigh, cookieLow, flags, offset, count);
    const learning = this.#asksExtents ? this.#device.learnZeros(offset, length) : undefined;
    if (learning === undefined) tell(length);
    else void this.#slow.learn(learning, tell);
  }

  #tellStatus(cookieHigh: number, cookieLow: number, flags: number, offset: number, length: number): void {
    const limit = (flags & CommandFlag.reqOne) !== 0 ? 1 : BLOCK_STATUS_EXTENTS;
    let allocated: readonly Extent[];
    try {
      allocated = this.#device.extents(offset, length, limit);
    } catch (error) {
      this.#slow.fail(Command.blockStatus, cookieHigh, cookieLow, flags, offset, length, error);
      return;
    }
    const contexts = this.#context.contexts;
    for (let i = 0; i < contexts.length; i++) {
      const { changes } = contexts[i];
      const extents = changes === undefined ? allocated : changedExtents(changes, offset, length, limit);
      const chunk = this.#writer.reserve(STRUCTURED_REPLY_BYTES + 4 + 8 * extents.length);
      const at = this.#writer.at;
      const payload = at + STRUCTURED_REPLY_BYTES;
      chunk.view.setUint32(payload, contexts[i].id);
      const bytes = 4 + writeDescriptors(chunk.view, payload + 4, contexts[i], extents, length);
      const done = i === contexts.length - 1 ? REPLY_FLAG_DONE : 0;
      putStructuredHeader(chunk.view, at, done, ReplyType.blockStatus, cookieHigh, cookieLow, bytes);
      this.#writer.commit(STRUCTURED_REPLY_BYTES + bytes);
    }
  }

  #slowEnded(): void {
    if (this.#state === "ended") {
      if (this.#slow.count === 0) this.#context.quiet();
      return;
    }
    this.#resume();
    // Operations that end in the same turn are answered together.
    if (this.#slow.count === 0) this.#send();
    else if (this.#writer.readyBytes > 0) this.#sendLater();
  }

  #sendLater(): void {
    if (this.#sendScheduled) return;
    this.#sendScheduled = true;
    setImmediate(() => {
      this.#sendScheduled = false;
      this.#send();
    });
  }

  #send(): void {
    try {
      this.#writer.send();
      this.#finishWhenIdle();
    } catch (error) {
      this.#context.defect(error);
    }
  }

  #resume(): void {
    if (this.#blocked && !this.#turnScheduled) this.run();
  }

  #finishWhenIdle(): void {
    if (this.#state !== "draining" && this.#state !== "disconnecting") return;
    if (this.#blocked || this.#slow.count > 0 || this.#writer.readyBytes > 0 || this.#writer.queuedBytes > 0) return;
    const clean = this.#state === "disconnecting";
    this.#state = "ended";
    this.#context.finished(clean);
  }
}
