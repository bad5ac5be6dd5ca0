import type { Chunk } from "./buffer-pool.ts";
import type { ReplyWriter } from "./reply-writer.ts";
import {
  OFFSET_DATA_BYTES,
  REPLY_FLAG_DONE,
  ReplyType,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_BYTES,
  STRUCTURED_REPLY_MAGIC,
} from "../../nbd/protocol.ts";

/** Error messages are cut to this; the protocol's limit is 4096. */
const MAX_MESSAGE_BYTES = 512;

// A cookie is eight opaque bytes; it travels as two 32-bit words, because a Number can't hold it and a BigInt allocates.

/** "Simple reply message". */
export function putSimpleReply(view: DataView, at: number, error: number, cookieHigh: number, cookieLow: number): void {
  view.setUint32(at, SIMPLE_REPLY_MAGIC);
  view.setUint32(at + 4, error);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
}

/** "Structured reply chunk message": the header. */
export function putStructuredHeader(
  view: DataView,
  at: number,
  flags: number,
  type: number,
  cookieHigh: number,
  cookieLow: number,
  length: number,
): void {
  view.setUint32(at, STRUCTURED_REPLY_MAGIC);
  view.setUint16(at + 4, flags);
  view.setUint16(at + 6, type);
  view.setUint32(at + 8, cookieHigh);
  view.setUint32(at + 12, cookieLow);
  view.setUint32(at + 16, length);
}

/** NBD_REPLY_TYPE_OFFSET_DATA, up to the data. */
export function putOffsetDataHeader(
  view: DataView,
  at: number,
  flags: number,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): void {
  putStructuredHeader(view, at, flags, ReplyType.offsetData, cookieHigh, cookieLow, length + 8);
  view.setUint32(at + STRUCTURED_REPLY_BYTES, Math.floor(offset / 4294967296));
  view.setUint32(at + STRUCTURED_REPLY_BYTES + 4, offset >>> 0);
}

/** The header of a successful read, in the form the client negotiated. @returns its length */
export function putReadHeader(
  view: DataView,
  at: number,
  structured: boolean,
  cookieHigh: number,
  cookieLow: number,
  offset: number,
  length: number,
): number {
  if (structured) {
    putOffsetDataHeader(view, at, REPLY_FLAG_DONE, cookieHigh, cookieLow, offset, length);
    return OFFSET_DATA_BYTES;
  }
  putSimpleReply(view, at, 0, cookieHigh, cookieLow);
  return SIMPLE_REPLY_BYTES;
}

/** A reply without payload: success may be told simply whatever was negotiated. */
export function writeDone(writer: ReplyWriter, cookieHigh: number, cookieLow: number): void {
  const chunk = writer.reserve(SIMPLE_REPLY_BYTES);
  putSimpleReply(chunk.view, writer.at, 0, cookieHigh, cookieLow);
  writer.commit(SIMPLE_REPLY_BYTES);
}

/** The end of a read that was answered in several chunks. */
export function writeNone(writer: ReplyWriter, cookieHigh: number, cookieLow: number): void {
  const chunk = writer.reserve(STRUCTURED_REPLY_BYTES);
  putStructuredHeader(chunk.view, writer.at, REPLY_FLAG_DONE, ReplyType.none, cookieHigh, cookieLow, 0);
  writer.commit(STRUCTURED_REPLY_BYTES);
}

/** An error as the last word on a request; with structured replies it carries a message for people. */
export function writeError(
  writer: ReplyWriter,
  structured: boolean,
  cookieHigh: number,
  cookieLow: number,
  error: number,
  message: string,
): void {
  if (!structured) {
    const simple: Chunk = writer.reserve(SIMPLE_REPLY_BYTES);
    putSimpleReply(simple.view, writer.at, error, cookieHigh, cookieLow);
    writer.commit(SIMPLE_REPLY_BYTES);
    return;
  }
  const chunk = writer.reserve(STRUCTURED_REPLY_BYTES + 6 + MAX_MESSAGE_BYTES);
  const at = writer.at;
  const text = chunk.bytes.write(message, at + STRUCTURED_REPLY_BYTES + 6, MAX_MESSAGE_BYTES, "utf8");
  putStructuredHeader(chunk.view, at, REPLY_FLAG_DONE, ReplyType.error, cookieHigh, cookieLow, 6 + text);
  chunk.view.setUint32(at + STRUCTURED_REPLY_BYTES, error);
  chunk.view.setUint16(at + STRUCTURED_REPLY_BYTES + 4, text);
  writer.commit(STRUCTURED_REPLY_BYTES + 6 + text);
}
