import assert from "node:assert/strict";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import type { File, FileSystem } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { BlockDevice, Client } from "../../src/export/block-device.ts";
import { startHttpSource } from "../support/http-source.ts";
import { until } from "../blob/support.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

async function read(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const buffer = new IoBuffer(length);
  await device.read(offset, length, buffer, 0);
  return buffer.bytes;
}

const writer: Client = { protocol: "nbd", address: "unix", remote: false, writable: true, close: () => undefined };

/** Lets every fdatasync of a layer fail while `failing` is set. */
function failingSyncs(): { fs: FileSystem; fail: (on: boolean) => void } {
  let failing = false;
  const wrap = (file: File): File =>
    new Proxy(file, {
      get(target, key) {
        const value: unknown = Reflect.get(target, key, target);
        if (key === "datasync") {
          return async () => {
            if (failing) throw new IoError("EIO", "injected: fdatasync failed");
            await target.datasync();
          };
        }
        return typeof value === "function" ? (value.bind(target) as unknown) : value;
      },
    });
  const fs: FileSystem = {
    ...realFileSystem,
    open: async (path, mode) => {
      const file = await realFileSystem.open(path, mode);
      return path.includes("/layers/") ? wrap(file) : file;
    },
  };
  return { fs, fail: (on) => (failing = on) };
}

void test("a volume from an image reads as the image, with zeros up to its own size, and keeps what is written", async (t) => {
  const directory = await temporaryDirectory(t);
  const content = Buffer.alloc(300_001, "ullage");
  await writeFile(join(directory, "image.raw"), content);
  const dataDir = join(directory, "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "v", from: { source: join(directory, "image.raw") }, size: 2 ** 20 });
  const device = await first.getDevice("v");
  assert.deepEqual((await read(device, 0, 300_001)).equals(content), true);
  assert.ok((await read(device, 300_001, 2 ** 20 - 300_001)).every((byte) => byte === 0));
  await device.write(5000, 3, IoBuffer.from(Buffer.from("new")), 0);
  await first.close();
  const second = await openUllage(t, { dataDir });
  content.write("new", 5000);
  assert.ok((await read(await second.getDevice("v"), 0, 300_001)).equals(content));
});

void test("volumes of one image share its cache", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, "x") });
  const ullage = await openUllage(t);
  for (const name of ["a", "b", "c"]) {
    await ullage.createVolume({ name, from: { source: source.url }, settings: { hydrate: "off" } });
  }
  await read(await ullage.getDevice("a"), 0, 2 ** 20);
  const before = source.requests.length;
  await read(await ullage.getDevice("b"), 0, 2 ** 20);
  await read(await ullage.getDevice("c"), 0, 2 ** 20);
  assert.equal(source.requests.length, before);
  assert.equal((await ullage.showVolume("c")).fetchedBytes, 2 ** 20);
});

void test("making a volume asks an HTTP source once, and its first read once more", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(8 * 2 ** 20, "x") });
  const ullage = await openUllage(t);
  await ullage.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
  assert.equal(source.requests.length, 1);
  await read(await ullage.getDevice("v"), 4096, 4096);
  assert.equal(source.requests.length, 2);
});

void test("the beginning of a disk that is to be hydrated is fetched before anything else, while the volume is made", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(8 * 2 ** 20, "x") });
  const ullage = await openUllage(t);
  await ullage.createVolume({ name: "v", from: { source: source.url } });
  await until(() => source.requests.length > 1);
  assert.deepEqual([source.requests[1].start, source.requests[1].end], [0, 2 ** 18]);
  await read(await ullage.getDevice("v"), 0, 4096);
  const beginnings = source.requests.filter(({ start }) => start === 0);
  assert.equal(beginnings.length, 2); // with the look at what it is
});

void test("a source without ranges needs `download`, and then is not needed any more", async (t) => {
  const content = Buffer.alloc(3 * 2 ** 20, "streamed");
  const source = await startHttpSource({ content });
  source.onRequest = () => ({ kind: "ignore-range" });
  const ullage = await openUllage(t);
  const from = { source: source.url };
  await assert.rejects(ullage.createVolume({ name: "v", from }), { code: "source-no-ranges", hint: /--download/ });
  assert.deepEqual(await ullage.listVolumes(), []);
  await ullage.createVolume({ name: "v", from: { ...from, download: true } });
  await source[Symbol.asyncDispose]();
  assert.ok((await read(await ullage.getDevice("v"), 0, content.length)).equals(content));
});

void test("a source that changes unnoticed needs `unpinned`", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(4096, "x"), etag: null });
  const ullage = await openUllage(t);
  const from = { source: source.url };
  await assert.rejects(ullage.createVolume({ name: "v", from }), { code: "source-unpinned", hint: /--unpinned/ });
  await ullage.createVolume({ name: "v", from: { ...from, unpinned: true } });
});

void test("volumes start and serve what they have while the source is down", async (t) => {
  const content = Buffer.alloc(4 * 2 ** 20, "down");
  const source = await startHttpSource({ content });
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
  await read(await first.getDevice("v"), 0, 4096);
  await first.close();
  await source[Symbol.asyncDispose]();
  const second = await openUllage(t, { dataDir });
  const device = await second.getDevice("v");
  assert.ok((await read(device, 0, 4096)).equals(content.subarray(0, 4096)));
  const { state, fetchedBytes } = await second.showVolume("v");
  assert.equal(state, "ok");
  assert.ok(fetchedBytes >= 4096);
});

void test("how hydration was steered is remembered over a restart", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, "x"), bytesPerSecond: 64 * 1024 });
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "v", from: { source: source.url } });
  await first.steerHydration("v", { state: "paused", limitBytesPerSecond: 12_345, priority: 6 });
  await first.close();
  const second = await openUllage(t, { dataDir });
  const { hydration } = await second.showVolume("v");
  assert.deepEqual([hydration.state, hydration.limitBytesPerSecond, hydration.priority], ["paused", 12_345, 6]);
});

void test("hydration goes on by itself after a restart", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, "x") });
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "v", from: { source: source.url }, settings: { hydrate: "off" } });
  await first.changeVolume("v", { settings: { hydrate: "auto" } });
  await first.close();
  const second = await openUllage(t, { dataDir });
  second.resume();
  while ((await second.showVolume("v")).hydration.state !== "detached")
    await new Promise((next) => setTimeout(next, 20));
});

void test("durability rule 16: after a failed sync nobody writes until the loss is accepted, through restarts", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const { fs, fail } = failingSyncs();
  const first = await openUllage(t, { dataDir, fs });
  await first.createVolume({ name: "v", size: 2 ** 20 });
  await first.createVolume({ name: "healthy", size: 2 ** 20 });
  const device = await first.getDevice("v");
  await device.write(0, 4096, IoBuffer.from(Buffer.alloc(4096, "a")), 0);
  await device.flush();
  await device.write(4096, 4096, IoBuffer.from(Buffer.alloc(4096, "b")), 0);
  fail(true);
  await assert.rejects(device.flush());
  fail(false);
  assert.equal((await first.showVolume("v")).state, "poisoned");
  assert.deepEqual(
    first.health().warnings.map(({ code }) => code),
    ["volume-poisoned"],
  );
  await assert.rejects(device.attach(writer), { code: "poisoned" });
  await assert.rejects(first.reopenVolume("v", false), { code: "loss-not-accepted", hint: /--accept-loss/ });
  await first.close();

  const second = await openUllage(t, { dataDir });
  assert.equal((await second.showVolume("v")).state, "poisoned");
  await assert.rejects(second.getDevice("v"), { code: "poisoned" });
  assert.equal((await second.showVolume("healthy")).state, "ok");
  await assert.rejects(second.reopenVolume("v", false), { code: "loss-not-accepted" });
  assert.equal((await second.reopenVolume("v", true)).state, "ok");
  const reopened = await second.getDevice("v");
  assert.ok((await read(reopened, 0, 4096)).equals(Buffer.alloc(4096, "a")));
  (await reopened.attach(writer)).release(true);
  assert.deepEqual(second.health().warnings, []);
});

void test("a volume that is poisoned while it is open is reopened in place", async (t) => {
  const { fs, fail } = failingSyncs();
  const ullage = await openUllage(t, { fs });
  await ullage.createVolume({ name: "v", size: 2 ** 20 });
  const device = await ullage.getDevice("v");
  await device.write(0, 4096, IoBuffer.from(Buffer.alloc(4096, "a")), 0);
  fail(true);
  await assert.rejects(device.flush());
  fail(false);
  assert.equal((await ullage.reopenVolume("v", true)).state, "ok");
  const reopened = await ullage.getDevice("v");
  assert.notEqual(reopened, device);
  await reopened.write(0, 4096, IoBuffer.from(Buffer.alloc(4096, "c")), 0);
  await reopened.flush();
});

void test("a catalog that fails stops changes; volumes go on", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const { DatabaseSync } = await import("node:sqlite");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "v", size: 2 ** 20 });
  const other = new DatabaseSync(join(dataDir, "catalog.db"));
  other.exec("BEGIN IMMEDIATE");
  await assert.rejects(ullage.createVolume({ name: "w", size: 2 ** 20 }), { code: "catalog-read-only" });
  other.exec("ROLLBACK");
  other.close();
  await assert.rejects(ullage.removeVolume("v"), { code: "catalog-read-only" });
  const device = await ullage.getDevice("v");
  await device.write(0, 4096, IoBuffer.from(Buffer.alloc(4096, "a")), 0);
  await device.flush();
  assert.deepEqual(
    ullage.health().warnings.map(({ code }) => code),
    ["catalog-read-only"],
  );
  assert.deepEqual(
    (await ullage.listVolumes()).map(({ name }) => name),
    ["v"],
  );
});

void test("more than the file system's files can hold is refused, and leaves nothing behind", async (t) => {
  const ullage = await openUllage(t);
  await assert.rejects(ullage.createVolume({ name: "v", size: 2 ** 50 }), { code: "too-large", hint: /16T/ });
  assert.deepEqual(await ullage.listVolumes(), []);
  await ullage.createVolume({ name: "v", size: 2 ** 20 });
});

void test("a stop in the middle of making a volume leaves nothing of it", async (t) => {
  const source = await startHttpSource({ content: Buffer.alloc(2 ** 20, "x"), bytesPerSecond: 64 * 1024 });
  source.onRequest = () => ({ kind: "ignore-range" });
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  const making = first.createVolume({ name: "v", from: { source: source.url, download: true } });
  const failed = assert.rejects(making, { code: "stopping" });
  while ((await first.listVolumes())[0]?.state !== "creating") await new Promise((next) => setTimeout(next, 5));
  await first.close();
  await failed;
  await source[Symbol.asyncDispose]();
  const second = await openUllage(t, { dataDir });
  assert.deepEqual(await second.listVolumes(), []);
  assert.deepEqual(second.health().warnings, []);
});

void test("a start opens only volumes that have something to do", async (t) => {
  await using source = await startHttpSource({ content: Buffer.alloc(2 ** 20, "x"), bytesPerSecond: 64 * 1024 });
  const image = join(await temporaryDirectory(t), "image.raw");
  await writeFile(image, Buffer.alloc(4096, 1));
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "empty", size: 4096 });
  await first.createVolume({ name: "off", from: { source: image }, settings: { hydrate: "off" } });
  await first.createVolume({ name: "detached", from: { source: image } });
  while ((await first.showVolume("detached")).hydration.state !== "detached") {
    await new Promise((next) => setTimeout(next, 5));
  }
  await first.createVolume({ name: "filling", from: { source: source.url } });
  await first.close();
  const second = await openUllage(t, { dataDir });
  second.resume();
  while (second.stats().volumes.open === 0) await new Promise((next) => setTimeout(next, 5));
  assert.deepEqual(second.stats().volumes, { known: 4, open: 1 });
});

void test("a poisoned volume, and one whose files are gone, can be removed", async (t) => {
  const { fs, fail } = failingSyncs();
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir, fs });
  await first.createVolume({ name: "poisoned", size: 2 ** 20 });
  const { id } = await first.createVolume({ name: "gone", size: 2 ** 20 });
  const device = await first.getDevice("poisoned");
  await device.write(0, 4096, IoBuffer.from(Buffer.alloc(4096, "a")), 0);
  fail(true);
  await assert.rejects(device.flush());
  fail(false);
  await first.removeVolume("poisoned");
  await first.close();
  await rm(join(dataDir, "volumes", id), { recursive: true });
  const second = await openUllage(t, { dataDir });
  await assert.rejects(second.getDevice("gone"));
  await second.removeVolume("gone");
  assert.deepEqual(await second.listVolumes(), []);
  assert.deepEqual(await readdir(join(dataDir, "layers")), []);
});

void test("rule 17: a volume that is complete stays, though its first opening fails", async (t) => {
  let failing = true;
  const fs = {
    ...realFileSystem,
    open: (...[path, mode]: Parameters<typeof realFileSystem.open>) =>
      failing && path.endsWith("intent.2")
        ? Promise.reject(new IoError("EMFILE", "too many open files"))
        : realFileSystem.open(path, mode),
  };
  const ullage = await openUllage(t, { fs });
  await ullage.createVolume({ name: "disk", size: 1 << 20 });
  await assert.rejects(ullage.getDevice("disk"), /too many open files/);
  const { state, reason } = await ullage.showVolume("disk");
  assert.equal(state, "failed");
  assert.match(reason ?? "", /too many open files/);
  failing = false;
  assert.equal((await ullage.getDevice("disk")).size, 1 << 20);
});
