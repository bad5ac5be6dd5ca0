import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdirSync, rmSync, statfsSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { promisify } from "node:util";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { SpareSpace } from "../../src/daemon/directory/spare-space.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { pattern } from "../backend/support.ts";
import { fillDisk, freeDisk, LoopDisk, mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;

const free = (dir: string): number => {
  const { bfree, bsize } = statfsSync(dir);
  return bfree * bsize;
};

async function expectBytes(ullage: Ullage, name: string, offset: number, value: number): Promise<void> {
  const device = await ullage.getDevice(name);
  const buffer = new IoBuffer(4096);
  await device.read(offset, 4096, buffer, 0);
  assert.deepEqual(buffer.bytes, Buffer.alloc(4096, value));
}

/** Makes room, and waits until space is kept again. */
async function spareAgain(ullage: Ullage, dir: string): Promise<void> {
  freeDisk(dir);
  await ullage.createVolume({ name: "passing", size: MiB });
  await ullage.removeVolume("passing");
  while (!existsSync(join(dir, "data", "spare"))) await setImmediate();
}

for (const kind of ["ext4", "xfs"] as const) {
  void test(`${kind} without a free block: Ullage starts, volumes open, trims and removals make room, and some is kept again`, async (t) => {
    if (!requireTool(t, "root", "loop", "losetup", "mount", `mkfs.${kind}`)) return;
    const { dir } = new LoopDisk(t, kind, 320 * MiB);
    const dataDir = join(dir, "data");
    const first = await openUllage(t, { dataDir });
    for (const name of ["a", "b", "c"]) {
      await first.createVolume({ name, size: 64 * MiB });
      const device = await first.getDevice(name);
      await device.write(0, 8 * MiB, IoBuffer.from(Buffer.alloc(8 * MiB, name)), 0);
    }
    await first.createSnapshot("b", "s");
    await first.close();
    const spare = join(dataDir, "spare");
    assert.ok(statSync(spare).blocks > 0);
    fillDisk(dir);
    fillDisk(dir); // what the file system kept for itself
    assert.throws(() => writeFileSync(join(dir, "one-more"), Buffer.alloc(4096)), { code: "ENOSPC" });
    rmSync(join(dir, "one-more"), { force: true });

    const said: string[] = [];
    const ullage = await openUllage(t, { dataDir, log: (_level, message) => said.push(message) });
    assert.match(said.join("\n"), /is full: the space that was kept for this is used now/);
    assert.equal(existsSync(spare), false);
    for (const name of ["a", "b", "c"]) await expectBytes(ullage, name, 4 * MiB, name.charCodeAt(0));
    const device = await ullage.getDevice("c");
    await device.trim(0, MiB);
    await device.flush();
    await ullage.removeSnapshot("b", "s");
    await ullage.removeVolume("a");
    assert.ok(free(dir) > 8 * MiB);
    freeDisk(dir);
    await ullage.checkHealth();
    assert.ok(statSync(spare).blocks > 0, "space is kept again");
    await expectBytes(ullage, "b", 4 * MiB, "b".charCodeAt(0));
    await expectBytes(ullage, "c", 0, 0);
    await ullage.close();
    const last = await openUllage(t, { dataDir });
    assert.deepEqual(
      (await last.listVolumes()).map(({ name, state }) => [name, state]),
      [
        ["b", "ok"],
        ["c", "ok"],
      ],
    );
    await last.close();
  });
}

void test("a running daemon on a disk that became full still opens volumes, and removes snapshots and volumes", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const dir = mountTmpfs(t, 64 * MiB);
  const ullage = await openUllage(t, { dataDir: join(dir, "data") });
  for (const name of ["a", "b"]) await ullage.createVolume({ name, size: 16 * MiB });
  fillDisk(dir);
  await expectBytes(ullage, "b", 0, 0);
  await spareAgain(ullage, dir);
  await ullage.createSnapshot("b", "s");
  fillDisk(dir);
  await ullage.removeSnapshot("b", "s");
  await spareAgain(ullage, dir);
  const device = await ullage.getDevice("a");
  await device.write(0, 4 * MiB, IoBuffer.from(Buffer.alloc(4 * MiB, 1)), 0);
  fillDisk(dir);
  await assert.rejects(ullage.createVolume({ name: "c", size: 16 * MiB }), { errno: "ENOSPC" });
  await ullage.removeVolume("a");
  await ullage.createVolume({ name: "c", size: 16 * MiB });
  assert.deepEqual(
    (await ullage.listVolumes()).map(({ name }) => name),
    ["b", "c"],
  );
  assert.ok(ullage.health().warnings.every(({ code }) => code !== "catalog-read-only"));
  await ullage.close();
});

void test("spare space is there while the disk has room, goes when it is full, and is made again; without fallocate there is none", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const dir = mountTmpfs(t, 64 * MiB);
  const path = join(dir, "spare");
  const spare = new SpareSpace(realFileSystem, dir, () => undefined);
  await spare.refill();
  assert.equal(statSync(path).blocks * 512, 2 * MiB);
  await spare.refill();
  await spare.borrow();
  assert.ok(existsSync(path), "there is other space");
  fillDisk(dir);
  await spare.borrow();
  assert.equal(free(dir), 2 * MiB);
  await spare.refill();
  assert.equal(existsSync(path), false, "the disk has no room for it");
  freeDisk(dir);
  await spare.refill();
  assert.ok(existsSync(path));
  await spare.borrow();
  await spare.close();
  rmSync(path);
  await spare.refill();
  assert.equal(existsSync(path), false, "nothing is made for a directory that is let go of");

  const elsewhere = join(dir, "elsewhere");
  mkdirSync(elsewhere);
  const said: string[] = [];
  const cannot: typeof realFileSystem = {
    ...realFileSystem,
    open: async (...asked) => Object.assign(await realFileSystem.open(...asked), { allocate: async () => false }),
  };
  await new SpareSpace(cannot, elsewhere, (_level, message) => said.push(message)).refill();
  assert.equal(existsSync(join(elsewhere, "spare")), false);
  assert.deepEqual(said, []);
});

void test("a disk that is nearly full keeps nothing more of images: they are read through, whole, and writes go on", async (t) => {
  if (!requireTool(t, "root", "mount", "nbdcopy", "qemu-io", "qemu-img")) return;
  const dir = mountTmpfs(t, 128 * MiB);
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  const copy = join(directory, "copy.raw");
  writeFileSync(image, pattern(160 * MiB + 512));
  const said: string[] = [];
  const ullage = await openUllage(t, { dataDir: join(dir, "data"), log: (_level, message) => said.push(message) });
  const socket = join(directory, "nbd.sock");
  await ullage.serveNbd([{ kind: "unix", path: socket }]);
  await ullage.createVolume({ name: "v", from: { source: image } });
  await ullage.createVolume({ name: "empty", size: 64 * MiB });
  const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
  const io = async (name: string, ...commands: string[]): Promise<void> => {
    const { stdout } = await execute("qemu-io", [
      "-f",
      "raw",
      ...(name.includes("@") ? ["-r"] : []),
      ...commands.flatMap((each) => ["-c", each]),
      uri(name),
    ]);
    assert.doesNotMatch(stdout, /failed|error/i);
  };
  for (let round = 0; round < 2; round++) {
    await execute("nbdcopy", ["--connections=4", uri("v"), copy], { timeout: 120_000 });
    await execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, copy], { timeout: 120_000 });
  }
  const floor = 0.05 * 128 * MiB;
  const before = free(dir);
  assert.ok(before > floor - MiB, `${before} bytes are free`);
  assert.ok(said.some((message) => message.includes("what is read of images is not kept")));
  // Half a block of what was not fetched: the other half is.
  await io("v", "write -P 0x77 167772160 512", "write -P 0x78 150000128 512", "flush");
  await io("v", "read -P 0x77 167772160 512", "read -P 0x78 150000128 512");
  await ullage.createSnapshot("v", "s");
  await io("v@s", "read -P 0x78 150000128 512", "read 140M 4M");
  await io("empty", "write -P 0x55 0 2M", "flush");
  fillDisk(dir);
  await execute("nbdcopy", ["--connections=4", uri("v@s"), copy], { timeout: 120_000 });
  const device = await ullage.getDevice("v");
  await assert.rejects(device.write(130 * MiB, 4096, IoBuffer.from(Buffer.alloc(4096)), 0), { errno: "ENOSPC" });
  freeDisk(dir);
  await ullage.removeSnapshot("v", "s");
  await ullage.removeVolume("empty");
  await io("v", "read -P 0x77 167772160 512", "read 135M 1M");
  await ullage.close();
});
