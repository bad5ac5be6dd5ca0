import { Command, REQUEST_BYTES, REQUEST_MAGIC } from "./protocol.ts";

/** A request from its submission to its last reply; it may be sent over several connections, one after the other. */
export interface ClientRequest {
  readonly cookie: number;
  readonly command: number;
  readonly flags: number;
  /** bytes */
  readonly offset: number;
  readonly length: number;
  /** A write's payload or a read's target; it belongs to the request until the last word on it. */
  readonly data: Buffer | undefined;
  /** Of a read: bytes that arrived over the present connection. */
  received: number;
  /** The first error over the present connection, 0: none so far. */
  error: number;
  message: string;
  /** Of a block status: takes the next extent of the context that was negotiated. */
  takeExtent?(length: number, flags: number): void;
}

/** "Request message", without the payload. */
export function requestHeader(request: ClientRequest): Buffer {
  const header = Buffer.allocUnsafe(REQUEST_BYTES);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(request.flags, 4);
  header.writeUInt16BE(request.command, 6);
  header.writeUInt32BE(0, 8);
  header.writeUInt32BE(request.cookie, 12);
  header.writeUInt32BE(Math.floor(request.offset / 4294967296), 16);
  header.writeUInt32BE(request.offset % 4294967296, 20);
  header.writeUInt32BE(request.length, 24);
  return header;
}

export function disconnectRequest(): Buffer {
  const header = Buffer.alloc(REQUEST_BYTES);
  header.writeUInt32BE(REQUEST_MAGIC, 0);
  header.writeUInt16BE(Command.disconnect, 6);
  return header;
}
