import assert from "node:assert/strict";
import { test } from "node:test";
import { SourceError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { fetchAround } from "../../src/blob/damage.ts";
import { client, openRemote, until, world } from "./support.ts";

const MiB = 1024 * 1024;

async function read(blob: Blob, offset: number, length: number): Promise<Buffer> {
  await blob.fetch(offset, length);
  assert.ok(blob.isReady(offset, length));
  const buffer = new IoBuffer(length);
  assert.equal(await blob.file.read(buffer, 0, length, offset), length);
  return buffer.bytes;
}

void test("a remote blob reads what the manager fetches, through the descriptor that was passed", async (t) => {
  const { reader, blobId, path } = await world(t, 3 * MiB);
  const blob = await openRemote(client(t, path).client, blobId);
  assert.equal(blob.size, 3 * MiB);
  assert.equal(blob.unitBytes, 64 * 1024);
  assert.ok(!blob.isReady(0, 1));
  assert.equal(blob.readyRun(0, 3 * MiB), 3 * MiB);
  assert.deepEqual(await read(blob, MiB, 4096), reader.content.subarray(MiB, MiB + 4096));
  assert.equal(blob.readyBytes, 64 * 1024);
  assert.ok(!blob.isDurable(MiB, 4096));
  await blob.sync();
  assert.ok(blob.isDurable(MiB, 4096));
  assert.deepEqual(await read(blob, 0, 3 * MiB), reader.content);
  assert.equal(blob.readyBytes, 3 * MiB);
  await blob.close();
});

void test("two clients that miss the same unit cause one request to the source", async (t) => {
  const { reader, blobId, path } = await world(t, MiB);
  const [one, two] = await Promise.all([
    openRemote(client(t, path).client, blobId),
    openRemote(client(t, path).client, blobId),
  ]);
  await Promise.all([read(one, 4096, 4096), read(two, 8192, 4096)]);
  assert.equal(reader.requests.length, 1);
});

void test("the manager holds a blob for as long as a client has it", async (t) => {
  const { cache, blobId, path } = await world(t, MiB);
  const made = client(t, path).client;
  const blob = await openRemote(made, blobId);
  await assert.rejects(cache.remove(blobId), { code: "in-use" });
  await blob.close();
  await until("released", () => cache.opened().length === 0);
  await cache.remove(blobId);
  await assert.rejects(openRemote(made, blobId), { code: "not-found" });
});

void test("pins are the blob's, whoever set them", async (t) => {
  const { blobId, path } = await world(t, MiB);
  const volume = "0123456789abcdef0123456789abcdef";
  const blob = await openRemote(client(t, path).client, blobId);
  await blob.pin(volume);
  const other = await openRemote(client(t, path).client, blobId);
  assert.ok(other.isPinnedBy(volume));
  await other.unpin(volume);
  assert.ok(!other.isPinnedBy(volume));
});

void test("what the source says is what the remote reader is told", async (t) => {
  const { reader, blobId, path } = await world(t, MiB);
  const blob = await openRemote(client(t, path).client, blobId);
  reader.before = () => Promise.reject(new Error("no such luck"));
  await assert.rejects(blob.fetch(0, 4096), /no such luck/);
  reader.before = () => undefined;
  await blob.fetch(0, 4096);
  assert.ok(blob.isReady(0, 4096));
});

void test("what is damaged at the manager's source is fetched around", async (t) => {
  const { reader, blobId, path } = await world(t, MiB);
  const blob = await openRemote(client(t, path).client, blobId);
  reader.before = (offset, length) => {
    if (offset > 200_000 || offset + length <= 200_000) return;
    throw new SourceError("image-damaged", "a cluster is not what it should be", { transient: false });
  };
  const found = await fetchAround(blob, 0, MiB, { background: true });
  assert.deepEqual(
    found.map(({ offset, length, error }) => [offset, length, error.code]),
    [[3 * 65536, 65536, "image-damaged"]],
  );
  assert.equal(blob.readyBytes, MiB - 65536);
});

void test("a fetch that is given up is given up by the manager too", async (t) => {
  const { reader, blobId, path } = await world(t, MiB);
  const blob = await openRemote(client(t, path).client, blobId);
  let stopped = false;
  reader.before = (_offset, _length, signal) =>
    new Promise((_resolve, reject) => {
      signal?.addEventListener("abort", () => {
        stopped = true;
        reject(signal.reason as Error);
      });
    });
  const controller = new AbortController();
  const fetching = blob.fetch(0, 4096, { signal: controller.signal });
  await until("asked", () => reader.requests.length === 1);
  controller.abort(new Error("enough"));
  await assert.rejects(fetching, /enough/);
  await until("stopped", () => stopped);
});

void test("readiness that others bring is told to who watches", async (t) => {
  const { blobId, path } = await world(t, MiB);
  const blob = await openRemote(client(t, path).client, blobId);
  const heard: string[] = [];
  await blob.watch((start, length) => heard.push(`${start}+${length}`));
  const other = await openRemote(client(t, path).client, blobId);
  await other.fetch(128 * 1024, 4096);
  await until("heard", () => heard.length > 0);
  assert.deepEqual(heard, [`${128 * 1024}+${64 * 1024}`]);
});
