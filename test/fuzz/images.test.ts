import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import test, { type TestContext } from "node:test";
import type { ReadOptions, Sink } from "../../src/backend/backend.ts";
import { SourceError } from "../../src/base/errors.ts";
import type { ImageReader } from "../../src/image/image-format.ts";
import { findImage, openImage } from "../../src/image/open-image.ts";
import { packSeekable } from "../image/seekable.ts";
import { makeDisk, run, temporaryDirectory } from "../image/support.ts";
import { sumEntry, tableOf, writeLog } from "../image/vhdx-entries.ts";
import { Random } from "../sim/random.ts";
import { requireTool } from "../support/tools.ts";

/*
 * Images with bytes changed, most of them in their headers and tables. Whatever they say: opening and reading them ends,
 * with the bytes asked for or with an error that says what is wrong; nothing outside of the file is asked for, and
 * nothing is read without bound. ULLAGE_SEEDS sets how many mutations of each image are tried, ULLAGE_SEED tries one.
 */
const onlySeed = process.env["ULLAGE_SEED"];
const seedCount = Number(process.env["ULLAGE_SEEDS"] ?? 250);

/** The image in memory, which watches what is asked of it. */
class StrictReader implements ImageReader {
  readonly #content: Buffer;
  bytes = 0;

  constructor(content: Buffer) {
    this.#content = content;
  }

  get size(): number {
    return this.#content.length;
  }

  async read(offset: number, length: number, sink: Sink, _options?: ReadOptions): Promise<void> {
    const inside = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0;
    assert.ok(inside && offset + length <= this.size, `${offset}+${length} of ${this.size}`);
    this.bytes += length;
    await sink(this.#content.subarray(offset, offset + length));
  }
}

function mutate(image: Buffer, random: Random): Buffer {
  const changed = Buffer.from(image);
  const changes = 1 + random.below(4);
  for (let n = 0; n < changes; n++) {
    // Headers and tables are at the beginning of nearly all images, and at the end of some.
    const reach = random.pick([64, 128, 512, 4096, 128 * 1024, 400 * 1024, image.length]);
    const near = random.below(Math.min(reach, image.length));
    const at = random.chance(0.85) ? near : image.length - 1 - near;
    const kind = random.below(5);
    if (kind === 0) changed[at] ^= 1 << random.below(8);
    else if (kind === 1) changed[at] = random.below(256);
    else if (kind === 2)
      changed.fill(random.pick([0, 0xff, 0x7f, 0x80]), at, Math.min(at + 1 + random.below(16), image.length));
    else if (kind === 3) changed.copy(changed, at, random.below(image.length), random.below(image.length));
    else if (at + 4 <= image.length) changed.writeUInt32BE(random.below(2 ** 32), at);
  }
  return random.chance(0.1) ? changed.subarray(0, random.below(image.length)) : changed;
}

/** Opens it and reads here and there. */
async function tryOut(image: Buffer, format: string, random: Random): Promise<void> {
  const source = new StrictReader(image);
  const { reader } = await openImage(source, format, {});
  assert.ok(Number.isSafeInteger(reader.size) && reader.size >= 0, `${reader.size} bytes`);
  for (let n = 0; n < 4 && reader.size > 0; n++) {
    const offset = random.chance(0.3) ? 0 : random.below(Math.min(reader.size, 2 ** 31));
    const length = Math.min(reader.size - offset, 1 + random.below(512 * 1024));
    const zeros = (await reader.zeroRun?.(offset, reader.size - offset)) ?? 0;
    assert.ok(zeros >= 0 && zeros <= reader.size - offset, `${zeros} zeros`);
    let told = 0;
    await reader.tellZeros?.(offset, length, (count) => void (told += count));
    assert.equal(told, reader.tellZeros === undefined ? 0 : length);
    let received = 0;
    await reader.read(offset, length, (chunk) => void (received += chunk.length));
    assert.equal(received, length);
  }
  assert.ok(source.bytes < 64 * 1024 * 1024, `${source.bytes} bytes were read`);
}

async function forEachMutation(
  image: Buffer,
  format: string,
  change?: (random: Random, image: Buffer) => void,
): Promise<void> {
  const first = onlySeed === undefined ? 1 : Number(onlySeed);
  const last = onlySeed === undefined ? seedCount : first;
  let refused = 0;
  for (let seed = first; seed <= last; seed++) {
    const random = new Random(seed);
    try {
      const directed = change !== undefined && random.chance(0.8) ? Buffer.from(image) : mutate(image, random);
      if (directed.length === image.length) change?.(random, directed);
      await tryOut(directed, format, random);
    } catch (error) {
      if (error instanceof SourceError && error.code.startsWith("image-")) refused++;
      else throw new Error(`seed ${seed} (ULLAGE_SEED=${seed} replays it)`, { cause: error });
    }
  }
  if (onlySeed === undefined) assert.ok(refused > seedCount / 50, `only ${refused} were refused`);
}

const made: [format: string, ...flags: string[]][] = [
  ["qcow2", "-O", "qcow2"],
  ["qcow2", "-O", "qcow2", "-c", "-o", "cluster_size=4k"],
  ["qcow2", "-O", "qcow2", "-c", "-o", "extended_l2=on,cluster_size=16k,compression_type=zstd"],
  ["vmdk", "-O", "vmdk"],
  ["vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized"],
  ["vhd", "-O", "vpc"],
  ["vhdx", "-O", "vhdx", "-o", "block_size=1M"],
];

async function makeImage(t: TestContext, flags: string[]): Promise<Buffer> {
  const dir = temporaryDirectory(t);
  makeDisk(join(dir, "raw"), 3 * 1024 * 1024);
  run("qemu-img", "convert", "-f", "raw", ...flags, join(dir, "raw"), join(dir, "image"));
  return Promise.resolve(readFileSync(join(dir, "image")));
}

for (const [format, ...flags] of made) {
  void test(`a changed ${format} neither crashes, hangs nor reads outside of the file: ${flags.join(" ")}`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    await forEachMutation(await makeImage(t, flags), format);
  });
}

void test("a changed vhdx with a log to be replayed neither crashes, hangs nor reads outside of the file", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const image = await makeImage(t, ["-O", "vhdx", "-o", "block_size=1M"]);
  const table = tableOf(image);
  const data = [{ to: table, bytes: Buffer.from(image.subarray(table, table + 4096)) }];
  const zeros = [{ to: table + 8192, length: 4096 }];
  writeLog(
    image,
    0,
    [1, 2, 3, 4].map((sequence) => ({ tail: 0, data, zeros, sequence })),
  );
  const log = 1024 * 1024;
  await forEachMutation(image, "vhdx", (random, changed) => {
    // Most changes are in the log, and its checksums fit again.
    const at = log + 8192 * random.below(4);
    for (let n = random.below(3); n >= 0; n--)
      changed[at + random.pick([8, 12, 16, 24, 48, 64]) + random.below(64)] = random.below(256);
    if (at + changed.readUInt32LE(at + 8) <= changed.length) sumEntry(changed, at);
  });
});

void test("a changed tar neither crashes, hangs nor reads outside of the file", async (t) => {
  const dir = temporaryDirectory(t);
  mkdirSync(join(dir, "disk"));
  makeDisk(join(dir, "disk", `${"long-".repeat(30)}.img`), 300_000);
  run("tar", "-C", dir, "-cf", join(dir, "tar"), "--format=pax", "disk");
  await forEachMutation(readFileSync(join(dir, "tar")), "tar");
});

void test("a changed seekable zstd neither crashes, hangs nor reads outside of the file", async (t) => {
  if (!requireTool(t, "zstd")) return;
  const dir = temporaryDirectory(t);
  makeDisk(join(dir, "raw"), 600_000);
  packSeekable(join(dir, "raw"), join(dir, "image"), 50_000);
  await forEachMutation(readFileSync(join(dir, "image")), "zstd+raw");
});

void test("a changed xz of many blocks neither crashes, hangs nor reads outside of the file", async (t) => {
  if (!requireTool(t, "xz")) return;
  const dir = temporaryDirectory(t);
  makeDisk(join(dir, "raw"), 600_000);
  run("sh", "-c", `xz -0 -c --block-size=50KiB ${join(dir, "raw")} > ${join(dir, "image")}`);
  await forEachMutation(readFileSync(join(dir, "image")), "xz+raw");
});

/** Unpacks it all, within bounds. */
async function unpackAll(image: Buffer, format: string): Promise<void> {
  const found = await findImage(new StrictReader(image), `${format}+raw`, {});
  assert.ok("packed" in found);
  let received = 0;
  const unpacker = found.unpacker((chunk) => void (received += chunk.length));
  try {
    for (let at = 0; at < image.length; at += 10_000) await unpacker.write(image.subarray(at, at + 10_000));
    await unpacker.end();
  } finally {
    await unpacker.close();
  }
  assert.ok(received < 1e9, `${received} bytes`);
}

for (const [format, command, share] of [
  ["gzip", "gzip -c", 1],
  ["zstd", "zstd -q -c", 1],
  ["xz", "xz -0 -c", 0.2], // each has a thread of its own
] as const) {
  void test(`a changed ${format} is unpacked to its end, or refused`, async (t) => {
    if (!requireTool(t, "zstd", "xz")) return;
    const dir = temporaryDirectory(t);
    makeDisk(join(dir, "raw"), 200_000);
    run("sh", "-c", `${command} ${join(dir, "raw")} > ${join(dir, "packed")}`);
    const packed = readFileSync(join(dir, "packed"));
    const first = onlySeed === undefined ? 1 : Number(onlySeed);
    const last = onlySeed === undefined ? Math.ceil(seedCount * share) : first;
    for (let seed = first; seed <= last; seed++) {
      try {
        await unpackAll(mutate(packed, new Random(seed)), format);
      } catch (error) {
        if (error instanceof SourceError && error.code.startsWith("image-")) continue;
        throw new Error(`seed ${seed} (ULLAGE_SEED=${seed} replays it)`, { cause: error });
      }
    }
  });
}
