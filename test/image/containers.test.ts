import assert from "node:assert/strict";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { SourceError } from "../../src/base/errors.ts";
import { readBytes } from "../../src/image/read-bytes.ts";
import { requireTool } from "../support/tools.ts";
import { differs, makeDisk, openFile, readDisk, run, temporaryDirectory } from "./support.ts";

/** Formats that qemu-img makes, and what `openImage` calls them. */
const made: [name: string, output: string, ...flags: string[]][] = [
  ["vmdk", "vmdk", "-o", "subformat=monolithicSparse"],
  ["vmdk", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on"],
  ["vmdk", "vmdk", "-o", "subformat=streamOptimized"],
  ["vhd", "vpc", "-o", "subformat=dynamic"],
  ["vhd", "vpc", "-o", "subformat=dynamic,force_size=on"],
  ["vhd", "vpc", "-o", "subformat=fixed,force_size=on"],
  ["vhdx", "vhdx", "-o", "subformat=dynamic"],
  ["vhdx", "vhdx", "-o", "subformat=dynamic,block_size=1M"],
  ["vhdx", "vhdx", "-o", "subformat=fixed"],
];

for (const [name, output, ...flags] of made) {
  void test(`${name} reads as qemu-img reads it: ${flags.at(-1)}`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const dir = temporaryDirectory(t);
    const [raw, image, again] = ["raw", "image", "again"].map((file) => join(dir, file));
    makeDisk(raw, 40 * 1024 * 1024 + 512 * 3);
    run("qemu-img", "convert", "-f", "raw", "-O", output, ...flags, raw, image);
    run("qemu-img", "convert", "-f", output, "-O", "raw", image, again);
    const { reader, format } = await openFile(image, flags.at(-1)!.includes("fixed,") ? "vhd" : "auto");
    assert.equal(format, name);
    assert.equal(await differs(reader, again), undefined);
  });
}

void test("a small read of vmdk, vhd and vhdx reads little of them", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(dir, file));
  makeDisk(raw, 256 * 1024 * 1024);
  for (const [name, output, ...flags] of made.filter((each) => !each.at(-1)!.includes("fixed"))) {
    run("qemu-img", "convert", "-f", "raw", "-O", output, ...flags, raw, image);
    const { reader, watched } = await openFile(image);
    await readBytes(reader, 1_600_000, 4096);
    assert.ok(watched.total < 1024 * 1024, `${name} ${flags.at(-1)}: ${watched.total} bytes`);
  }
});

void test("fixed vhd is raw unless it is called so or asked for: it begins with bytes that are the disk's", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(dir, file));
  makeDisk(raw);
  run("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", raw, image);
  assert.equal((await openFile(image)).format, "raw");
  for (const name of ["/images/a.vhd", "https://example.org/A.VHD?versionId=1"]) {
    const { reader, format } = await openFile(image, "auto", { name });
    assert.equal(format, "vhd");
    assert.equal(await differs(reader, raw), undefined);
    assert.equal((await openFile(raw, "auto", { name })).format, "raw");
    assert.equal((await openFile(image, "raw", { name })).format, "raw");
  }
  assert.equal((await openFile(image, "auto", { name: "/images/vhd" })).format, "raw");
});

void test("images that lie on others, in several files, or have other types are refused with the reason", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const [raw, image, base] = ["raw", "image", "base"].map((file) => join(dir, file));
  makeDisk(raw);
  const refused = async (): Promise<string> => {
    try {
      await readDisk((await openFile(image)).reader);
    } catch (error) {
      assert.ok(error instanceof SourceError && !error.transient, String(error));
      return `${error.code}: ${error.message}`;
    }
    return "it was read";
  };
  run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, image);
  assert.match(await refused(), /image-unsupported: .*descriptor only/);
  run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", raw, join(dir, "split.vmdk"));
  renameSync(join(dir, "split-s001.vmdk"), image);
  assert.match(await refused(), /image-unsupported: .*one of several files/);
  run("qemu-img", "convert", "-O", "vmdk", raw, base);
  run("qemu-img", "create", "-f", "vmdk", "-b", base, "-F", "vmdk", image);
  assert.match(await refused(), /image-unsupported: .*lies on another/);
  run("qemu-img", "convert", "-O", "vhdx", raw, image);
  const open = readFileSync(image);
  open.fill(0, 64 * 1024, 68 * 1024); // one header is enough
  writeFileSync(image, open);
  assert.equal((await openFile(image)).format, "vhdx");
  open.fill(0, 128 * 1024, 132 * 1024);
  writeFileSync(image, open);
  assert.match(await refused(), /image-damaged: .*headers/);
});

/** Makes an archive with Debian's tar. */
function pack(dir: string, archive: string, ...args: string[]): string {
  const path = join(dir, archive);
  run("tar", "-C", dir, "-cf", path, ...args);
  return path;
}

void test("the disk in a tar archive is found, whatever wrote its headers, and read where it is", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const raw = join(dir, "raw");
  makeDisk(raw);
  mkdirSync(join(dir, "disk"));
  const long = `${"a-long-name-".repeat(20)}.img`;
  for (const name of ["downloaded.qcow2", "x.img", long]) {
    run("qemu-img", "convert", "-f", "raw", "-O", name === "x.img" ? "raw" : "qcow2", raw, join(dir, "disk", name));
    for (const format of ["gnu", "pax", "posix"]) {
      const archive = pack(dir, "layer.tar", `--format=${format}`, "disk/", "raw");
      const { reader, format: chain } = await openFile(archive);
      assert.equal(chain, name === "x.img" || name === long ? chain : "tar+qcow2");
      assert.equal(await differs(reader, raw), undefined, `${name} ${format}`);
    }
    run("rm", join(dir, "disk", name));
  }
  const ustar = pack(dir, "one.tar", "--format=ustar", "--sort=name", "./raw");
  const { reader, format, watched } = await openFile(ustar);
  assert.equal(format, "tar+raw");
  await readBytes(reader, 1_600_000, 4096);
  assert.ok(watched.total < 256 * 1024, `${watched.total} bytes`);
  assert.equal(await differs(reader, raw), undefined);
  assert.equal((await openFile(ustar, "tar")).format, "tar+raw");
  assert.equal((await openFile(ustar, "raw")).format, "raw");
  await assert.rejects(openFile(ustar, "tar+qcow2"), { code: "image-unsupported" });
});

void test("a tar archive without a disk, with several, or with a sparse one is refused", async (t) => {
  const dir = temporaryDirectory(t);
  makeDisk(join(dir, "raw"));
  mkdirSync(join(dir, "empty"));
  writeFileSync(join(dir, "other"), "x");
  await assert.rejects(openFile(pack(dir, "a.tar", "empty")), /holds no file/);
  await assert.rejects(openFile(pack(dir, "b.tar", "raw", "other")), /several files that may be the disk: raw, other/);
  await assert.rejects(openFile(pack(dir, "c.tar", "--sparse", "raw")), /sparse/);
  await assert.rejects(openFile(pack(dir, "d.tar", "--sparse", "--format=pax", "raw")), /sparse/);
  const cut = readFileSync(pack(dir, "e.tar", "raw"));
  writeFileSync(join(dir, "cut.tar"), cut.subarray(0, 1_000_000));
  await assert.rejects(openFile(join(dir, "cut.tar")), { code: "image-damaged" });
});
