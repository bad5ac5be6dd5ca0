import { createHash } from "node:crypto";
import { parentPort, workerData } from "node:worker_threads";
import type { HashReply } from "./hash-thread.ts";

/* The thread behind a HashThread. */

const port = parentPort!;
const hash = createHash(workerData as string);
port.on("message", (message: Uint8Array | null) => {
  const reply: HashReply =
    message === null ? { kind: "digest", hex: hash.digest("hex") } : (hash.update(message), { kind: "more" });
  port.postMessage(reply, []);
});
