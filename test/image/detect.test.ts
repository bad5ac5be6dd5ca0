import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtemp, open, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { brotliCompressSync, gzipSync, zstdCompressSync } from "node:zlib";
import { UllageError } from "../../src/base/errors.ts";
import { detectFormat, detectHeadBytes, parseFormats } from "../../src/image/detect.ts";
import { requireTool } from "../support/tools.ts";

function auto(head: Uint8Array): string {
  return detectFormat(head, 1 << 30).name;
}

/** The name in the error that refuses this beginning. */
function refused(head: Uint8Array): string {
  try {
    auto(head);
  } catch (error) {
    assert.ok(error instanceof UllageError && error.code === "format-unsupported");
    assert.match(error.hint ?? "", /--format raw/);
    return /^the image is (\S+), /.exec(error.message)![1];
  }
  return "nothing";
}

void test("a disk, an empty one, a file system and noise are raw", () => {
  const disk = Buffer.alloc(detectHeadBytes);
  assert.equal(auto(disk), "raw");
  disk.write("\x55\xaa", 510, "latin1");
  assert.equal(auto(disk), "raw");
  assert.equal(auto(Buffer.alloc(0)), "raw");
  assert.equal(auto(Buffer.from("hsqs and so on")), "raw");
  assert.equal(auto(brotliCompressSync("noise")), "raw");
  assert.equal(auto(Buffer.from("BZh9 is not enough for bzip2")), "raw");
});

void test("formats that are not raw are told by their signatures, those that can not be read are refused by name", () => {
  const at = (offset: number, text: string): Buffer => {
    const head = Buffer.alloc(detectHeadBytes);
    head.write(text, offset, "latin1");
    return head;
  };
  assert.equal(auto(at(0, "QFI\xfb\0\0\0\x03")), "qcow2");
  assert.equal(auto(at(0, "KDMV")), "vmdk");
  assert.equal(auto(at(0, "# Disk DescriptorFile\nversion=1\n")), "vmdk");
  assert.equal(auto(at(0, "conectix")), "vhd");
  assert.equal(auto(at(0, "vhdxfile")), "vhdx");
  assert.equal(refused(at(64, "\x7f\x10\xda\xbe")), "vdi");
  assert.equal(auto(at(0, "\xfd7zXZ\0")), "xz");
  assert.equal(refused(at(0, "BZh91AY&SY")), "bzip2");
  assert.equal(refused(at(0, "\x04\x22\x4d\x18")), "lz4");
  assert.equal(refused(at(0, "7z\xbc\xaf\x27\x1c")), "7z");
  assert.equal(refused(at(0, "WithoutFreeSpace")), "parallels");
  assert.equal(refused(at(0, "WithouFreSpacExt")), "parallels");
  assert.equal(refused(at(0, "Bochs Virtual HD Image")), "bochs");
  assert.equal(refused(at(0, "\x89LZO\0\r\n\x1a\n")), "lzop");
  assert.equal(refused(at(0, "Rar!\x1a\x07\0")), "rar");
  assert.equal(refused(at(0, "]\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0")), "lzma");
  assert.equal(auto(at(0, "]\0\0\x81\0\xff\xff\xff\xff\xff\xff\xff\xff\0")), "raw");
  assert.equal(auto(gzipSync("disk")), "gzip");
  assert.equal(auto(zstdCompressSync("disk")), "zstd");
});

void test("a head that is a view into a larger buffer is judged by its own bytes", () => {
  const around = Buffer.from("xxxxQFI\xfbxxxx", "latin1");
  assert.equal(auto(around.subarray(4)), "qcow2");
  assert.equal(auto(around), "raw");
  assert.equal(auto(around.subarray(4, 7)), "raw");
});

void test("what qemu-img makes is recognised, and its raw is raw", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const directory = await mkdtemp(join(tmpdir(), "ullage-detect-"));
  try {
    const raw = join(directory, "raw");
    await (await open(raw, "w")).close();
    await truncate(raw, 4 << 20);
    const expected = { qcow2: "qcow2", vmdk: "vmdk", vpc: "vhd", vhdx: "vhdx", vdi: "vdi", qed: "qed", raw: "raw" };
    for (const [format, name] of Object.entries(expected)) {
      const path = join(directory, format);
      execFileSync("qemu-img", ["convert", "-O", format, raw, path === raw ? `${path}2` : path], { stdio: "pipe" });
      const file = await open(path, "r");
      const head = Buffer.alloc(detectHeadBytes);
      await file.read(head, 0, head.length, 0);
      await file.close();
      const readable = ["qcow2", "vmdk", "vhd", "vhdx", "raw"].includes(name);
      assert.equal(readable ? auto(head) : refused(head), name, format);
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

void test("asked for by name, raw is taken at its word", () => {
  assert.deepEqual(
    parseFormats("tar+raw").map(({ name }) => name),
    ["tar", "raw"],
  );
  assert.deepEqual(parseFormats("auto"), []);
});

void test("a name that is no format lists those that are", () => {
  assert.throws(
    () => parseFormats("tar+qcow3"),
    (error) => error instanceof UllageError && error.code === "format-unknown" && /auto, qcow2/.test(error.hint ?? ""),
  );
  assert.throws(
    () => parseFormats("raw+qcow2"),
    (error) => error instanceof UllageError && /nothing can be inside of raw/.test(error.message),
  );
});
