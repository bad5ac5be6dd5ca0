import assert from "node:assert/strict";
import { cp, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { loadBlobFiles } from "../../src/blob/blob-files.ts";
import { checkBlob } from "../../src/blob/check-blob.ts";
import { type BlobMeta, encodeBlobMeta } from "../../src/blob/blob-meta.ts";
import { encodeRangeMap } from "../../src/blob/range-map-file.ts";

const id = "ab".repeat(16);
const volume = "cd".repeat(16);

/** A detached blob of two units, copied with cp -a. @returns the copy's directory */
async function copiedBlob(folder: string): Promise<string> {
  const dir = join(folder, "original", id);
  await mkdir(join(dir, "pins"), { recursive: true });
  await writeFile(join(dir, "data"), Buffer.alloc(8192, 7));
  const meta: BlobMeta = {
    id,
    url: "http://example.org/disk.raw",
    identity: { size: 8192, version: 'etag:"1"', strong: true },
    size: 8192,
    unitBytes: 4096,
    imageFormat: "raw",
    createdAt: "2026-11-20T12:00:00.000Z",
  };
  await writeFile(join(dir, "meta.json"), encodeBlobMeta(meta));
  const { ino } = await stat(join(dir, "data"));
  await writeFile(join(dir, "map"), encodeRangeMap(meta, ino, Uint8Array.of(3)));
  await writeFile(join(dir, "pins", volume), "");
  const copy = join(folder, "copy", id);
  await cp(dir, copy, { recursive: true });
  return copy;
}

for (const served of [false, true]) {
  void test(`rule 12: a copied blob is believed only after repair (${served ? "after" : "before"} a start with it)`, async () => {
    const folder = await mkdtemp(join(tmpdir(), "ullage-adopt-"));
    try {
      const dir = await copiedBlob(folder);
      if (served) {
        const files = await loadBlobFiles({ fs: realFileSystem, log: () => undefined }, dir);
        assert.equal(files.durableBits, undefined, "a copy is not believed by itself");
        await files.data.close();
      }
      const [problem, ...others] = await checkBlob(realFileSystem, dir);
      assert.deepEqual(others, []);
      assert.match(problem.message, /is a copy/);
      await problem.repair!.run();
      assert.deepEqual(await checkBlob(realFileSystem, dir), []);
      const files = await loadBlobFiles({ fs: realFileSystem, log: () => undefined }, dir);
      assert.deepEqual(files.durableBits, Uint8Array.of(3));
      await files.data.close();
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
}

void test("the map of a copy is not offered any more once the blob has one that is believed", async () => {
  const folder = await mkdtemp(join(tmpdir(), "ullage-adopt-"));
  try {
    const dir = await copiedBlob(folder);
    const files = await loadBlobFiles({ fs: realFileSystem, log: () => undefined }, dir);
    await writeFile(join(dir, "map"), encodeRangeMap(files.meta, files.data.binding().inode, Uint8Array.of(1)));
    await files.data.close();
    assert.deepEqual(await checkBlob(realFileSystem, dir), []);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});

void test("a copied map with a damaged checksum is not offered for belief", async () => {
  const folder = await mkdtemp(join(tmpdir(), "ullage-adopt-"));
  try {
    const dir = await copiedBlob(folder);
    const map = await readFile(join(dir, "map"));
    map[96] ^= 1;
    await writeFile(join(dir, "map.new"), map);
    await rename(join(dir, "map.new"), join(dir, "map"));
    const [problem] = await checkBlob(realFileSystem, dir);
    assert.match(problem.message, /checksum is wrong/);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
