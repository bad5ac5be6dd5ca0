import { parentPort } from "node:worker_threads";
import xzDecompress from "xz-decompress";
import { xzFailure } from "./xz-failure.ts";
import type { XzReply } from "./xz.ts";

/*
 * The thread behind an XzUnpacker. Unpacking is one long computation, which would stop everything else on the event loop.
 */

const port = parentPort!;
const say = (reply: XzReply, transfer: ArrayBuffer[] = []): void => port.postMessage(reply, transfer);

let given: ((chunk: Uint8Array | null) => void) | undefined;
let taken: (() => void) | undefined;
port.on("message", (message: Uint8Array | null | "taken") => {
  if (message === "taken") taken?.();
  else given?.(message);
});

const packed = new ReadableStream<Uint8Array>(
  {
    async pull(controller) {
      const chunk = await new Promise<Uint8Array | null>((resolve) => {
        given = resolve;
        say({ kind: "more" });
      });
      if (chunk === null) controller.close();
      else controller.enqueue(chunk);
    },
  },
  { highWaterMark: 0 },
);

try {
  for await (const bytes of new xzDecompress.XzReadableStream(packed)) {
    if (bytes.length === 0) continue;
    const free = new Promise<void>((resolve) => (taken = resolve));
    say({ kind: "bytes", bytes }, [bytes.buffer as ArrayBuffer]);
    await free;
  }
  say({ kind: "end" });
} catch (error) {
  say({ kind: "failed", ...xzFailure(error) });
}
port.close();
