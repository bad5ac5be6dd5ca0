import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { startHttpSource } from "../support/http-source.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

/*
 * What is shown of volumes that are not open: what they were like when they were closed, as long as their files are still as
 * they were then.
 */

const openNow = (ullage: Ullage): number => ullage.stats().volumes.open;

async function write(ullage: Ullage, name: string, flush: boolean): Promise<void> {
  const device = await ullage.getDevice(name);
  await device.write(0, 8192, IoBuffer.from(Buffer.alloc(8192, "w")), 0);
  if (flush) await device.flush();
}

void test("a list after a start shows volumes as they were when they were closed, and opens none", async (t) => {
  const directory = await temporaryDirectory(t);
  const dataDir = join(directory, "data");
  await using source = await startHttpSource({ content: Buffer.alloc(3 * 2 ** 20, "x") });
  await writeFile(join(directory, "image.raw"), Buffer.alloc(2 ** 20, "y"));
  const first = await openUllage(t, { dataDir });
  await first.createVolume({ name: "empty", size: 2 ** 20 });
  await first.createVolume({ name: "image", from: { source: join(directory, "image.raw") } });
  await first.createVolume({ name: "off", from: { source: source.url }, settings: { hydrate: "off" } });
  await first.createVolume({ name: "paused", from: { source: source.url } });
  await first.steerHydration("paused", { state: "paused", limitBytesPerSecond: 1000, priority: 3 });
  await write(first, "off", true);
  await first.createVolume({ name: "clone", from: { volume: "empty" } });
  while ((await first.showVolume("image")).hydration.state !== "detached") await systemClock.sleep(10);
  const before = await first.listVolumes();
  assert.ok(before.some(({ writtenBytes }) => writtenBytes > 0));
  await first.close();

  const second = await openUllage(t, { dataDir });
  second.resume();
  assert.deepEqual(await second.listVolumes(), before);
  assert.equal((await second.checkHealth()).status, "ok");
  await second.measure();
  assert.equal(openNow(second), 0);
  for (const { name } of before) await second.showVolume(name);
  assert.deepEqual(await second.listVolumes(), before);
});

void test("clones are listed without being opened, with what their parent has of the image", async (t) => {
  const directory = await temporaryDirectory(t);
  await writeFile(join(directory, "image.raw"), Buffer.alloc(2 ** 20, "y"));
  const ullage = await openUllage(t, { dataDir: join(directory, "data") });
  await ullage.createVolume({ name: "image", from: { source: join(directory, "image.raw") } });
  while ((await ullage.showVolume("image")).hydration.state !== "detached") await systemClock.sleep(10);
  await write(ullage, "image", true);
  await ullage.createSnapshot("image", "s");
  for (const name of ["a", "b"]) await ullage.createVolume({ name, from: { snapshot: "image@s" } });
  const [a] = await ullage.listVolumes();
  assert.equal(openNow(ullage), 1);
  const { readyBytes, totalBytes } = a.hydration;
  assert.deepEqual([a.state, a.writtenBytes, a.fetchedBytes], ["ok", 0, 2 ** 20]);
  assert.ok(totalBytes > 0);
  assert.equal(readyBytes, totalBytes);
});

void test("a volume whose process was killed is opened to see what it is like, and remembered as that", async (t) => {
  const directory = await temporaryDirectory(t);
  const dataDir = join(directory, "data");
  const first = await openUllage(t, { dataDir });
  for (const name of ["lost", "quiet"]) await first.createVolume({ name, size: 2 ** 20 });
  await first.close();
  const second = await openUllage(t, { dataDir });
  await write(second, "lost", false);
  // Killed now, and its page cache with it: a copy is all that anybody can know.
  const copy = join(directory, "copy");
  await cp(dataDir, copy, { recursive: true });

  const third = await openUllage(t, { dataDir: copy });
  const [lost, quiet] = await third.listVolumes();
  assert.deepEqual([lost.state, quiet.state], ["lostUnflushed", "ok"]);
  assert.equal(openNow(third), 1);
  await third.close();
  const fourth = await openUllage(t, { dataDir: copy });
  const [again] = await fourth.listVolumes();
  assert.deepEqual([again.state, again.reason], ["lostUnflushed", lost.reason]);
  assert.equal(fourth.health().status, "fail");
  assert.equal(openNow(fourth), 0);
  await fourth.reopenVolume("lost", true);
  await fourth.close();
  const fifth = await openUllage(t, { dataDir: copy });
  assert.deepEqual(
    (await fifth.listVolumes()).map(({ state }) => state),
    ["ok", "ok"],
  );
});

void test("a poison mark on a volume that came to a clean end shows", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  const first = await openUllage(t, { dataDir });
  const { id } = await first.createVolume({ name: "v", size: 2 ** 20 });
  await first.close();
  await writeFile(join(dataDir, "volumes", id, "poison"), "the disk failed\n");
  const second = await openUllage(t, { dataDir });
  const [{ state, reason }] = await second.listVolumes();
  assert.equal(state, "poisoned");
  assert.match(reason ?? "", /the disk failed/);
});
