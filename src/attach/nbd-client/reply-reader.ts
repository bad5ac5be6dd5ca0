import { UllageError } from "../../base/errors.ts";
import {
  Command,
  NbdError,
  REPLY_FLAG_DONE,
  ReplyType,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_BYTES,
  STRUCTURED_REPLY_MAGIC,
} from "../../export/nbd/protocol.ts";
import type { ClientRequest } from "./request.ts";

/** NBD_REPLY_TYPE_OFFSET_HOLE ("Structured reply types"): our server never sends it. */
const OFFSET_HOLE = 2;
const ERROR_BIT = 0x8000;
/** An error chunk: code, length, message (4096 bytes at most), perhaps an offset. */
const MAX_ERROR_BYTES = 4 + 2 + 4096 + 8;

/** Who waits for replies. */
export interface ReplySink {
  find(cookie: number): ClientRequest | undefined;
  /** The last word on a request. */
  settled(request: ClientRequest, error: number, message: string): void;
}

/**
 * Takes replies apart as they arrive, in pieces of any length. What it waits for:
 *
 *     header .... of a reply: 4 bytes tell which kind, 16 or 20 are all of it
 *     fixed ..... what stands before the data of a chunk, or an error chunk
 *     data ...... goes to the read's buffer at once, wherever in the chunk a piece ends
 */
export class ReplyReader {
  readonly #sink: ReplySink;
  readonly #small = Buffer.alloc(MAX_ERROR_BYTES);
  #have = 0;
  #need = 4;
  #part: "header" | "fixed" = "header";
  #flags = 0;
  #type = 0;
  #request: ClientRequest | undefined;
  /** Of the chunk, behind its header. */
  #payload = 0;
  /** Data that is still to come, and where it goes. */
  #dataLeft = 0;
  #dataAt = 0;
  #error = 0;
  #message = "";

  constructor(sink: ReplySink) {
    this.#sink = sink;
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
    if (this.#part === "fixed") {
      this.#fixed();
      return;
    }
    const magic = this.#small.readUInt32BE(0);
    const total = magic === SIMPLE_REPLY_MAGIC ? SIMPLE_REPLY_BYTES : STRUCTURED_REPLY_BYTES;
    if (magic !== SIMPLE_REPLY_MAGIC && magic !== STRUCTURED_REPLY_MAGIC) throw violation("a reply without the magic");
    if (this.#have < total) this.#need = total;
    else if (magic === SIMPLE_REPLY_MAGIC) this.#simple();
    else this.#structured();
  }

  #simple(): void {
    const request = this.#find(8);
    if (request.command === Command.read) throw violation("a simple reply to a read");
    this.#next();
    this.#sink.settled(request, this.#small.readUInt32BE(4), "");
  }

  #structured(): void {
    this.#flags = this.#small.readUInt16BE(4);
    this.#type = this.#small.readUInt16BE(6);
    this.#request = this.#find(8);
    this.#payload = this.#small.readUInt32BE(16);
    if (this.#type === ReplyType.none) {
      if (this.#payload !== 0) throw violation("a chunk of type none with a payload");
      this.#chunkEnded();
      return;
    }
    this.#part = "fixed";
    this.#have = 0;
    this.#need = this.#fixedBytes();
  }

  #fixedBytes(): number {
    const isRead = this.#request!.command === Command.read;
    if (this.#type === ReplyType.offsetData && isRead && this.#payload > 8) return 8;
    if (this.#type === OFFSET_HOLE && isRead && this.#payload === 12) return 12;
    if ((this.#type & ERROR_BIT) !== 0 && this.#payload >= 6 && this.#payload <= MAX_ERROR_BYTES) return this.#payload;
    throw violation(`a chunk of type ${this.#type} and ${this.#payload} bytes`);
  }

  #fixed(): void {
    if ((this.#type & ERROR_BIT) !== 0) {
      this.#error = this.#small.readUInt32BE(0) || NbdError.EIO;
      const length = Math.min(this.#small.readUInt16BE(4), this.#payload - 6);
      this.#message = this.#small.toString("utf8", 6, 6 + length);
      this.#chunkEnded();
      return;
    }
    const hole = this.#type === OFFSET_HOLE;
    const request = this.#request!;
    const length = hole ? this.#small.readUInt32BE(8) : this.#payload - 8;
    const at = Number(this.#small.readBigUInt64BE(0)) - request.offset;
    if (at < 0 || at + length > request.length) throw violation(`data outside of the read at ${request.offset}`);
    request.received += length;
    if (hole) {
      request.data!.fill(0, at, at + length);
      this.#chunkEnded();
      return;
    }
    this.#dataAt = at;
    this.#dataLeft = length;
  }

  #chunkEnded(): void {
    const request = this.#request!;
    const done = (this.#flags & REPLY_FLAG_DONE) !== 0;
    const error = this.#error;
    const message = this.#message;
    this.#next();
    if (!done) {
      if (error !== 0) throw violation("an error that is not the last chunk"); // our server's errors always are
      return;
    }
    if (error === 0 && request.command === Command.read && request.received !== request.length) {
      throw violation(`${request.received} of the ${request.length} bytes of a read`);
    }
    this.#sink.settled(request, error, message);
  }

  #next(): void {
    this.#part = "header";
    this.#have = 0;
    this.#need = 4;
    this.#request = undefined;
    this.#error = 0;
    this.#message = "";
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
