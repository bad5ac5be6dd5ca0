import assert from "node:assert/strict";
import type { Backend, Identity, ReadOptions, Sink } from "../../src/backend/backend.ts";
import { HttpBackend, type HttpOptions } from "../../src/backend/http.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";

/** Time-outs short enough for a test; a test that is about one of them sets the others far away. */
export function httpBackend(url: string, options: HttpOptions = {}): HttpBackend & AsyncDisposable {
  const backend = new HttpBackend(url, { connectTimeoutMs: 5_000, idleTimeoutMs: 5_000, ...options });
  return Object.assign(backend, { [Symbol.asyncDispose]: () => backend.close() });
}

/** What a read hands to its sink. */
export async function readBytes(
  backend: Backend,
  identity: Identity,
  offset: number,
  length: number,
  options?: ReadOptions,
): Promise<Buffer> {
  const collector = collect();
  await backend.read(identity, offset, length, collector.sink, options);
  return collector.bytes();
}

/** A sink that keeps copies; with `pause` it makes the source wait after every chunk. */
export function collect(pause?: () => Promise<void>): { sink: Sink; bytes(): Buffer } {
  const chunks: Buffer[] = [];
  const sink = (chunk: Uint8Array): void | Promise<void> => {
    chunks.push(Buffer.from(chunk));
    return pause?.();
  };
  return { sink, bytes: () => Buffer.concat(chunks) };
}

/** Expects a SourceError with this code and returns it. */
export async function failsWith(code: string, work: Promise<unknown>): Promise<SourceError> {
  let failure: unknown;
  await work.catch((error: unknown) => (failure = error));
  assert.ok(failure instanceof SourceError, `expected ${code}, got ${describeError(failure)}`);
  assert.equal(failure.code, code, describeError(failure));
  return failure;
}

/** Deterministic bytes in which no two 4-byte words nearby are equal. */
export function pattern(length: number, seed = 1): Buffer {
  const bytes = Buffer.alloc(Math.ceil(length / 4) * 4);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(Math.imul(at + seed, 2654435761) >>> 0, at);
  return bytes.subarray(0, length);
}
