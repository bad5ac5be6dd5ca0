import { randomBytes } from "node:crypto";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { ManagerClient } from "../../src/blob/remote/manager-client.ts";
import { RemoteBlob } from "../../src/blob/remote/remote-blob.ts";
import { BlobListener } from "../../src/daemon/cache/blob-listener.ts";
import { httpBackend } from "../backend/support.ts";
import {
  atEnd,
  MemoryReader,
  openBlob,
  openCache,
  randomContent,
  temporaryDirectory,
  type TestCache,
} from "../blob/support.ts";
import { startHttpSource } from "../support/http-source.ts";

export interface World extends TestCache {
  reader: MemoryReader;
  blobId: string;
  listener: BlobListener;
  path: string;
}

/** A manager with one blob of so many random bytes. */
export async function world(t: TestContext, size: number, unitBytes = 64 * 1024): Promise<World> {
  const reader = new MemoryReader(randomContent(size));
  const { cache, dataDir, log, blob } = await openBlob(t, reader, { unitBytes });
  await cache.release(blob.id);
  const path = join(dataDir, "blobd.sock");
  const listener = await BlobListener.open({
    path,
    dataDir,
    store: cache,
    log: (level, message) => log.push(`${level} ${message}`),
  });
  atEnd(t, () => listener.close());
  return { cache, dataDir, log, reader, blobId: blob.id, listener, path };
}

export function client(t: TestContext, path: string, patienceMs = 20_000): { client: ManagerClient; log: string[] } {
  const log: string[] = [];
  const made = new ManagerClient({
    path,
    clock: systemClock,
    random: () => 0.5,
    log: (level, message) => log.push(`${level} ${message}`),
    patienceMs,
  });
  atEnd(t, () => made.close());
  return { client: made, log };
}

export function openRemote(made: ManagerClient, id: string): Promise<RemoteBlob> {
  return RemoteBlob.open({ client: made, clock: systemClock, id, missBytes: 0, log: () => undefined });
}

/** Polls until it holds; fails after ten seconds. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; tries < 1000; tries++) {
    if (holds()) return;
    await systemClock.sleep(10);
  }
  throw new Error(`never: ${what}`);
}

export interface Announced {
  dataDirectory: string;
  socket: string;
  pid: number;
}

/** A data directory with a blob of an image behind HTTP, nothing of it fetched, and no manager yet. */
export async function lazyBlob(t: TestContext, size: number, latencyMs: number) {
  const content = randomBytes(size);
  const source = await startHttpSource({ content, latencyMs });
  atEnd(t, () => source[Symbol.asyncDispose]());
  const dataDir = temporaryDirectory(t);
  const backend = httpBackend(source.url);
  const { identity } = await backend.probe(0);
  await backend[Symbol.asyncDispose]();
  const { cache } = await openCache(t, { dataDir });
  const { id } = await cache.create({ url: source.url, imageFormat: "raw", identity, size, unitBytes: 64 * 1024 });
  await cache.close();
  return { content, source, dataDir, id };
}
