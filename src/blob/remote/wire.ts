/*
 * The blob manager's protocol. Every message is a header of 20 bytes and a body of at most 4096; all integers are
 * little-endian and packed. Version 1 is the protocol that nydus-storage's remote blob manager client speaks; version 2
 * adds requests and reply fields. docs/BLOB-MANAGER.md has every message.
 *
 *     0  u64 tag (not 0)   8  u32 request   12  u32 flags   16  u32 bytes of the body
 *
 * Flags: bits 0-1 version, 0x4 REPLY, 0x8 NEED_REPLY, the rest zero. A message with a header that breaks these rules ends
 * the connection.
 */

export const headerBytes = 20;
export const bodyLengthAt = 16;
export const maxBodyBytes = 4096;
export const maxDescriptors = 4;

/** Bytes of a blob id in a request, NUL-padded. */
export const blobIdBytes = 256;

export const framing = { headerBytes, bodyLengthAt, maxBodyBytes, maxDescriptors };

/** What is asked. From `stat` on: version 2 only. */
export const Request = {
  noop: 0,
  getBlob: 1,
  fetchRange: 2,
  stat: 3,
  release: 4,
  cancel: 5,
  prefetch: 6,
  watch: 7,
  /** from the manager, unasked, to who watches */
  ready: 8,
  sync: 9,
  pin: 10,
  unpin: 11,
  pins: 12,
  /** JSON both ways: see questions.ts */
  ask: 13,
  /** where the blob's image has zeros; only of a blob whose readiness has room for what is known of them */
  learn: 14,
} as const;
export type RequestCode = (typeof Request)[keyof typeof Request];

const lastOfVersion: Record<1 | 2, number> = { 1: Request.fetchRange, 2: Request.learn };

/** Results of everything but GetBlob, which answers with an errno. */
export const Result = { success: 0, failure: 1, generationMismatch: 2, cancelled: 3 } as const;

const versionMask = 3;
const replyFlag = 4;
const needReplyFlag = 8;

export interface Header {
  tag: bigint;
  request: RequestCode;
  version: 1 | 2;
  reply: boolean;
  needReply: boolean;
}

/** @returns why the header is not valid, when it is not */
export function readHeader(bytes: Buffer): Header | string {
  const tag = bytes.readBigUInt64LE(0);
  const request = bytes.readUInt32LE(8);
  const flags = bytes.readUInt32LE(12);
  const version = flags & versionMask;
  if (tag === 0n) return "tag 0";
  if (version !== 1 && version !== 2) return `version ${version}`;
  if ((flags & ~(versionMask | replyFlag | needReplyFlag)) !== 0) return `reserved flags 0x${flags.toString(16)}`;
  if (request > lastOfVersion[version]) return `request ${request} in version ${version}`;
  const reply = (flags & replyFlag) !== 0;
  return { tag, request: request as RequestCode, version, reply, needReply: (flags & needReplyFlag) !== 0 };
}

/** A message of its own memory. */
export function encode(header: Header, body: Uint8Array): Buffer {
  if (body.length > maxBodyBytes) throw new RangeError(`a body of ${body.length} bytes`);
  const { tag, request, version, reply, needReply } = header;
  const bytes = Buffer.alloc(headerBytes + body.length);
  bytes.writeBigUInt64LE(tag, 0);
  bytes.writeUInt32LE(request, 8);
  bytes.writeUInt32LE(version | (reply ? replyFlag : 0) | (needReply ? needReplyFlag : 0), 12);
  bytes.writeUInt32LE(body.length, bodyLengthAt);
  bytes.set(body, headerBytes);
  return bytes;
}

/** Bytes of a request's body, exactly; undefined: as many as it has. */
export const bodyBytes: Record<RequestCode, number | undefined> = {
  [Request.noop]: 0,
  [Request.getBlob]: 4 + blobIdBytes,
  [Request.fetchRange]: 24,
  [Request.stat]: 8,
  [Request.release]: 8,
  [Request.cancel]: 8,
  [Request.prefetch]: 28,
  [Request.watch]: 8,
  [Request.ready]: 24,
  [Request.sync]: 8,
  [Request.pin]: 24,
  [Request.unpin]: 24,
  [Request.pins]: 12,
  [Request.ask]: undefined,
  [Request.learn]: 24,
};

/** Learn asks about no more of a range than its first bytes, so many. */
export const maxLearnBytes = 4 * 1024 * 1024 * 1024;

/** What prefetch does with the source: see blob/fetch-lanes.ts. */
export const Lane = { readahead: 1, background: 2 } as const;

/** A body that is written field by field. */
export class Body {
  readonly #parts: Buffer[] = [];

  u32(value: number): this {
    const part = Buffer.allocUnsafe(4);
    part.writeUInt32LE(value);
    this.#parts.push(part);
    return this;
  }

  u64(value: number | bigint): this {
    const part = Buffer.allocUnsafe(8);
    part.writeBigUInt64LE(BigInt(value));
    this.#parts.push(part);
    return this;
  }

  bytes(value: Uint8Array): this {
    this.#parts.push(Buffer.from(value));
    return this;
  }

  /** NUL-padded, or cut, to so many bytes. */
  text(value: string, length: number): this {
    const part = Buffer.alloc(length);
    part.write(value);
    this.#parts.push(part);
    return this;
  }

  done(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

/** A u64 that must be a length or an offset; NaN when it is too large to be one. */
export function readLength(bytes: Buffer, at: number): number {
  const value = bytes.readBigUInt64LE(at);
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : Number.NaN;
}

/** The text up to the first NUL. */
export function readText(bytes: Buffer): string {
  const end = bytes.indexOf(0);
  return bytes.toString("utf8", 0, end < 0 ? bytes.length : end);
}
