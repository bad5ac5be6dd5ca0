import { parentPort } from "node:worker_threads";
import xzDecompress from "xz-decompress";
import { xzFailure } from "./xz-failure.ts";
import type { XzBlockReply, XzBlockRequest } from "./xz-blocks.ts";

/* A thread of xz-blocks.ts: unpacks one file after the other, each in memory as a whole. */

const port = parentPort!;
let last: Promise<void> = Promise.resolve();
port.on("message", (request: XzBlockRequest) => {
  last = last.then(async () => {
    const reply = await unpack(request);
    port.postMessage(reply, reply.bytes === undefined ? [] : [reply.bytes.buffer as ArrayBuffer]);
  });
});

async function unpack({ file, bytes }: XzBlockRequest): Promise<XzBlockReply> {
  const packed = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(file);
      controller.close();
    },
  });
  const result = new Uint8Array(bytes);
  let at = 0;
  try {
    for await (const chunk of new xzDecompress.XzReadableStream(packed)) {
      if (at + chunk.length > bytes) return { failure: `it unpacks to more than ${bytes} bytes` };
      result.set(chunk, at);
      at += chunk.length;
    }
  } catch (error) {
    return { failure: xzFailure(error).why };
  }
  return at === bytes ? { bytes: result } : { failure: `it unpacks to ${at} bytes instead of ${bytes}` };
}
