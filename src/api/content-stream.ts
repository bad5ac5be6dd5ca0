import { Readable } from "node:stream";
import { UllageError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import type { VolumeContent } from "../daemon/volumes/contents.ts";
import { sparseAlive, sparseData, sparseEnd, sparseFailure, sparseHeader } from "../image/sparse-stream.ts";
import type { ByteRange } from "./byte-range.ts";
import { problemOf } from "./problems.ts";

/*
 * Contents on their way to a client. There is one piece in memory beside what the client's socket takes; while it takes
 * nothing, nothing is read, and when that goes on for too long it is cut off. What can't be read ends the stream: plain bytes
 * by an end before their announced length, a sparse stream by a record that says why.
 */

/** Read at a time: short enough for the event loop, since it is done at once when it is in memory. */
const pieceBytes = 256 * 1024;

interface StreamOptions {
  /** Aborted, with a UllageError, when the client may not read any more. */
  revoked: AbortSignal | undefined;
  /** How long a client may take nothing. */
  stallMs: number;
  /** Hears why a stream ended early, when that was not the client's wish. */
  onFailure: (error: unknown) => void;
}

/** Some of the bytes, as they are. The content is closed with the stream. */
export function contentStream(content: VolumeContent, range: ByteRange, options: StreamOptions): Readable {
  return stream(content, options, async function* () {
    const piece = new IoBuffer(pieceBytes);
    for (let at = range.start; at < range.end;) {
      options.revoked?.throwIfAborted();
      const length = Math.min(pieceBytes, range.end - at);
      await content.read(at, length, piece, 0);
      yield Buffer.from(piece.bytes.subarray(0, length)); // the socket may keep it
      at += length;
    }
  });
}

/** All of it, without its zeros (image/sparse-stream.ts). The content is closed with the stream. */
export function sparseContentStream(content: VolumeContent, options: StreamOptions): Readable {
  return stream(content, options, async function* () {
    const { size } = content;
    const runs = await content.survey();
    yield sparseHeader(size, runs.bytes);
    const piece = new IoBuffer(pieceBytes);
    let at = 0;
    let looked = 0;
    try {
      for (let run = runs.next(0); run !== undefined; run = runs.next(at)) {
        options.revoked?.throwIfAborted();
        at = run.offset;
        const length = Math.min(run.length, pieceBytes);
        await content.read(at, length, piece, 0);
        const records = sparseData(piece.bytes, 0, length, at);
        if (records.length > 0) yield records;
        at += length;
        looked += length;
        yield sparseAlive(looked);
      }
    } catch (error) {
      options.onFailure(error);
      const { code, detail, hint } = problemOf(error);
      yield sparseFailure(at, { code, detail, ...(hint === undefined ? {} : { hint }) });
      return;
    }
    yield sparseEnd(size);
  });
}

function stream(
  content: VolumeContent,
  { stallMs, onFailure }: StreamOptions,
  pieces: () => AsyncGenerator<Buffer>,
): Readable {
  async function* watched(): AsyncGenerator<Buffer> {
    for await (const piece of pieces()) {
      const stalled = new UllageError("client-stalled", `the client took nothing for ${stallMs / 1000} seconds`);
      const timer = setTimeout(() => readable.destroy(stalled), stallMs);
      try {
        yield piece;
      } finally {
        clearTimeout(timer);
      }
    }
  }
  const readable: Readable = Readable.from(watched(), { objectMode: false, highWaterMark: 1 });
  readable.once("error", onFailure);
  readable.once("close", () => void content.close());
  return readable;
}
