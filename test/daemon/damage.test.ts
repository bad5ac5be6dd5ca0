import assert from "node:assert/strict";
import { open, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { checkData } from "../../src/daemon/offline/offline-check.ts";
import { OfflineData } from "../../src/daemon/offline/offline-data.ts";
import { planRepair } from "../../src/daemon/offline/offline-repair.ts";
import type { Ullage } from "../../src/daemon/ullage.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const size = 1024 * 1024;

async function fill(ullage: Ullage, name: string, byte: number): Promise<void> {
  const device = await ullage.getDevice(name);
  const data = new IoBuffer(8192);
  data.bytes.fill(byte);
  await device.write(0, 8192, data, 0);
  await device.flush();
}

async function firstByte(ullage: Ullage, name: string): Promise<number> {
  const device = await ullage.getDevice(name);
  const data = new IoBuffer(4096);
  await device.read(0, 4096, data, 0);
  return data.bytes[0];
}

interface World {
  dataDir: string;
  /** ids, by name */
  volumes: Map<string, string>;
  snapshots: Map<string, string>;
}

/** Closed: `v` with 1 in snapshot `s1`, 2 in `s2`, and 3 now; `c`, a clone of `s1`; `w` with a snapshot and a layer below. */
async function prepare(t: TestContext): Promise<World> {
  const dataDir = join(await temporaryDirectory(t), "data");
  const ullage = await openUllage(t, { dataDir });
  for (const name of ["v", "w"]) await ullage.createVolume({ name, size });
  await fill(ullage, "v", 1);
  await ullage.createSnapshot("v", "s1");
  await fill(ullage, "v", 2);
  await ullage.createSnapshot("v", "s2");
  await fill(ullage, "v", 3);
  await ullage.createVolume({ name: "c", from: { snapshot: "v@s1" } });
  await fill(ullage, "w", 4);
  await ullage.createSnapshot("w", "s");
  const volumes = new Map((await ullage.listVolumes()).map(({ name, id }) => [name, id]));
  const snapshots = new Map(ullage.listSnapshots().map(({ volume, name, id }) => [`${volume}@${name}`, id]));
  await ullage.close();
  return { dataDir, volumes, snapshots };
}

async function flipByte(path: string, offset: number): Promise<void> {
  const file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, offset);
  byte[0] ^= 0xff;
  await file.write(byte, 0, 1, offset);
  await file.close();
}

/** The newest checkpoint of a volume no longer adds up. */
async function damageMap({ dataDir, volumes }: World, name: string): Promise<void> {
  const dir = join(dataDir, "volumes", volumes.get(name)!);
  const maps = (await readdir(dir)).filter((entry) => entry.startsWith("map."));
  for (const map of maps) await flipByte(join(dir, map), 4100);
}

async function damages(dataDir: string): Promise<string[]> {
  const data = await OfflineData.open(dataDir, "check");
  const problems = await checkData(data);
  await data.close();
  return problems.filter(({ severity }) => severity === "damage").map(({ message }) => message);
}

async function repair(dataDir: string): Promise<{ losses: string[]; hopeless: string[] }> {
  const data = await OfflineData.open(dataDir, "repair");
  const { steps, hopeless } = await planRepair(data);
  for (const step of steps) await step.run();
  await data.close();
  return { losses: steps.flatMap((step) => step.losses), hopeless };
}

void test("a volume whose map is damaged goes back to its newest whole snapshot, and says that writes are missing", async (t) => {
  const world = await prepare(t);
  const { dataDir } = world;
  await damageMap(world, "v");
  assert.match((await damages(dataDir)).join(), /^volume 'v': .*map\.\d+ has a wrong checksum/);
  const { losses, hopeless } = await repair(dataDir);
  assert.match(losses.join("\n"), /wrong checksum.*\neverything written to volume .* after its snapshot 's2' of /);
  assert.deepEqual(hopeless, []);
  assert.deepEqual(await damages(dataDir), []);
  const ullage = await openUllage(t, { dataDir });
  assert.equal(await firstByte(ullage, "v"), 2);
  assert.equal((await ullage.showVolume("v")).state, "lostUnflushed");
  await ullage.reopenVolume("v", true);
  await fill(ullage, "v", 9);
  assert.equal(await firstByte(ullage, "v"), 9);
  assert.equal(await firstByte(ullage, "c"), 1);
});

void test("a snapshot that is damaged itself is passed over; without any the volume is hopeless, and the rest is repaired", async (t) => {
  const world = await prepare(t);
  const { dataDir, snapshots } = world;
  await damageMap(world, "v");
  await damageMap(world, "c");
  await flipByte(join(dataDir, "maps", snapshots.get("v@s2")!), 4100);
  const { losses, hopeless } = await repair(dataDir);
  assert.match(losses.join("\n"), /after its snapshot 's1'/);
  assert.match(hopeless.join("\n"), /volume 'c': .*wrong checksum/);
  assert.match(hopeless.join("\n"), /volume 'v': snapshot 's2': .*wrong checksum/);
  const ullage = await openUllage(t, { dataDir });
  assert.equal(await firstByte(ullage, "v"), 1);
});

void test("check finds a snapshot's map and layers that are missing", async (t) => {
  const { dataDir, snapshots } = await prepare(t);
  await rm(join(dataDir, "maps", snapshots.get("w@s")!));
  assert.match((await damages(dataDir)).join(), /volume 'w': snapshot 's': .*maps.* is missing/);
  for (const layer of await readdir(join(dataDir, "layers"))) await rm(join(dataDir, "layers", layer));
  const found = (await damages(dataDir)).join("\n");
  for (const what of ["volume 'v'", "volume 'v': snapshot 's1'", "volume 'c'", "volume 'w'"]) {
    assert.match(found, new RegExp(`${what}: .*layers/.* is missing`));
  }
  assert.ok((await repair(dataDir)).hopeless.length > 0);
});

void test("what a volume and its snapshots say of themselves is written again from the catalog", async (t) => {
  const { dataDir, volumes, snapshots } = await prepare(t);
  const dir = join(dataDir, "volumes", volumes.get("v")!);
  await writeFile(join(dir, "volume.json"), "{");
  await writeFile(join(dir, `snapshot.${snapshots.get("v@s1")}.json`), "");
  assert.match((await damages(dataDir)).join(), /volume\.json is damaged.*snapshot\..*json is damaged/);
  assert.deepEqual(await repair(dataDir), { losses: [], hopeless: [] });
  assert.deepEqual(await damages(dataDir), []);
  for (const name of await readdir(dataDir)) if (name.startsWith("catalog.db")) await rm(join(dataDir, name));
  await repair(dataDir);
  const ullage = await openUllage(t, { dataDir });
  assert.equal(await firstByte(ullage, "v"), 3);
  assert.deepEqual(
    ullage.listSnapshots("v").map(({ name }) => name),
    ["s1", "s2"],
  );
});

void test("a damaged volume keeps no other from being removed, can be removed itself, and stops no start", async (t) => {
  const world = await prepare(t);
  const { dataDir } = world;
  await damageMap(world, "v");
  const first = await openUllage(t, { dataDir });
  await assert.rejects(firstByte(first, "v"));
  assert.equal((await first.showVolume("v")).state, "failed");
  await first.removeVolume("w", { force: false, snapshots: true });
  await first.close();
  const second = await openUllage(t, { dataDir });
  assert.deepEqual(
    (await second.listVolumes()).map(({ name }) => name),
    ["c", "v"],
  );
  await second.removeVolume("v", { force: false, snapshots: true });
  assert.equal(await firstByte(second, "c"), 1, "the clone lives on");
  await second.close();
  const third = await openUllage(t, { dataDir });
  assert.equal(await firstByte(third, "c"), 1);
});

void test("nothing in the data directory is for other users, whatever the umask", async (t) => {
  const before = process.umask(0);
  t.after(() => process.umask(before));
  const { dataDir } = await prepare(t);
  const ullage = await openUllage(t, { dataDir });
  await fill(ullage, "v", 5);
  for (const name of ["", ...(await readdir(dataDir, { recursive: true }))]) {
    assert.equal((await stat(join(dataDir, name))).mode & 0o077, 0, name);
  }
});
