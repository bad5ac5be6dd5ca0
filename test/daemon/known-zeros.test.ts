import assert from "node:assert/strict";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { startHttpSource } from "../support/http-source.ts";
import { startNbdkit } from "../support/nbd-source.ts";
import {
  data,
  demandTold,
  grain,
  grains,
  MiB,
  run,
  size,
  writeDisk,
  zeroShare,
  zerosAsNbdinfoTells,
  zerosAsQemuTells,
  zerosInBlocks,
} from "../support/sparse-disk.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory, untilDetached } from "./support.ts";

/** An Ullage on a directory of its own, and the address of a volume's export. */
async function serve(t: TestContext, directory: string): Promise<{ ullage: Ullage; uri: (name: string) => string }> {
  const ullage = await openUllage(t, { dataDir: join(directory, "data"), allowSources: ["any"] });
  mkdirSync(directory, { recursive: true });
  const path = join(directory, "nbd.sock");
  await ullage.serveNbd([{ kind: "unix", path }]);
  return { ullage, uri: (name) => `nbd+unix:///${name}?socket=${path}` };
}

const cold = { hydrate: "off" } as const;

for (const [block, ...flags] of [
  [grain, "-O", "qcow2"],
  [grain, "-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"],
  [2 * grain, "-c", "-O", "qcow2", "-o", "compression_type=zstd,extended_l2=on,cluster_size=128k"],
  [grain, "-O", "vmdk", "-o", "subformat=monolithicSparse"],
  [2 * MiB, "-O", "vpc", "-o", "force_size=on"],
  [MiB, "-O", "vhdx", "-o", "block_size=1M"],
] as [number, ...string[]][]) {
  void test(`the map of a cold volume of ${flags.join(" ")} is the image's own, and a copy fetches what has data only`, async (t) => {
    if (!requireTool(t, "qemu-img", "nbdinfo", "nbdcopy")) return;
    const directory = await temporaryDirectory(t);
    const [raw, image, copy] = ["raw", "image", "copy"].map((file) => join(directory, file));
    writeDisk(raw, data);
    await run("qemu-img", "convert", "-f", "raw", ...flags, raw, image);
    await using source = await startHttpSource({ content: image });
    const { ullage, uri } = await serve(t, directory);
    await ullage.createVolume({ name: "v", from: { source: source.url }, settings: cold });
    const told = zerosInBlocks(data, block);
    await demandTold(uri("v"), told);
    assert.equal(await zerosAsQemuTells("-f", "raw", uri("v")), told);
    assert.equal((await ullage.listBlobs())[0].readyBytes, 0, "nothing was fetched for it");
    const before = source.bytesServed;
    await run("nbdcopy", uri("v"), copy);
    // What has data, and the tables once more at most; where it is compressed, less.
    assert.ok(source.bytesServed - before < statSync(image).size * 2 + 8 * MiB, `${source.bytesServed - before}`);
    assert.match(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, copy), /identical/);
    const [{ readBytes }] = ullage.traffic();
    assert.ok(readBytes < size / 8, `${readBytes} bytes were asked for`);
  });
}

void test("what was written to a cold volume is told as data, whether before or after its image's zeros were asked about; what was trimmed is zeros", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "qemu-io")) return;
  const directory = await temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  const { ullage, uri } = await serve(t, directory);
  await ullage.createVolume({ name: "v", from: { source: image }, settings: cold });
  const write = async (command: string): Promise<void> => {
    assert.doesNotMatch(await run("qemu-io", "-f", "raw", "-c", command, uri("v")), /failed|error/i);
  };
  await write(`write -P 1 ${100 * MiB} 64k`);
  await demandTold(uri("v"), zerosInBlocks([...data, [100 * MiB, grain]], grain));
  await write(`write -P 2 ${2000 * MiB + 4096} 4k`);
  await write("discard 0 1M");
  const now: [number, number][] = [...data.slice(1), [100 * MiB, grain], [2000 * MiB, grain]];
  await demandTold(uri("v"), zerosInBlocks(now, grain));
  const read = await run("qemu-io", "-f", "raw", "-r", "-c", `read -P 0 ${2000 * MiB} 4k`, uri("v"));
  assert.doesNotMatch(read, /failed|error/i);
});

void test("zeros of a backing file are told through the image that lies on it", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo")) return;
  const directory = await temporaryDirectory(t);
  const [raw, base, image] = ["raw", "base", "image"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, base);
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
  await run("qemu-io", "-c", `write -P 9 ${42 * MiB} 64k`, "-c", `write -z 0 ${MiB / 2}`, image);
  const { ullage, uri } = await serve(t, directory);
  await ullage.createVolume({ name: "v", from: { source: image, allowBacking: true }, settings: cold });
  await demandTold(uri("v"), await zerosAsQemuTells("-f", "qcow2", image));
});

void test("an export of a cold volume leaves out what its image says is zeros, and the volume's map tells it", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const directory = await temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  for (const place of ["map", "export"]) {
    const { ullage } = await serve(t, join(directory, place));
    await ullage.createVolume({ name: "v", from: { source: image }, settings: cold });
    if (place === "map") {
      const { runs, next } = await ullage.mapVolume("v", 0, 1000);
      const told = runs.map(({ offset, length, kind }) => ({ offset, length, zero: kind === "zero" }));
      assert.deepEqual([grains(told), next], [zerosInBlocks(data, grain), null]);
    } else {
      const content = await ullage.openContent("v", undefined, "qcow2", { address: "here", remote: false });
      const clusters = data.reduce((sum, [, length]) => sum + Math.ceil(length / grain), 0);
      assert.equal((await content.survey()).bytes, content.size);
      assert.ok(content.size < (clusters + 16) * grain, `${content.size} bytes`);
      await content.close();
    }
    assert.equal((await ullage.listBlobs())[0].readyBytes, 0);
  }
});

void test("holes of an export that a volume was made from are told, with a cache and without", async (t) => {
  if (!requireTool(t, "nbdkit", "nbdinfo", "qemu-img", "nbdcopy")) return;
  const directory = await temporaryDirectory(t);
  const [raw, stats, copy] = ["raw", "stats", "copy"].map((file) => join(directory, file));
  writeDisk(raw, data);
  const kit = await startNbdkit(t, "-r", "--filter=stats", "file", raw, `statsfile=${stats}`);
  const { ullage, uri } = await serve(t, directory);
  const from = { source: kit.uri(), unpinned: true };
  await ullage.createVolume({ name: "kept", from, settings: cold });
  await ullage.createVolume({ name: "through", from, settings: { cache: "none" } });
  const told = await zerosAsQemuTells("-f", "raw", raw);
  for (const name of ["kept", "through"]) {
    await demandTold(uri(name), told);
    await run("nbdcopy", uri(name), copy);
    assert.match(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, copy), /identical/);
  }
  await ullage.close();
  await kit.kill("SIGTERM");
  const [, amount] = /^read: .*?([\d.]+) MiB/m.exec(readFileSync(stats, "utf8")) ?? [];
  assert.ok(Number(amount) < 64, `${amount} MiB`);
});

void test("holes of a file that is the disk are told, with a cache and without, and are not read", async (t) => {
  if (!requireTool(t, "nbdinfo", "qemu-img", "nbdcopy")) return;
  const directory = await temporaryDirectory(t);
  const [raw, copy] = ["raw", "copy"].map((file) => join(directory, file));
  writeDisk(raw, data);
  const { ullage, uri } = await serve(t, directory);
  await ullage.createVolume({ name: "kept", from: { source: raw }, settings: cold });
  await ullage.createVolume({ name: "through", from: { source: raw }, settings: { cache: "none" } });
  for (const name of ["kept", "through"]) {
    await demandTold(uri(name), zerosInBlocks(data, grain));
    await run("nbdcopy", uri(name), copy);
    assert.match(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, copy), /identical/);
  }
  await ullage.createVolume({ name: "filled", from: { source: raw } });
  await untilDetached(ullage, "filled");
  for (const { foregroundBytes, readaheadBytes, backgroundBytes } of await ullage.listBlobs()) {
    const bytes = foregroundBytes + readaheadBytes + backgroundBytes;
    assert.ok(bytes < 64 * MiB, `${bytes} bytes were read`);
  }
});

void test("while the source hangs a block status is answered, as data, and other clients are served", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "qemu-io")) return;
  const directory = await temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  await using source = await startHttpSource({ content: image });
  const first = await serve(t, directory);
  await first.ullage.createVolume({ name: "v", from: { source: source.url }, settings: cold });
  const read = ["-f", "raw", "-r", "-c", "read 0 64k"];
  await run("qemu-io", ...read, first.uri("v"));
  await first.ullage.close();
  source.onRequest = () => ({ kind: "stall" });
  const { uri } = await serve(t, directory);
  const asked = source.requestCount;
  const told = zerosAsNbdinfoTells(uri("v"));
  await run("qemu-io", ...read, uri("v")); // it is in the cache
  assert.equal(await told, grains([{ offset: 0, length: size, zero: false }]));
  assert.ok(source.requestCount > asked, "the tables were asked for");
});

void test("a damaged table is told as data, and so is what is behind it", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "qemu-io")) return;
  const directory = await temporaryDirectory(t);
  const [raw, image] = ["raw", "image"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  const bytes = readFileSync(image);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  bytes.writeBigUInt64BE(0x8000_0000_0000_0200n, l2 + 8 * ((300 * MiB) / grain)); // at no multiple of a cluster
  writeFileSync(image, bytes);
  const { ullage, uri } = await serve(t, directory);
  await ullage.createVolume({ name: "v", from: { source: image }, settings: cold });
  await demandTold(uri("v"), /^0 x 16, 1 x 627, 0 x 1, 1 x 1, 0 x 2, 1 x \d+, 0 x \d+$/);
  const zeros = await run("qemu-io", "-f", "raw", "-r", "-c", `read -P 0 ${100 * MiB} 64k`, uri("v"));
  assert.doesNotMatch(zeros, /failed|error/i);
});

const toQcow2 = (raw: string, image: string): Promise<string> =>
  run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);

for (const [kind, pack] of [
  ["a qcow2", toQcow2],
  ["a raw disk", (raw, image) => rename(raw, image)],
  [
    "an unpacked disk",
    async (raw, image) => {
      await toQcow2(raw, `${image}.qcow2`);
      await run("gzip", "-1", `${image}.qcow2`);
      await rename(`${image}.qcow2.gz`, image);
    },
  ],
] as [string, (raw: string, image: string) => Promise<unknown>][]) {
  void test(`after a restart the zeros of a detached volume of ${kind} are told from the cache, with the source gone`, async (t) => {
    if (!requireTool(t, "qemu-img", "nbdinfo", "nbdcopy")) return;
    const directory = await temporaryDirectory(t);
    const [raw, given, image, copy] = ["raw", "given", "image", "copy"].map((file) => join(directory, file));
    writeDisk(raw, data);
    writeDisk(given, data);
    await pack(given, image);
    const source = await startHttpSource({ content: image });
    t.after(() => source[Symbol.asyncDispose]());
    const first = await serve(t, directory);
    await first.ullage.createVolume({ name: "v", from: { source: source.url } });
    await untilDetached(first.ullage, "v");
    await first.ullage.close();
    await source.close();
    const { ullage, uri } = await serve(t, directory);
    await demandTold(uri("v"), /^0 x 16, 1 x /);
    const share = zeroShare(await zerosAsNbdinfoTells(uri("v")));
    assert.ok(share > 0.99 && share <= zeroShare(zerosInBlocks(data, grain)), `${share}`);
    await run("nbdcopy", uri("v"), copy);
    assert.match(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, copy), /identical/);
    const [{ readBytes }] = ullage.traffic();
    assert.ok(readBytes < size / 8, `${readBytes} bytes were asked for`);
  });
}
