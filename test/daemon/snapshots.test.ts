import assert from "node:assert/strict";
import { readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import type { BlockDevice } from "../../src/export/block-device.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { Gate, interposedFileSystem } from "./interposed-file-system.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const block = 4096;
const size = 1 << 20;

async function put(ullage: Ullage, name: string, at: number, value: number): Promise<void> {
  await (await ullage.getDevice(name)).write(at * block, block, IoBuffer.from(Buffer.alloc(block, value)), 0);
}

async function valueAt(device: BlockDevice, at: number): Promise<number> {
  const buffer = new IoBuffer(block);
  await device.read(at * block, block, buffer, 0);
  assert.deepEqual(buffer.bytes, Buffer.alloc(block, buffer.bytes[0]));
  return buffer.bytes[0];
}

const liveValue = async (ullage: Ullage, name: string, at: number): Promise<number> =>
  valueAt(await ullage.getDevice(name), at);

const layersIn = async (dataDir: string): Promise<number> => (await readdir(join(dataDir, "layers"))).length;

void test("a snapshot is taken, listed, read, survives a restart, and goes", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "web", size });
  await put(first, "web", 0, 1);
  const made = await first.createSnapshot("web", "before");
  assert.deepEqual([made.name, made.volume, made.size], ["before", "web", size]);
  await put(first, "web", 0, 2);
  assert.equal(await valueAt(await first.getSnapshotDevice("web", "before"), 0), 1);
  assert.equal(await liveValue(first, "web", 0), 2);
  await assert.rejects(first.createSnapshot("web", "before"), { code: "name-taken" });
  await assert.rejects(first.createSnapshot("web", "a b"), { code: "bad-name" });
  await assert.rejects(first.createSnapshot("none", "x"), { code: "not-found" });
  await first.close();
  const second = await openUllage(t, { dataDir });
  assert.deepEqual(second.listSnapshots("web"), [made]);
  assert.equal(await valueAt(await second.getSnapshotDevice("web", "before"), 0), 1);
  assert.equal(await layersIn(dataDir), 2);
  await second.removeSnapshot("web", "before");
  assert.deepEqual(second.listSnapshots(), []);
  await assert.rejects(second.removeSnapshot("web", "before"), { code: "not-found" });
  assert.equal(await liveValue(second, "web", 0), 2);
  assert.deepEqual(await readdir(join(dataDir, "maps")), []);
});

void test("clones of a snapshot and of a volume as it is go their own ways, and outlive both", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "base", size });
  await put(ullage, "base", 0, 1);
  await ullage.createSnapshot("base", "s");
  await put(ullage, "base", 0, 2);
  const clone = await ullage.createVolume({ name: "c1", from: { snapshot: "base@s" } });
  assert.equal(clone.size, size);
  await ullage.createVolume({ name: "c2", from: { volume: "base" }, size: 2 * size });
  await put(ullage, "base", 0, 3);
  await put(ullage, "c1", 1, 4);
  assert.deepEqual(
    [await liveValue(ullage, "c1", 0), await liveValue(ullage, "c2", 0), await liveValue(ullage, "base", 0)],
    [1, 2, 3],
  );
  await assert.rejects(ullage.removeVolume("base"), { code: "has-snapshots" });
  await ullage.removeVolume("base", { snapshots: true });
  await ullage.createVolume({ name: "c3", from: { volume: "c1" } });
  assert.deepEqual([await liveValue(ullage, "c3", 0), await liveValue(ullage, "c3", 1)], [1, 4]);
  await ullage.close();
  const again = await openUllage(t, { dataDir });
  assert.deepEqual([await liveValue(again, "c1", 0), await liveValue(again, "c2", 0)], [1, 2]);
  assert.deepEqual([await liveValue(again, "c3", 0), await liveValue(again, "c3", 1)], [1, 4]);
  for (const name of ["c1", "c2", "c3"]) await again.removeVolume(name);
  assert.equal(await layersIn(dataDir), 0);
  assert.deepEqual(await readdir(join(dataDir, "maps")), []);
});

void test("a clone of an image keeps the image's cache when the first volume goes", async (t) => {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(size, 7));
  const ullage = await openUllage(t, { dataDir: join(directory, "data") });
  await ullage.createVolume({ name: "first", from: { source: image }, settings: { hydrate: "off" } });
  await ullage.createVolume({ name: "second", from: { volume: "first" } });
  await ullage.removeVolume("first");
  assert.equal(await liveValue(ullage, "second", 3), 7);
});

void test("a removal that is refused because clients are there leaves the snapshots", async (t) => {
  const ullage = await openUllage(t);
  await ullage.createVolume({ name: "web", size });
  await put(ullage, "web", 0, 1);
  for (const name of ["a", "b"]) await ullage.createSnapshot("web", name);
  const names = (): string[] => ullage.listSnapshots("web").map(({ name }) => name);
  const client = { protocol: "nbd", address: "unix", remote: false } as const;
  for (const attach of [
    async () => (await ullage.getDevice("web")).attach({ ...client, writable: true, close: () => undefined }),
    async () =>
      (await ullage.getSnapshotDevice("web", "b")).attach({ ...client, writable: false, close: () => undefined }),
  ]) {
    const attached = await attach();
    await assert.rejects(ullage.removeVolume("web", { force: false, snapshots: true }), { code: "in-use" });
    assert.deepEqual(names(), ["a", "b"]);
    assert.equal(await valueAt(await ullage.getSnapshotDevice("web", "a"), 0), 1);
    attached.release(true);
  }
  await ullage.removeVolume("web", { force: false, snapshots: true });
  assert.deepEqual(await ullage.listVolumes(), []);
});

void test("a revert brings back content and size; nobody may write meanwhile", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "web", size });
  await put(ullage, "web", 0, 1);
  await ullage.createSnapshot("web", "s");
  await ullage.changeVolume("web", { size: 2 * size });
  await put(ullage, "web", 0, 2);
  await put(ullage, "web", 300, 2);
  const attached = await (
    await ullage.getDevice("web")
  ).attach({ protocol: "nbd", address: "unix", remote: false, writable: true, close: () => attached.release(true) });
  await assert.rejects(ullage.revertVolume("web", "s"), { code: "in-use" });
  const view = await ullage.revertVolume("web", "s", { force: true });
  assert.equal(view.size, size);
  assert.equal(await liveValue(ullage, "web", 0), 1);
  await put(ullage, "web", 0, 5);
  assert.equal(await valueAt(await ullage.getSnapshotDevice("web", "s"), 0), 1);
  await ullage.close();
  const again = await openUllage(t, { dataDir });
  assert.equal(await liveValue(again, "web", 0), 5);
  await again.removeVolume("web", { snapshots: true });
  assert.equal(await layersIn(dataDir), 0);
});

void test("a volume grows in use, shrinks only by force and where nothing is", async (t) => {
  const ullage = await openUllage(t);
  await ullage.createVolume({ name: "web", size });
  await put(ullage, "web", 10, 1);
  assert.equal((await ullage.changeVolume("web", { size: 3 * size })).size, 3 * size);
  await put(ullage, "web", 600, 2);
  await assert.rejects(ullage.changeVolume("web", { size }), { code: "shrinks" });
  await assert.rejects(ullage.changeVolume("web", { size, force: true }), { code: "not-empty" });
  await (await ullage.getDevice("web")).trim(600 * block, block);
  assert.equal((await ullage.changeVolume("web", { size, force: true })).size, size);
  assert.equal(await liveValue(ullage, "web", 10), 1);
  await ullage.changeVolume("web", { size: 3 * size });
  assert.equal(await liveValue(ullage, "web", 600), 0);
  await assert.rejects(ullage.changeVolume("web", { size: size + 1 }), { code: "bad-size" });
});

void test("durability rule 19: the end that a shrink cut off inside a block reads as zeros when it grows again", async (t) => {
  const ullage = await openUllage(t);
  await ullage.createVolume({ name: "web", size: 3 * block });
  await put(ullage, "web", 0, 9);
  await ullage.changeVolume("web", { size: 512, force: true });
  await ullage.changeVolume("web", { size: block });
  const buffer = new IoBuffer(block);
  await (await ullage.getDevice("web")).read(0, block, buffer, 0);
  assert.deepEqual(buffer.bytes, Buffer.concat([Buffer.alloc(512, 9), Buffer.alloc(block - 512)]));
});

void test("a renamed volume keeps its content, snapshots and connections; names stay unique", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "a", size });
  await ullage.createVolume({ name: "b", size });
  await put(ullage, "a", 0, 1);
  await ullage.createSnapshot("a", "s");
  await assert.rejects(ullage.changeVolume("a", { name: "b" }), { code: "name-taken" });
  await assert.rejects(ullage.changeVolume("a", { name: "../x" }), { code: "bad-name" });
  assert.equal((await ullage.changeVolume("a", { name: "c" })).name, "c");
  await assert.rejects(ullage.showVolume("a"), { code: "not-found" });
  assert.equal(ullage.listSnapshots("c")[0].volume, "c");
  await ullage.close();
  const again = await openUllage(t, { dataDir });
  assert.equal(await liveValue(again, "c", 0), 1);
});

void test("what volumes take adds up to what lies in layers", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "a", size });
  for (let at = 0; at < 20; at++) await put(ullage, "a", at, 1);
  await ullage.createSnapshot("a", "s");
  for (let at = 0; at < 5; at++) await put(ullage, "a", at, 2);
  await ullage.createVolume({ name: "b", from: { snapshot: "a@s" } });
  await put(ullage, "b", 0, 3);
  for (const name of ["a", "b"]) await (await ullage.getDevice(name)).flush();
  const [a, b] = [await ullage.spaceOf("a"), await ullage.spaceOf("b")];
  assert.equal(a.sharedBytes, b.sharedBytes, "the sealed layer that both read");
  const layers = await readdir(join(dataDir, "layers"));
  const onDisk = await Promise.all(
    layers.map(async (layer) => (await stat(join(dataDir, "layers", layer))).blocks * 512),
  );
  assert.equal(
    a.exclusiveBytes + b.exclusiveBytes + a.sharedBytes,
    onDisk.reduce((sum, bytes) => sum + bytes, 0),
  );
  assert.equal((await ullage.space()).sharedBytes, a.sharedBytes);
  await ullage.removeVolume("a", { snapshots: true });
  const { exclusiveBytes, sharedBytes, unusedBytes } = await ullage.space();
  assert.deepEqual([sharedBytes, unusedBytes], [0, 0], "what is there is all of the clone's");
  assert.equal((await ullage.spaceOf("b")).exclusiveBytes, exclusiveBytes);
});

void test("a layer that only the table of a snapshot still names goes when that is in its file", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const gate = new Gate();
  const fs = interposedFileSystem(async (what, path, proceed) => {
    if (what === "open create" && /\/map\.\d+\.tmp$/.test(path)) await gate.pass();
    return proceed();
  });
  const ullage = await openUllage(t, { dataDir, fs });
  await ullage.createVolume({ name: "web", size });
  await put(ullage, "web", 0, 1);
  await ullage.createSnapshot("web", "before");
  await put(ullage, "web", 0, 2);
  await ullage.removeSnapshot("web", "before"); // no block refers to the first layer any more, the volume's table does
  gate.close();
  const checkpoint = ((await ullage.getDevice("web")) as Volume).checkpoint();
  while (gate.waiting === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await ullage.createSnapshot("web", "after"); // with the table as it is now, and not in a file yet
  gate.open();
  await checkpoint;
  assert.equal(await valueAt(await ullage.getSnapshotDevice("web", "after"), 0), 2);
  while ((await readdir(join(dataDir, "maps"))).length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  for (let n = 0; (await layersIn(dataDir)) > 2; n++) {
    assert.ok(n < 500, "the layer stays");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  assert.equal(await liveValue(ullage, "web", 0), 2);
});
