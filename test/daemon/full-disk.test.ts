import assert from "node:assert/strict";
import { existsSync, mkdirSync, rmSync, statfsSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setImmediate } from "node:timers/promises";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { SpareSpace } from "../../src/daemon/directory/spare-space.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { fillDisk, freeDisk, LoopDisk, mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage } from "./support.ts";

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
