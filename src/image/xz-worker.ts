import { parentPort } from "node:worker_threads";
import xzDecompress from "xz-decompress";
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

/** The library's numbers (xz-embedded, enum xz_ret), for people. */
const reasons: Record<string, string> = {
  "3": "it needs too much memory",
  "4": "it needs too much memory",
  "5": "it is no xz stream",
  "6": "it uses a check or a filter that can't be read (SHA-256, or BCJ): unpack it with unxz first",
  "7": "its bytes are not what they should be",
  "8": "it ends too early",
};

try {
  for await (const bytes of new xzDecompress.XzReadableStream(packed)) {
    if (bytes.length === 0) continue;
    const free = new Promise<void>((resolve) => (taken = resolve));
    say({ kind: "bytes", bytes }, [bytes.buffer as ArrayBuffer]);
    await free;
  }
  say({ kind: "end" });
} catch (error) {
  const code = /error code (\d+)/.exec(String(error))?.[1] ?? "";
  say({ kind: "failed", why: reasons[code] ?? String(error) });
}
port.close();
