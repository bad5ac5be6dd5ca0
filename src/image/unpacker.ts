import { createGunzip, createZstdDecompress, type Gunzip, type ZstdDecompress } from "node:zlib";
import type { Sink } from "../backend/backend.ts";
import { damagedImage, type Unpacker } from "./image-format.ts";

const OUTPUT_BYTES = 256 * 1024;

/** gzip, also several members behind each other, padded with zeros. */
export const gunzip = (sink: Sink): Unpacker =>
  new ZlibUnpacker("gzip", createGunzip({ chunkSize: OUTPUT_BYTES }), sink);

/** Zstandard, also several frames behind each other; windows of up to 128 MiB. */
export const unzstd = (sink: Sink): Unpacker =>
  new ZlibUnpacker("zstd", createZstdDecompress({ chunkSize: OUTPUT_BYTES }), sink);

/** Works in the thread pool: one call at a time, so that reads are not in the way of it. */
class ZlibUnpacker implements Unpacker {
  readonly #name: string;
  readonly #stream: Gunzip | ZstdDecompress;
  /** The output: ends with the stream, or with what went wrong. */
  readonly #output: Promise<void>;
  #ended = false;
  #taken = 0;

  constructor(name: string, stream: Gunzip | ZstdDecompress, sink: Sink) {
    this.#name = name;
    this.#stream = stream;
    this.#output = this.#drain(sink);
    this.#output.catch(() => undefined); // met by the next write
  }

  async #drain(sink: Sink): Promise<void> {
    let failure: { error: unknown } | undefined;
    try {
      for await (const chunk of this.#stream) {
        try {
          await sink(chunk as Buffer);
        } catch (error) {
          failure = { error };
          throw error;
        }
      }
    } catch (cause) {
      if (failure !== undefined) throw failure.error;
      throw damagedImage(this.#name, "it can't be unpacked", cause);
    } finally {
      this.#ended = true;
    }
  }

  async write(chunk: Uint8Array): Promise<void> {
    const before = this.#taken;
    this.#taken += chunk.length;
    if (!this.#ended) {
      // Once the output has ended, the stream never says that it took what lies behind its end.
      const taken = new Promise<void>((resolve) => this.#stream.write(chunk, () => resolve()));
      await Promise.race([this.#output, taken]);
    }
    if (this.#ended) await this.#output;
    const rest = chunk.subarray(Math.max(0, this.#stream.bytesWritten - before));
    if (rest.some((byte) => byte !== 0)) throw damagedImage(this.#name, "something else is behind its end");
  }

  async end(): Promise<void> {
    if (!this.#ended) this.#stream.end();
    await this.#output;
  }

  async close(): Promise<void> {
    this.#stream.destroy();
    await this.#output.catch(() => undefined);
  }
}
