import { UllageError } from "../base/errors.ts";
import {
  Command,
  NbdError,
  REPLY_FLAG_DONE,
  ReplyType,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_BYTES,
  STRUCTURED_REPLY_MAGIC,
} from "./protocol.ts";
import { printable } from "./printable.ts";
import type { ClientRequest } from "./client-request.ts";

const ERROR_BIT = 0x8000;
/** An error chunk: code, length, message (4096 bytes at most), perhaps an offset. */
const MAX_ERROR_BYTES = 4 + 2 + 4096 + 8;
/** Of an extent in a block status chunk: length and flags. */
const EXTENT_BYTES = 8;
/** Servers send a million extents at most. */
const MAX_EXTENTS_BYTES = 16 * 1024 * 1024;

/** What was agreed on with the server. */
export interface ReplyKinds {
  structured: boolean;
  contextId: number | undefined;
}

/** Who waits for replies. */
export interface ReplySink {
  find(cookie: number): ClientRequest | undefined;
  /** The last word on a request has come: all of it is in there. */
  settled(request: ClientRequest): void;
}

/**
 * Takes replies apart as they arrive, in pieces of any length. What it waits for:
 *
 *     header .... of a reply: 4 bytes tell which kind, 16 or 20 are all of it
 *     fixed ..... what stands before the data of a chunk, or an error chunk
 *     extent .... of a block status: handed on one by one, so that no answer takes memory
 *     data ...... goes to the read's buffer at once, wherever in the chunk a piece ends
 *
 * A request has got its last word when a simple reply, or the chunk with the flag DONE, has come to its end. How much may
 * come for a request until then is bounded: each chunk but the last brings some of its length, its one error, or its one
 * answer about extents.
 */
export class ReplyReader {
  readonly #sink: ReplySink;
  readonly #small = Buffer.alloc(MAX_ERROR_BYTES);
  #have = 0;
  #need = 4;
  #part: "header" | "fixed" | "extent" = "header";
  readonly #kinds: ReplyKinds;
  #flags = 0;
  #type = 0;
  #request: ClientRequest | undefined;
  /** Of the chunk, behind its header. */
  #payload = 0;
  /** Data that is still to come, and where it goes. */
  #dataLeft = 0;
  #dataAt = 0;
  /** Bytes of extents that are still to come; `wanted` is false when they are of a context that nobody asked for. */
  #extentsLeft = 0;
  #extentsWanted = false;

  constructor(sink: ReplySink, kinds: ReplyKinds) {
    this.#sink = sink;
    this.#kinds = kinds;
  }

  /** @throws UllageError `nbd-protocol`: the connection is of no more use */
  push(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#dataLeft > 0) {
        const length = Math.min(this.#dataLeft, bytes.length - at);
        bytes.copy(this.#request!.data!, this.#dataAt, at, at + length);
        at += length;
        this.#dataAt += length;
        this.#dataLeft -= length;
        if (this.#dataLeft === 0) this.#chunkEnded();
        continue;
      }
      const length = Math.min(this.#need - this.#have, bytes.length - at);
      bytes.copy(this.#small, this.#have, at, at + length);
      at += length;
      this.#have += length;
      if (this.#have === this.#need) this.#step();
    }
  }

  #step(): void {
    if (this.#part === "fixed") return this.#fixed();
    if (this.#part === "extent") return this.#extent();
    const magic = this.#small.readUInt32BE(0);
    const total = magic === SIMPLE_REPLY_MAGIC ? SIMPLE_REPLY_BYTES : STRUCTURED_REPLY_BYTES;
    if (magic !== SIMPLE_REPLY_MAGIC && magic !== STRUCTURED_REPLY_MAGIC) throw violation("a reply without the magic");
    if (this.#have < total) this.#need = total;
    else if (magic === SIMPLE_REPLY_MAGIC) this.#simple();
    else this.#structured();
  }

  #simple(): void {
    const request = this.#find(8);
    const error = this.#small.readUInt32BE(4);
    const hasData = request.command === Command.read || request.command === Command.blockStatus;
    if (hasData && this.#kinds.structured) throw violation("a simple reply to a read");
    if (error === 0 && request.command === Command.read) {
      this.#request = request;
      this.#flags = REPLY_FLAG_DONE;
      request.received = request.length;
      this.#dataAt = 0;
      this.#dataLeft = request.length;
      return;
    }
    request.error = error;
    this.#next();
    this.#sink.settled(request);
  }

  #structured(): void {
    if (!this.#kinds.structured) throw violation("a structured reply that was not agreed on");
    this.#flags = this.#small.readUInt16BE(4);
    this.#type = this.#small.readUInt16BE(6);
    this.#request = this.#find(8);
    this.#payload = this.#small.readUInt32BE(16);
    if (this.#type === ReplyType.none) {
      if (this.#payload !== 0) throw violation("a chunk of type none with a payload");
      if ((this.#flags & REPLY_FLAG_DONE) === 0) throw violation("a chunk of type none that is not the last one");
      this.#chunkEnded();
      return;
    }
    this.#part = "fixed";
    this.#have = 0;
    this.#need = this.#fixedBytes();
  }

  #fixedBytes(): number {
    const { command } = this.#request!;
    const isRead = command === Command.read;
    if (this.#type === ReplyType.offsetData && isRead && this.#payload > 8) return 8;
    if (this.#type === ReplyType.offsetHole && isRead && this.#payload === 12) return 12;
    if (this.#type === ReplyType.blockStatus && command === Command.blockStatus) {
      const extents = this.#payload - 4;
      if (extents > 0 && extents <= MAX_EXTENTS_BYTES && extents % EXTENT_BYTES === 0) return 4;
    }
    if ((this.#type & ERROR_BIT) !== 0 && this.#payload >= 6 && this.#payload <= MAX_ERROR_BYTES) return this.#payload;
    throw violation(`a chunk of type ${this.#type} and ${this.#payload} bytes`);
  }

  #fixed(): void {
    const request = this.#request!;
    if ((this.#type & ERROR_BIT) !== 0) {
      if (request.error !== 0) throw violation("two errors for one request");
      request.error = this.#small.readUInt32BE(0) || NbdError.EIO;
      const length = Math.min(this.#small.readUInt16BE(4), this.#payload - 6);
      request.message = printable(this.#small.subarray(6, 6 + length));
      this.#chunkEnded();
      return;
    }
    if (this.#type === ReplyType.blockStatus) {
      this.#extentsWanted = this.#small.readUInt32BE(0) === this.#kinds.contextId;
      if (this.#extentsWanted) {
        if (request.received !== 0) throw violation("two answers to one block status");
        request.received = 1;
      } else if ((this.#flags & REPLY_FLAG_DONE) === 0) throw violation("a block status that nobody asked for");
      this.#extentsLeft = this.#payload - 4;
      this.#expectExtent();
      return;
    }
    const hole = this.#type === ReplyType.offsetHole;
    const length = hole ? this.#small.readUInt32BE(8) : this.#payload - 8;
    const at = Number(this.#small.readBigUInt64BE(0)) - request.offset;
    if (at < 0 || length === 0 || at + length > request.length) {
      throw violation(`data outside of the read at ${request.offset}`);
    }
    request.received += length;
    if (request.received > request.length) throw violation(`more than the ${request.length} bytes of a read`);
    if (hole) {
      request.data!.fill(0, at, at + length);
      this.#chunkEnded();
      return;
    }
    this.#dataAt = at;
    this.#dataLeft = length;
  }

  #expectExtent(): void {
    this.#part = "extent";
    this.#have = 0;
    this.#need = EXTENT_BYTES;
  }

  #extent(): void {
    const length = this.#small.readUInt32BE(0);
    if (length === 0) throw violation("an extent of no length");
    if (this.#extentsWanted) this.#request!.takeExtent?.(length, this.#small.readUInt32BE(4));
    this.#extentsLeft -= EXTENT_BYTES;
    if (this.#extentsLeft > 0) this.#expectExtent();
    else this.#chunkEnded();
  }

  #chunkEnded(): void {
    const request = this.#request!;
    const done = (this.#flags & REPLY_FLAG_DONE) !== 0;
    this.#next();
    if (!done) return;
    const { command, error, length, received } = request;
    if (error === 0 && command === Command.read && received !== length) {
      throw violation(`${received} of the ${length} bytes of a read`);
    }
    if (error === 0 && command === Command.blockStatus && received === 0) throw violation("a block status without one");
    this.#sink.settled(request);
  }

  #next(): void {
    this.#part = "header";
    this.#have = 0;
    this.#need = 4;
    this.#request = undefined;
  }

  #find(at: number): ClientRequest {
    const high = this.#small.readUInt32BE(at);
    const request = high === 0 ? this.#sink.find(this.#small.readUInt32BE(at + 4)) : undefined;
    if (request === undefined) throw violation("a reply to a request that was never made");
    return request;
  }
}

function violation(what: string): UllageError {
  return new UllageError("nbd-protocol", `the NBD server broke the protocol: ${what}`);
}
