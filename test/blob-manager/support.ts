import { join } from "node:path";
import type { TestContext } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { ManagerClient } from "../../src/blob/remote/manager-client.ts";
import { RemoteBlob } from "../../src/blob/remote/remote-blob.ts";
import { BlobListener } from "../../src/daemon/blob-listener.ts";
import { atEnd, MemoryReader, openBlob, randomContent, type TestCache } from "../blob/support.ts";

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
  return RemoteBlob.open({ client: made, clock: systemClock, id, log: () => undefined });
}

/** Polls until it holds; fails after ten seconds. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  for (let tries = 0; tries < 1000; tries++) {
    if (holds()) return;
    await systemClock.sleep(10);
  }
  throw new Error(`never: ${what}`);
}
