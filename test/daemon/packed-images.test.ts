import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { packSeekable } from "../image/seekable.ts";
import { differs, makeDisk, openFile, run } from "../image/support.ts";
import { readBytes } from "../../src/image/read-bytes.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

async function readVolume(ullage: Ullage, name: string, length: number): Promise<Buffer> {
  const device = await ullage.getDevice(name);
  const buffer = new IoBuffer(length);
  await device.read(0, length, buffer, 0);
  return buffer.bytes;
}

/** A disk of odd contents and the commands that pack it, one after the other; the last one's output is the image. */
function pack(dir: string, ...steps: string[]): { raw: Buffer; image: string } {
  const raw = join(dir, "raw");
  makeDisk(raw, 9 * 1024 * 1024 + 512);
  let from = raw;
  for (const [n, step] of steps.entries()) {
    const to = join(dir, `step-${n}`);
    run("sh", "-c", `cd ${dir} && ${step.replaceAll("FROM", from).replaceAll("TO", to)}`);
    from = to;
  }
  return { raw: readFileSync(raw), image: from };
}

const qcow2 = "qemu-img convert -f raw -O qcow2 FROM TO";
const tar = "mkdir -p disk && cp FROM disk/disk.img && tar -cf TO disk";

for (const [format, ...steps] of [
  ["gzip+raw", "gzip -c FROM > TO"],
  ["gzip+raw", "{ head -c 1000000 FROM | gzip; tail -c +1000001 FROM | gzip; head -c 512 /dev/zero; } > TO"],
  ["zstd+raw", "zstd -q FROM -o TO"],
  ["zstd+raw", "zstd -q < FROM > TO"],
  ["xz+raw", "xz -c FROM > TO"],
  ["xz+raw", "xz -c --check=crc32 -T1 FROM > TO"],
  ["gzip+qcow2", qcow2, "gzip -c FROM > TO"],
  ["xz+qcow2", qcow2, "xz -1 -c FROM > TO"],
  ["gzip+tar+raw", tar, "gzip -c FROM > TO"],
  ["gzip+tar+qcow2", qcow2, tar, "gzip -c FROM > TO"],
  ["tar+zstd+raw", "zstd -q FROM -o TO", tar],
]) {
  void test(`a volume from ${format} is unpacked once, whoever asks again: ${steps.at(-1)}`, async (t) => {
    if (!requireTool(t, "qemu-img", "xz", "zstd")) return;
    const dir = await temporaryDirectory(t);
    const { raw, image } = pack(dir, ...steps);
    await using source = await startHttpSource({ content: image });
    const ullage = await openUllage(t);
    const make = (name: string) => ullage.createVolume({ name, from: { source: source.url } });
    const [first, second] = await Promise.all([make("first"), make("second")]);
    assert.deepEqual([first.format, first.size], [format, raw.length]);
    assert.equal(second.size, raw.length);
    assert.deepEqual(await readVolume(ullage, "first", raw.length), raw);
    const served = source.bytesServed;
    assert.ok(served < 2 * readFileSync(image).length + 3 * 1024 * 1024, `${served} bytes were served`);
    await make("third");
    await source.close();
    assert.deepEqual(await readVolume(ullage, "third", raw.length), raw);
  });
}

void test("seekable zstd is lazy, as a disk and around a qcow2", async (t) => {
  if (!requireTool(t, "qemu-img", "zstd")) return;
  const dir = await temporaryDirectory(t);
  const [raw, image, inner] = ["raw", "image", "inner"].map((name) => join(dir, name));
  makeDisk(raw);
  for (const checksums of [false, true]) {
    packSeekable(raw, image, 512 * 1024, checksums);
    const { reader, format, watched } = await openFile(image);
    assert.equal(format, "zstd+raw");
    const before = watched.total;
    await readBytes(reader, 1_600_000, 4096);
    assert.ok(watched.total - before <= 513 * 1024, `${watched.total - before} bytes`);
    assert.equal(await differs(reader, raw), undefined);
  }
  run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, inner);
  packSeekable(inner, image, 300_000);
  const { reader, format } = await openFile(image);
  assert.equal(format, "zstd+qcow2");
  assert.equal(await differs(reader, raw), undefined);
});

void test("an image on a server without ranges is fetched as a whole, whatever its format", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const dir = await temporaryDirectory(t);
  for (const [format, ...steps] of [
    ["qcow2", qcow2],
    ["gzip+qcow2", qcow2, "gzip -c FROM > TO"],
  ]) {
    const { raw, image } = pack(dir, ...steps);
    await using source = await startHttpSource({ content: image });
    source.onRequest = () => ({ kind: "ignore-range" });
    const ullage = await openUllage(t);
    await assert.rejects(ullage.createVolume({ name: "a", from: { source: source.url } }), {
      code: "source-no-ranges",
    });
    const made = await ullage.createVolume({ name: "a", from: { source: source.url, download: true } });
    assert.equal(made.format, format);
    assert.deepEqual(await readVolume(ullage, "a", raw.length), raw);
  }
});

/** What making a volume from these bytes is refused with; nothing may be left of it. */
async function refusal(t: TestContext, content: Buffer): Promise<string> {
  const dir = await temporaryDirectory(t);
  writeFileSync(join(dir, "image"), content);
  const ullage = await openUllage(t, { dataDir: join(dir, "data") });
  let message = "it was made";
  try {
    await ullage.createVolume({ name: "a", from: { source: join(dir, "image") } });
  } catch (error) {
    message = `${(error as { code: string }).code}: ${(error as Error).message}`;
  }
  assert.deepEqual(await ullage.listVolumes(), []);
  assert.deepEqual(readdirSync(join(dir, "data", "blobs")), []);
  return message;
}

void test("packed images that are cut, changed or have something behind them are refused, and nothing is left", async (t) => {
  if (!requireTool(t, "xz", "zstd")) return;
  const dir = await temporaryDirectory(t);
  for (const step of ["gzip -c FROM > TO", "zstd -q -c FROM > TO", "xz -0 -c FROM > TO"]) {
    const packed = readFileSync(pack(dir, step).image);
    assert.match(await refusal(t, packed.subarray(0, packed.length - 100_000)), /image-damaged/, `${step}, cut`);
    const changed = Buffer.from(packed);
    changed.fill(0xa5, packed.length - 60_000, packed.length - 50_000);
    assert.match(await refusal(t, changed), /image-damaged/, `${step}, changed`);
    assert.match(await refusal(t, Buffer.concat([packed, Buffer.from("more")])), /image-damaged/, `${step}, more`);
  }
});

void test("what a killed process leaves of an image that it was unpacking is gone after the next start", async (t) => {
  const dir = await temporaryDirectory(t);
  const dataDir = join(dir, "data");
  const first = await openUllage(t, { dataDir });
  await first.close();
  const making = join(dataDir, "blobs", `${"a5".repeat(16)}.making`);
  mkdirSync(join(making, "pins"), { recursive: true });
  for (const name of ["unpacked", "data", "map", "meta.json.tmp"]) writeFileSync(join(making, name), "half");
  await openUllage(t, { dataDir });
  assert.deepEqual(readdirSync(join(dataDir, "blobs")), []);
});
