import { parentPort } from "node:worker_threads";
import { hasNativeCodecs, NativeUnpacker } from "../base/native-codecs.ts";
import { PortableUnpacker } from "./portable-unpacker.ts";
import { demandExpected } from "./unpack.ts";
import type { UnpackReply, UnpackRequest } from "./unpack-threads.ts";

/* A thread of unpack-threads.ts: unpacks the pieces of one request after the other. */

const port = parentPort!;
port.on("message", (request: UnpackRequest) => port.postMessage(unpackAll(request), []));

function unpackAll({ memory, pieces, to }: UnpackRequest): UnpackReply {
  const bytes = Buffer.from(memory);
  using unpacker = hasNativeCodecs ? new NativeUnpacker(bytes) : new PortableUnpacker(bytes);
  const lengths: number[] = [];
  let at = to;
  for (const piece of pieces) {
    try {
      const length = unpacker.unpack(piece.codec, {
        from: piece.from,
        length: piece.length,
        to: at,
        room: piece.bytes,
      });
      demandExpected(length, piece);
      lengths.push(length);
      at += length;
    } catch (error) {
      return { lengths, failure: error instanceof Error ? error.message : String(error) };
    }
  }
  return { lengths };
}
