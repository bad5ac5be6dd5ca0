import { parentPort } from "node:worker_threads";
import { inflateRawSync, inflateSync, zstdDecompressSync } from "node:zlib";
import { demandExpected, unpackOptions } from "./unpack.ts";
import type { UnpackReply, UnpackRequest } from "./unpack-threads.ts";

/* A thread of unpack-threads.ts: unpacks the pieces of one request after the other. */

const codecs = { deflate: inflateRawSync, zlib: inflateSync, zstd: zstdDecompressSync };
const port = parentPort!;
port.on("message", (request: UnpackRequest) => port.postMessage(unpackAll(request), []));

function unpackAll({ memory, pieces, to }: UnpackRequest): UnpackReply {
  const lengths: number[] = [];
  let at = to;
  for (const piece of pieces) {
    try {
      const packed = new Uint8Array(memory, piece.from, piece.length);
      const result = codecs[piece.codec](packed, unpackOptions(piece));
      demandExpected(result, piece);
      new Uint8Array(memory, at, result.length).set(result);
      lengths.push(result.length);
      at += result.length;
    } catch (error) {
      return { lengths, failure: error instanceof Error ? error.message : String(error) };
    }
  }
  return { lengths };
}
