import assert from "node:assert/strict";
import type { Backend, Identity, ReadOptions, Sink } from "../../src/backend/backend.ts";
import { Backends, type BackendsOptions } from "../../src/backend/backends.ts";
import { Connections, type ConnectionOptions } from "../../src/backend/http/connections.ts";
import { HttpBackend } from "../../src/backend/http/http.ts";
import { PlainObject } from "../../src/backend/http/http-object.ts";
import { systemClock } from "../../src/base/clock.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";

/** Time-outs short enough for a test; a test that is about one of them sets the others far away. */
export function httpBackend(url: string, options: ConnectionOptions = {}): HttpBackend & AsyncDisposable {
  const connections = new Connections(systemClock, { connectTimeoutMs: 5_000, idleTimeoutMs: 5_000, ...options });
  const backend = new HttpBackend(new PlainObject(url), connections);
  const close = async (): Promise<void> => {
    await backend.close();
    await connections.close();
  };
  return Object.assign(backend, { [Symbol.asyncDispose]: close });
}

/** One source, opened as the daemon does it; closing it closes all that was shared, too. */
export function openBackend(source: string, options: BackendsOptions & { guarded?: boolean } = {}): Backend {
  const backends = new Backends({ env: {}, ...options });
  const backend = backends.open(source, options.guarded ?? options.policy !== undefined);
  return {
    url: backend.url,
    probe: (...wanted) => backend.probe(...wanted),
    read: (...wanted) => backend.read(...wanted),
    stream: (...wanted) => backend.stream(...wanted),
    close: async () => {
      await backend.close();
      await backends.close();
    },
  };
}

/**
 * Lets what goes on inside this process, sockets to itself included, go as far as it can: so many turns of the event loop,
 * however long they take.
 */
export async function turns(): Promise<void> {
  for (let n = 0; n < 30; n++) await new Promise((resolve) => setTimeout(resolve, 1));
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
