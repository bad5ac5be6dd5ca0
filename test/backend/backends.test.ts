import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { test } from "node:test";
import { canonicalSource } from "../../src/backend/source-address.ts";
import { UllageError } from "../../src/base/errors.ts";
import { startHttpSource } from "../support/http-source.ts";
import { openBackend } from "./support.ts";

void test("paths, relative paths and file addresses open the same file", async () => {
  const directory = await mkdtemp(join(tmpdir(), "ullage-open-"));
  try {
    const path = join(directory, "a disk.img");
    await writeFile(path, "content");
    const sources = [path, relative(process.cwd(), path), `file://${path.replace(" ", "%20")}`];
    for (const source of sources) {
      const backend = openBackend(source);
      assert.equal((await backend.probe(100)).head.toString(), "content");
      assert.equal(backend.url, path);
      assert.equal(canonicalSource(source), path);
      await backend.close();
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

void test("http addresses open over HTTP", async () => {
  await using source = await startHttpSource({ content: Buffer.from("content") });
  const backend = openBackend(source.url);
  assert.equal((await backend.probe(100)).head.toString(), "content");
  assert.equal(backend.url, source.url);
  await backend.close();
});

void test("the canonical form has no credentials and no fragment, keeps the query, and is the same for the same object", () => {
  assert.equal(canonicalSource("https://me:secret@a.example/disk.img?v=1#x"), "https://a.example/disk.img?v=1");
  assert.equal(canonicalSource("HTTP://A.example:80/disk.img"), "http://a.example/disk.img");
  assert.equal(canonicalSource("/images/../disk.img"), "/disk.img");
});

void test("a scheme that this version does not read is an error that says what it reads", () => {
  for (const scheme of ["nbd+ssh", "gopher", "ftp"]) {
    for (const call of [openBackend, canonicalSource]) {
      assert.throws(
        () => call(`${scheme}://bucket/disk.img`),
        (error) =>
          error instanceof UllageError &&
          error.code === "source-unsupported" &&
          error.message === `this version reads files, http(s), s3, oss, oci and nbd(s), not ${scheme}://`,
      );
    }
  }
});

void test("what is no source is an error without the secrets in it", () => {
  for (const source of ["", "a\0b", "http://", "https://me:sec/ret@a.example:99999/", "file://elsewhere/disk.img"]) {
    assert.throws(
      () => canonicalSource(source),
      (error) => error instanceof UllageError && error.code === "source-invalid" && !/sec|ret@/.test(error.message),
      source,
    );
  }
});
