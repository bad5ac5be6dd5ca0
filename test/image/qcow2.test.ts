import assert from "node:assert/strict";
import { copyFileSync, openSync, readFileSync, truncateSync, writeSync, closeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { SourceError } from "../../src/base/errors.ts";
import { requireTool } from "../support/tools.ts";
import { differs, makeDisk, openFile, readDisk, run, temporaryDirectory } from "./support.ts";
import { readBytes } from "../../src/image/read-bytes.ts";

/** Options of `qemu-img convert -O qcow2`. */
const options: [string, ...string[]][] = [
  ["plain"],
  ["version 2", "-o", "compat=0.10"],
  ["compressed", "-c"],
  ["version 2, compressed", "-c", "-o", "compat=0.10"],
  ["zstd", "-c", "-o", "compression_type=zstd"],
  ["extended L2", "-o", "extended_l2=on,cluster_size=64k"],
  ["extended L2, compressed with zstd", "-c", "-o", "extended_l2=on,cluster_size=128k,compression_type=zstd"],
  ["written out of order", "-W", "-m", "16"],
  ["all metadata allocated", "-o", "preallocation=metadata"],
  ["all space allocated", "-S", "0", "-o", "preallocation=falloc"],
  ...["512", "1k", "4k", "64k", "1M", "2M"].flatMap((size): [string, ...string[]][] => [
    [`clusters of ${size}`, "-o", `cluster_size=${size}`],
    [`compressed clusters of ${size}`, "-c", "-o", `cluster_size=${size}`],
  ]),
];

for (const [what, ...flags] of options) {
  void test(`qcow2 reads as qemu-img reads it: ${what}`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const dir = temporaryDirectory(t);
    const [raw, image, again] = ["raw", "image", "again"].map((name) => join(dir, name));
    makeDisk(raw);
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", ...flags, raw, image);
    run("qemu-img", "convert", "-O", "raw", image, again);
    const { reader, format } = await openFile(image);
    assert.equal(format, "qcow2");
    assert.equal(await differs(reader, again), undefined);
  });
}

void test("qcow2 with all that writes leave: discarded, zeroed, overwritten clusters and an internal snapshot", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  for (const extended of ["off", "on"]) {
    const dir = temporaryDirectory(t);
    const [image, again] = ["image", "again"].map((name) => join(dir, name));
    run("qemu-img", "create", "-f", "qcow2", "-o", `cluster_size=64k,extended_l2=${extended}`, image, "64M");
    const io = (...commands: string[]): string => run("qemu-io", ...commands.flatMap((each) => ["-c", each]), image);
    io("write -P 1 0 2M", "write -P 2 5000k 64k", "write -c -P 3 10M 64k", "write -z 1M 128k", "discard 1536k 64k");
    run("qemu-img", "snapshot", "-c", "before", image);
    io("write -P 4 100k 300k", "write -P 5 10M 4k", "write -z -u 5000k 4k", "write -P 6 20M 2k", "write -P 7 63M 1M");
    run("qemu-img", "convert", "-O", "raw", image, again);
    const { reader } = await openFile(image);
    assert.equal(await differs(reader, again), undefined, `extended L2 ${extended}`);
  }
});

void test("a small read of a large qcow2 reads a few clusters of it, and tables once", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((name) => join(dir, name));
  makeDisk(raw, 64 * 1024 * 1024);
  for (const flags of [[], ["-c"]]) {
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", ...flags, raw, image);
    const { reader, watched } = await openFile(image);
    await readBytes(reader, 1_600_000, 4096);
    assert.ok(watched.total < 6 * 65_536, `${watched.total} bytes`);
    const before = watched.reads.length;
    await readBytes(reader, 1_600_000, 4096);
    assert.ok(watched.reads.length <= before + 1, "the tables were read again");
  }
});

void test("a mostly empty disk of 1 TiB says so with a few questions", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const image = join(temporaryDirectory(t), "image");
  run("qemu-img", "create", "-f", "qcow2", image, "1T");
  run("qemu-io", "-c", "write -P 1 600G 64k", image);
  const { reader, watched } = await openFile(image);
  let questions = 0;
  let data = 0;
  for (let at = 0; at < reader.size; questions++) {
    const zeros = await reader.zeroRun!(at, reader.size - at);
    at += zeros;
    if (zeros > 0) continue;
    data += 65_536;
    at += 65_536;
  }
  assert.equal(data, 65_536);
  assert.ok(questions < 20, `${questions} questions`);
  assert.ok(watched.total < 1024 * 1024, `${watched.total} bytes were read`);
});

/** So many turns of the event loop. */
async function turns(count: number): Promise<void> {
  for (let each = 0; each < count; each++) await new Promise(setImmediate);
}

void test("who goes through a disk finds its tables coming, some at a time; who reads here and there brings his own only", async (t) => {
  if (!requireTool(t, "qemu-img", "qemu-io")) return;
  const GiB = 2 ** 30;
  const image = join(temporaryDirectory(t), "image");
  run("qemu-img", "create", "-f", "qcow2", image, "100G");
  const places = Array.from({ length: 40 }, (_, n) => 2 * n * GiB);
  run("qemu-io", ...places.flatMap((at) => ["-c", `write -P 1 ${at} 64k`]), image);
  for (const way of ["told", "filled", "read"]) {
    const { reader, watched } = await openFile(image);
    await readBytes(reader, 50 * GiB, 4096); // the header and L1 are here
    const underWay = new Set<Promise<void>>();
    let most = 0;
    watched.before = async () => {
      const answer = turns(20);
      underWay.add(answer);
      most = Math.max(most, underWay.size);
      await answer;
      underWay.delete(answer);
    };
    if (way === "told") {
      let zeros = 0;
      await reader.tellZeros!(0, reader.size, (length, zero) => void (zeros += zero ? length : 0));
      assert.equal(zeros, reader.size - 40 * 65_536);
    } else if (way === "filled") {
      for (const at of places) assert.equal(await reader.zeroRun!(at, GiB, { background: true }), 0);
    } else {
      for (const at of places) assert.equal(await reader.zeroRun!(at + 65_536, 1), 1);
    }
    while (underWay.size > 0) await turns(1);
    if (way === "read") assert.equal(most, 1);
    else assert.ok(most >= 8 && most <= 20, `${way}: ${most} at once`);
    assert.ok(watched.reads.length < 64, `${way}: ${watched.reads.length} reads`);
  }
});

/** What opening or reading a changed copy of the image is refused with. */
async function refusal(image: string, changes: [offset: number, bytes: number[]][]): Promise<string> {
  const file = openSync(image, "r+");
  for (const [offset, bytes] of changes) writeSync(file, Buffer.from(bytes), 0, bytes.length, offset);
  closeSync(file);
  try {
    const { reader } = await openFile(image);
    await readDisk(reader);
  } catch (error) {
    assert.ok(error instanceof SourceError && !error.transient, String(error));
    return `${error.code}: ${error.message}`;
  }
  return "it was read";
}

void test("qcow2 that can't be read is refused with the reason", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = temporaryDirectory(t);
  const [raw, base, image] = ["raw", "base", "image"].map((name) => join(dir, name));
  makeDisk(raw, 2 * 1024 * 1024);
  run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base);
  const changed = async (...changes: [number, number[]][]): Promise<string> => {
    copyFileSync(base, image);
    return refusal(image, changes);
  };
  const l1 = Number(readFileSync(base).readBigUInt64BE(40));
  const l2 = Number(readFileSync(base).readBigUInt64BE(l1) & 0x00fffffffffffe00n);
  assert.match(await changed([4, [0, 0, 0, 4]]), /image-unsupported: .*has version 4/);
  assert.match(await changed([32, [0, 0, 0, 2]]), /image-unsupported: .*is encrypted/);
  assert.match(await changed([79, [4]]), /image-unsupported: .*data in another file/);
  assert.match(await changed([79, [2]]), /image-unsupported: .*marked as corrupt/);
  assert.match(await changed([78, [1]]), /image-unsupported: .*features/);
  assert.match(await changed([72, [0x80]]), /image-unsupported: .*features/);
  assert.match(await changed([79, [8]], [104, [9]]), /image-unsupported: .*compression type 9/);
  assert.match(await changed([20, [0, 0, 0, 22]]), /image-damaged: .*2\^22/);
  assert.match(await changed([20, [0, 0, 0, 8]]), /image-damaged: .*2\^8/);
  assert.match(await changed([24, [0, 0, 1]]), /image-damaged: .*too short for a disk/);
  assert.match(await changed([36, [0xff, 0xff, 0xff, 0xff]]), /image-damaged: .*L1 table/);
  assert.match(await changed([40, [0, 1]]), /image-damaged: .*L1 table/);
  assert.match(await changed([l1 + 1, [1]]), /image-damaged: .*L2 table 0 is at/);
  assert.match(await changed([l2 + 1, [1]]), /image-damaged: .*behind the file's end/);
  assert.match(await changed([l2 + 6, [2]]), /image-damaged: .*the cluster of byte 0/);
  assert.match(await changed([l2, [0x7f]]), /image-damaged: .*compressed bytes/);
  assert.match(await changed([l2, [0x40]]), /image-damaged: .*compressed bytes/);
  run("qemu-img", "create", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
  assert.match(await refusal(image, []), /image-unsupported: .*lies on another file/);
  copyFileSync(base, image);
  truncateSync(image, 900_000);
  assert.match(await refusal(image, []), /image-damaged: .*behind the file's end/);
});
