import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { checkBlob } from "../../src/blob/check-blob.ts";
import { MemoryReader, openBlob, openCache, randomContent, testObject, withCalls } from "./support.ts";

const UNIT = 64 * 1024;

void test("an object of one url, format and strong identity is one blob; anything else is another", async (t) => {
  const { cache } = await openCache(t);
  const object = testObject(10 * UNIT);
  const { url, imageFormat, identity } = object;
  const blob = await cache.create(object);
  assert.equal(cache.find(url, imageFormat, identity)?.id, blob.id);
  assert.equal(cache.find(`${url}2`, imageFormat, identity), undefined);
  assert.equal(cache.find(url, "qcow2", identity), undefined);
  assert.equal(cache.find(url, imageFormat, { ...identity, version: 'etag:"2"' }), undefined);
  assert.equal(cache.find(url, imageFormat, { ...identity, size: 1 }), undefined);
});

void test("durability rule 31: what a weak identity pins is never taken for the same object again", async (t) => {
  const { cache } = await openCache(t);
  const weak = { size: UNIT, version: 'etag:W/"1"', strong: false };
  await cache.create({ ...testObject(UNIT), identity: weak });
  assert.equal(cache.find(testObject(UNIT).url, "raw", weak), undefined);
});

void test("everybody who opens a blob gets the same one, and it closes with its last user", async (t) => {
  const reader = new MemoryReader(randomContent(4 * UNIT));
  const { blob, cache } = await openBlob(t, reader);
  const [a, b] = await Promise.all([cache.open(blob.id), cache.open(blob.id)]);
  assert.equal(a, blob);
  assert.equal(b, blob);
  await cache.release(blob.id);
  await cache.release(blob.id);
  await blob.fetch(0, 1);
  const closing = cache.release(blob.id);
  const again = await cache.open(blob.id);
  await closing;
  assert.notEqual(again, blob);
  assert.equal(again.isReady(0, UNIT), true);
});

void test("blobs are known after a restart, and opened from disk alone", async (t) => {
  const first = await openCache(t);
  const a = await first.cache.create(testObject(UNIT));
  const b = await first.cache.create({ ...testObject(2 * UNIT), url: "http://example.test/b" });
  await first.cache.close();
  const { cache } = await openCache(t, { dataDir: first.dataDir });
  assert.deepEqual(new Set(cache.list().map(({ id }) => id)), new Set([a.id, b.id]));
  assert.equal((await cache.open(b.id)).size, 2 * UNIT);
  await assert.rejects(cache.open("0".repeat(32)), { code: "not-found" });
});

void test("a second process is refused the cache directory", async (t) => {
  const { dataDir } = await openCache(t);
  await assert.rejects(openCache(t, { dataDir }), { code: "locked" });
});

void test("durability rule 13: a blob in use is not removed; a removed one leaves nothing, even when the removal was interrupted", async (t) => {
  const { blob, cache, dataDir } = await openBlob(t, new MemoryReader(randomContent(UNIT)));
  await blob.fetch(0, 1);
  await assert.rejects(cache.remove(blob.id), { code: "in-use" });
  await cache.release(blob.id);
  await cache.remove(blob.id);
  assert.deepEqual(readdirSync(join(dataDir, "blobs")), []);
  assert.deepEqual(cache.list(), []);
  await cache.close();
  mkdirSync(join(dataDir, "blobs", `${blob.id}.removed`, "pins"), { recursive: true });
  writeFileSync(join(dataDir, "blobs", `${blob.id}.removed`, "data"), "x");
  await openCache(t, { dataDir });
  assert.deepEqual(readdirSync(join(dataDir, "blobs")), []);
});

void test("a creation that fails leaves nothing behind", async (t) => {
  const fs = withCalls({
    open: (path, mode) =>
      path.endsWith("meta.json.tmp")
        ? Promise.reject(new IoError("ENOSPC", "disk full"))
        : realFileSystem.open(path, mode),
  });
  const { cache, dataDir } = await openCache(t, { fs });
  await assert.rejects(cache.create(testObject(UNIT)), { errno: "ENOSPC" });
  assert.deepEqual(readdirSync(join(dataDir, "blobs")), []);
});

void test("a directory without meta.json, or with a damaged one, is left alone and reported", async (t) => {
  const first = await openCache(t);
  const { id } = await first.cache.create(testObject(UNIT));
  const other = await first.cache.create({ ...testObject(UNIT), url: "http://example.test/b" });
  await first.cache.close();
  const dir = join(first.dataDir, "blobs", id);
  rmSync(join(first.dataDir, "blobs.json")); // with the index, it is found when the blob is opened
  rmSync(join(dir, "meta.json"));
  writeFileSync(join(first.dataDir, "blobs", other.id, "meta.json"), '{"format":"ullage-blob","version":1}');
  const { cache, log } = await openCache(t, { dataDir: first.dataDir });
  assert.deepEqual(cache.list(), []);
  assert.equal(log.length, 2);
  assert.equal(existsSync(join(dir, "data")), true);
  const [halfMade] = await checkBlob(realFileSystem, dir);
  assert.match(halfMade.message, /no meta.json; its creation did not end/);
  await halfMade.repair!.run();
  assert.equal(existsSync(dir), false);
  assert.match(
    (await checkBlob(realFileSystem, join(first.dataDir, "blobs", other.id)))[0].message,
    /missing or out of/,
  );
});

void test("a blob of a later format version is refused, naming both versions", async (t) => {
  const first = await openCache(t);
  const { id } = await first.cache.create(testObject(UNIT));
  await first.cache.close();
  rmSync(join(first.dataDir, "blobs.json"));
  const path = join(first.dataDir, "blobs", id, "meta.json");
  writeFileSync(path, readFileSync(path, "utf8").replace('"version": 1', '"version": 2'));
  await assert.rejects(openCache(t, { dataDir: first.dataDir }), /format version 2, this Ullage knows up to 1/);
});
