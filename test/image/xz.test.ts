import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { findImage } from "../../src/image/open-image.ts";
import { readBytes } from "../../src/image/read-bytes.ts";
import { requireTool } from "../support/tools.ts";
import { differs, fileReader, makeDisk, openFile, run, temporaryDirectory } from "./support.ts";

for (const flags of [
  "--block-size=256KiB",
  "--block-size=1MiB -T2",
  "--block-size=100KiB --check=crc32",
  "--block-size=1MiB --check=none -9",
]) {
  void test(`xz of many blocks is read lazily, as a disk and around a qcow2: ${flags}`, async (t) => {
    if (!requireTool(t, "qemu-img", "xz")) return;
    const dir = temporaryDirectory(t);
    const [raw, inner, image] = ["raw", "inner", "image"].map((name) => join(dir, name));
    makeDisk(raw);
    run("sh", "-c", `xz -c ${flags} ${raw} > ${image}`);
    const { reader, format, watched } = await openFile(image);
    assert.equal(format, "xz+raw");
    const before = watched.total;
    await readBytes(reader, 1_600_000, 4096);
    assert.ok(watched.total - before <= 1_100_000, `${watched.total - before} bytes`);
    assert.equal(await differs(reader, raw), undefined);
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, inner);
    run("sh", "-c", `xz -c ${flags} ${inner} > ${image}`);
    const packed = await openFile(image);
    assert.equal(packed.format, "xz+qcow2");
    assert.equal(await differs(packed.reader, raw), undefined);
  });
}

void test("xz streams behind each other, with padding between them and without content, are one disk", async (t) => {
  if (!requireTool(t, "xz")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw);
  const part = (from: string): string => `${from} ${raw} | xz -c --block-size=500KiB`;
  const zeros = "head -c 65536 /dev/zero";
  run(
    "sh",
    "-c",
    `{ ${part("head -c 1000001")}; ${zeros}; xz -c </dev/null; ${part("tail -c +1000002")}; head -c 8 /dev/zero; } > ${image}`,
  );
  const { reader, format } = await openFile(image);
  assert.equal(format, "xz+raw");
  assert.equal(await differs(reader, raw), undefined);
});

void test("xz with one block, or with blocks too large to be worth it, is to be unpacked as a whole", async (t) => {
  if (!requireTool(t, "xz")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw, 40 * 1024 * 1024);
  for (const flags of ["-T1", "-T1 --block-size=33MiB"]) {
    run("sh", "-c", `xz -0 -c ${flags} ${raw} > ${image}`);
    assert.ok("packed" in (await findImage(await fileReader(image), "auto", {})), flags);
  }
});

void test("xz that takes more memory than there is for it, or filters, or SHA-256, is refused with what to do", async (t) => {
  if (!requireTool(t, "xz")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw, 1_000_000);
  for (const [flags, why, hint] of [
    ["--lzma2=preset=0,dict=64MiB", undefined, ""],
    ["--lzma2=preset=0,dict=65MiB", /needs a dictionary of 96 MiB, and has to do with 64 MiB/, /unxz, then xz/],
    ["--lzma2=preset=0,dict=1GiB --block-size=100KiB", /needs a dictionary of 1024 MiB/, /smaller/],
    ["--x86 --lzma2=preset=0", /uses filter 4/, /without filters/],
    ["--check=sha256", /has checks of type 10/, /crc64/],
  ] as const) {
    run("sh", "-c", `xz -c ${flags} ${raw} > ${image}`);
    const finding = findImage(await fileReader(image), "auto", {});
    if (why === undefined) await finding;
    else {
      await assert.rejects(finding, (error: Error & { code: string; hint: string }) => {
        assert.equal(error.code, "image-unsupported");
        assert.match(error.message, why);
        assert.match(error.hint, hint);
        return true;
      });
    }
  }
});

void test("an xz block that was changed fails the reads of that block, and no others; a changed index is refused", async (t) => {
  if (!requireTool(t, "xz")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw);
  run("sh", "-c", `xz -c --block-size=700KiB ${raw} > ${image}`);
  const good = readFileSync(image);
  const bad = Buffer.from(good);
  // The noise from 1.5 MB on is what makes up most of the file: its second half is in block 3.
  bad[Math.floor(good.length * 0.3)] ^= 1;
  writeFileSync(image, bad);
  const { reader } = await openFile(image);
  const expected = readFileSync(raw);
  let failed = 0;
  for (let at = 0; at < reader.size; at += 700 * 1024) {
    const length = Math.min(700 * 1024, reader.size - at);
    try {
      assert.ok((await readBytes(reader, at, length)).equals(expected.subarray(at, at + length)));
    } catch (error) {
      assert.equal((error as { code: string }).code, "image-damaged");
      failed++;
    }
  }
  assert.equal(failed, 1);
  const index = Buffer.from(good);
  index[index.length - 20] ^= 1;
  writeFileSync(image, index);
  await assert.rejects(openFile(image), { code: "image-damaged" });
});
