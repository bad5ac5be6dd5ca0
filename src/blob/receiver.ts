import type { Sink } from "../backend/backend.ts";
import { SourceError } from "../base/errors.ts";
import type { IoBuffer } from "../base/io-buffer.ts";

/** Where the bytes of one request to a source go. */
export interface Receiver {
  readonly sink: Sink;
  /** Bytes taken so far. */
  readonly received: number;
  /** Resolves when everything is where it belongs. @throws IoError, or SourceError when bytes are missing */
  finish(): Promise<void>;
  /** To be awaited at the end, whatever happened. @returns what the place that they go to answered, if that was an error */
  close(): Promise<unknown>;
}

/** @throws SourceError when a source sent more than it was asked for */
export function demandNoMore(received: number, expected: number): void {
  if (received <= expected) return;
  throw new SourceError("source-protocol", `the source sent more than the ${expected} bytes asked for`, {
    transient: false,
  });
}

/** @throws SourceError when it has ended and sent less */
export function demandAll(received: number, expected: number): void {
  if (received === expected) return;
  throw new SourceError("source-short", `the source sent ${received} bytes instead of ${expected}`, {
    transient: true,
  });
}

/** Puts the bytes into the memory of whoever asked. */
export class BufferReceiver implements Receiver {
  received = 0;
  readonly #buffer: IoBuffer;
  readonly #at: number;
  readonly #length: number;

  constructor(buffer: IoBuffer, at: number, length: number) {
    this.#buffer = buffer;
    this.#at = at;
    this.#length = length;
  }

  readonly sink = (chunk: Uint8Array): void => {
    demandNoMore(this.received + chunk.length, this.#length);
    this.#buffer.bytes.set(chunk, this.#at + this.received);
    this.received += chunk.length;
  };

  async finish(): Promise<void> {
    demandAll(this.received, this.#length);
  }

  close(): Promise<undefined> {
    return Promise.resolve(undefined);
  }
}
