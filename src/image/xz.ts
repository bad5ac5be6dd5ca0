import { Worker } from "node:worker_threads";
import type { Sink } from "../backend/backend.ts";
import { threadFile } from "../base/threads/thread-file.ts";
import { damagedImage, unsupportedImage, type ImageFormat, type Unpacker } from "./image-format.ts";
import { MappedReader } from "./mapped-reader.ts";
import { XzMap } from "./xz-blocks.ts";
import { XZ_FORMAT, demandReadableXz, isXz, readXzBlocks } from "./xz-index.ts";

/**
 * xz. A file of many blocks, as `xz --block-size` and `xz -T` make it, is read lazily: the block that holds a byte is
 * unpacked, whole. Any other is unpacked once, from its beginning to its end, in a thread of its own.
 */
export const xzFormat: ImageFormat = {
  name: XZ_FORMAT,
  container: true,
  detect: isXz,
  async open(source, { signal }) {
    const options = signal === undefined ? {} : { signal };
    await demandReadableXz(source, options);
    const blocks = await readXzBlocks(source, options);
    return blocks === undefined ? undefined : new MappedReader(source, new XzMap(blocks));
  },
  unpacker: (sink) => new XzUnpacker(sink),
};

/** To the thread: packed bytes, or null at the end. From it: unpacked bytes; `more`: give me the next; the end. */
export type XzReply =
  | { kind: "bytes"; bytes: Uint8Array }
  | { kind: "more" }
  | { kind: "end" }
  | { kind: "failed"; why: string; unsupported: boolean };

/** The thread asks for packed bytes when it has worked off what it has, and goes on when its output was taken. */
class XzUnpacker implements Unpacker {
  readonly #worker: Worker;
  readonly #sink: Sink;
  readonly #done = Promise.withResolvers<void>();
  #more = Promise.withResolvers<void>();
  #ended = false;

  constructor(sink: Sink) {
    this.#sink = sink;
    this.#worker = new Worker(threadFile("xz-worker", import.meta.url));
    this.#done.promise.catch(() => undefined); // met by the next write
    this.#worker.on("message", (reply: XzReply) => void this.#take(reply));
    this.#worker.on("error", (error: Error) => this.#done.reject(error));
    this.#worker.on("exit", () => this.#done.reject(new Error("the thread that unpacks xz has ended")));
  }

  async #take(reply: XzReply): Promise<void> {
    if (reply.kind === "more") this.#more.resolve();
    else if (reply.kind === "failed") this.#done.reject(failed(reply));
    else if (reply.kind === "end") {
      this.#ended = true;
      this.#done.resolve();
    } else {
      try {
        await this.#sink(reply.bytes);
        this.#worker.postMessage("taken", []);
      } catch (error) {
        this.#done.reject(error);
      }
    }
  }

  async write(chunk: Uint8Array): Promise<void> {
    await Promise.race([this.#more.promise, this.#done.promise]);
    if (this.#ended) throw damagedImage("xz", "something else is behind its end");
    this.#more = Promise.withResolvers();
    this.#worker.postMessage(Uint8Array.from(chunk), []);
  }

  async end(): Promise<void> {
    await Promise.race([this.#more.promise, this.#done.promise]);
    if (!this.#ended) this.#worker.postMessage(null, []);
    await this.#done.promise;
  }

  async close(): Promise<void> {
    await this.#worker.terminate();
  }
}

function failed({ why, unsupported }: Extract<XzReply, { kind: "failed" }>): Error {
  return unsupported ? unsupportedImage(XZ_FORMAT, why, "unpack it first: unxz") : damagedImage(XZ_FORMAT, `it ${why}`);
}
