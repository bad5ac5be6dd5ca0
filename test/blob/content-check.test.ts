import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { ReadOptions, Sink } from "../../src/backend/backend.ts";
import { SourceError } from "../../src/base/errors.ts";
import { fillBlob } from "../../src/blob/fill-blob.ts";
import type { BlobCache, BlobCacheOptions } from "../../src/blob/cache.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { MemoryReader, openCache, randomContent, readCacheFile, temporaryDirectory, until } from "./support.ts";

const UNIT = 64 * 1024;
const SIZE = 40 * UNIT + 777;
const VOLUME = "a".repeat(32);
const signal = new AbortController().signal;

/** A source that is pinned by its digest, and sends other bytes in the middle for as long as `wrong` says. */
class LyingReader extends MemoryReader {
  wrong = 0;

  get digest(): string {
    return `sha256:${createHash("sha256").update(this.content).digest("hex")}`;
  }

  override async read(offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    const middle = 20 * UNIT + 5 - offset;
    const lies = this.wrong > 0 && middle >= 0 && middle < length;
    if (lies) this.wrong--;
    let at = 0;
    const bend: Sink = (chunk) => {
      if (lies && middle >= at && middle < at + chunk.length) chunk[middle - at] ^= 0x10;
      at += chunk.length;
      return sink(chunk);
    };
    await super.read(offset, length, bend, options);
  }
}

async function world(t: TestContext, overrides: Partial<BlobCacheOptions> = {}) {
  const reader = new LyingReader(randomContent(SIZE));
  const dataDir = temporaryDirectory(t);
  const options = { dataDir, openSource: () => Promise.resolve(reader), ...overrides };
  const opened = await openCache(t, options);
  const identity = { size: SIZE, version: `digest:${reader.digest}`, strong: true };
  const blob = await opened.cache.create({
    url: "oci://registry.test/disk:1",
    imageFormat: "raw",
    identity,
    size: SIZE,
    unitBytes: UNIT,
  });
  const again = async (cache: BlobCache) => {
    await cache.close();
    const next = await openCache(t, options);
    return { ...next, blob: await next.cache.open(blob.id) };
  };
  return { ...opened, reader, blob, again, mark: join(dataDir, "blobs", blob.id, "verified") };
}

void test("durability rule 36: a blob that is complete is compared with its digest, once, and that stays so over restarts", async (t) => {
  const { cache, blob, again, mark, reader } = await world(t);
  await blob.fetch(0, 10 * UNIT);
  assert.equal(await blob.check!.run(), false, "not everything is here");
  assert.equal(blob.check!.state, "unchecked");
  await fillBlob(blob, { signal });
  assert.equal(blob.check!.state, "verified");
  assert.ok(existsSync(mark));
  assert.equal((await cache.look(blob.id))!.verified, true);
  const asked = reader.requests.length;
  const next = await again(cache);
  assert.equal(next.blob.check!.state, "verified");
  assert.equal(await next.blob.check!.run(), true);
  assert.equal(reader.requests.length, asked);
});

void test("durability rule 36: wrong bytes in the middle: nothing of the blob stays ready, and it is fetched again", async (t) => {
  const { blob, reader, log, mark, dataDir } = await world(t);
  reader.wrong = 1;
  const heard: string[] = [];
  blob.watch({ ready: () => undefined, lost: () => heard.push("lost") });
  const { losses } = blob;
  await assert.rejects(fillBlob(blob, { signal }), (error: SourceError) => {
    assert.equal(error.code, "source-wrong-bytes");
    assert.match(error.message, /oci:\/\/registry\.test\/disk:1 has the digest sha256:[0-9a-f]{64}, not sha256:/);
    return true;
  });
  assert.equal(blob.readyBytes, 0);
  assert.equal(blob.isDurable(0, UNIT), false);
  assert.notEqual(blob.losses, losses, "a read that was under way does not count");
  assert.deepEqual(heard, ["lost"]);
  assert.equal(blob.check!.trouble?.error.code, "source-wrong-bytes");
  assert.equal(existsSync(mark), false);
  assert.match(log.join("\n"), /error blob .* nothing of it is used any more, and it is fetched again/);
  assert.ok(
    readFileSync(join(dataDir, "blobs", blob.id, "map"))
      .subarray(96, -4)
      .every((byte) => byte === 0),
  );
  await fillBlob(blob, { signal });
  assert.equal(blob.check!.state, "verified");
  assert.equal(blob.check!.trouble, undefined);
  const bytes = await readCacheFile(blob, 0, SIZE);
  assert.ok(bytes.equals(reader.content));
});

void test("durability rule 36: a source that is wrong three times is given up: reads fail with the reason, until it is resumed", async (t) => {
  const { blob, reader } = await world(t);
  reader.wrong = 1000;
  for (let round = 0; round < 3; round++) {
    await assert.rejects(fillBlob(blob, { signal }), { code: "source-wrong-bytes" });
  }
  assert.equal(blob.check!.state, "givenUp");
  const asked = reader.requests.length;
  await assert.rejects(blob.fetch(0, UNIT), { code: "source-wrong-bytes" });
  assert.equal(reader.requests.length, asked, "the source is asked no more");
  reader.wrong = 0;
  blob.check!.forgive();
  await fillBlob(blob, { signal });
  assert.equal(blob.check!.state, "verified");
});

void test("durability rule 36: filled by reads alone, a blob is compared by itself; a life that ends before that leaves it to the next", async (t) => {
  let slow = true;
  const { cache, blob, again, mark } = await world(t, {
    startHash: (algorithm) => {
      const hash = createHash(algorithm);
      return {
        update: (bytes) =>
          (slow ? Promise.reject(new Error("the life ends here")) : void hash.update(bytes)) ?? Promise.resolve(),
        digest: () => Promise.resolve(hash.digest("hex")),
        close: () => Promise.resolve(),
      };
    },
  });
  await blob.fetch(0, SIZE);
  await blob.sync();
  await assert.rejects(blob.check!.run(), /the life ends here/);
  assert.equal(existsSync(mark), false);
  slow = false;
  const next = await again(cache);
  await until(() => existsSync(mark)); // nobody asks
  assert.equal(next.blob.readyBytes, SIZE);
  assert.equal(await next.blob.check!.run(), true);
});

void test("durability rule 36: a mark counts only with a complete map of the same data file", async (t) => {
  const { cache, blob, again, mark, dataDir } = await world(t);
  await fillBlob(blob, { signal });
  const good = readFileSync(mark);
  const map = join(dataDir, "blobs", blob.id, "map");
  const bytes = readFileSync(map);
  bytes[bytes.length - 5] ^= 1;
  writeFileSync(map, bytes);
  const second = await again(cache);
  assert.equal(second.blob.readyBytes, 0);
  assert.equal(second.blob.check!.state, "unchecked");
  assert.equal(existsSync(mark), false, "it goes before anything becomes ready");
  writeFileSync(mark, good);
  const third = await again(second.cache);
  assert.equal(third.blob.check!.state, "unchecked");
});

void test("durability rule 36: what is evicted takes the mark with it, durably and first", async (t) => {
  const { cache, blob, mark } = await world(t);
  const needs = { needed: () => new Map<string, boolean>() };
  cache.setNeeds(needs);
  await cache.release(blob.id);
  const open = await cache.open(blob.id);
  await fillBlob(open, { signal });
  assert.ok(existsSync(mark));
  assert.ok((await open.evict(10 * UNIT)) > 0);
  assert.equal(existsSync(mark), false);
  assert.equal(open.check!.state, "unchecked");
});

void test("durability rule 36: bytes that detached volumes count on are kept when they turn out wrong, and that is told", async (t) => {
  const { cache, blob, again, reader, mark } = await world(t);
  await fillBlob(blob, { signal });
  await blob.pin(VOLUME);
  const { file } = blob;
  await file.write(IoBuffer.from(Buffer.alloc(512, 0xaa)), 0, 512, 3 * UNIT);
  unlinkSync(mark); // a blob from before there were marks
  const next = await again(cache);
  await assert.rejects(next.blob.check!.run(), { code: "source-wrong-bytes" });
  assert.equal(next.blob.readyBytes, SIZE);
  assert.equal(next.blob.check!.state, "givenUp");
  assert.match(next.log.join("\n"), /it is kept, since volumes may have nothing else/);
  assert.ok(reader.requests.length > 0);
});

void test("durability rule 36: disks of other formats, and sources without a digest, have nothing to compare", async (t) => {
  const { cache, reader } = await world(t);
  const identity = { size: SIZE, version: `digest:${reader.digest}`, strong: true };
  const about = { url: "oci://registry.test/disk:2", identity, unitBytes: UNIT };
  assert.equal((await cache.create({ ...about, imageFormat: "qcow2", size: SIZE })).check, undefined);
  assert.equal(
    (await cache.create({ ...about, imageFormat: "raw", identity: { ...identity, version: 'etag:"1"' }, size: SIZE }))
      .check,
    undefined,
  );
});

void test("durability rule 36: where a blob has holes is told when it was compared with its digest, and not before", async (t) => {
  const { blob, reader } = await world(t);
  assert.equal(blob.zeros.learn(0, SIZE), undefined);
  await blob.fetch(0, SIZE);
  await blob.sync();
  assert.equal(blob.isDurable(0, SIZE), true);
  assert.equal(blob.zeros.learn(0, SIZE), undefined);
  assert.equal(await blob.check!.run(), true);
  assert.equal(await blob.zeros.learn(0, SIZE), SIZE);
  assert.equal(blob.zeros.has(0), false);
  assert.ok(reader.requests.length > 0);
});
