import assert from "node:assert/strict";
import { cp, mkdir, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { checkData } from "../../src/daemon/offline/offline-check.ts";
import { OfflineData } from "../../src/daemon/offline/offline-data.ts";
import { findStrays } from "../../src/daemon/offline/offline-orphans.ts";
import { planRepair } from "../../src/daemon/offline/offline-repair.ts";
import { moveToOrphans } from "../../src/daemon/directory/orphans.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import { layerCreator } from "../../src/daemon/volumes/volume-files.ts";
import { CrashingWorld } from "./crashing-world.ts";
import { temporaryDirectory } from "./support.ts";

const block = 4096;
/** For some two hundred lives, on a busy machine. */
const patience = { timeout: 8 * 60_000 };
/** A name like those of layers and maps. */
const id = "0123456789abcdef".repeat(2);

async function check(dataDir: string): Promise<string[]> {
  const data = await OfflineData.open(dataDir, "check");
  try {
    return (await checkData(data)).map(({ severity, message }) => `${severity}: ${message}`);
  } finally {
    await data.close();
  }
}

async function repair(dataDir: string): Promise<string[]> {
  const data = await OfflineData.open(dataDir, "repair");
  try {
    const { steps, hopeless } = await planRepair(data);
    assert.deepEqual(hopeless, []);
    for (const step of steps) {
      assert.deepEqual(step.losses, []);
      await step.run();
    }
    return steps.map(({ action }) => action);
  } finally {
    await data.close();
  }
}

async function put(ullage: Ullage, name: string, value: number): Promise<void> {
  const device = await ullage.getDevice(name);
  await device.write(0, block, IoBuffer.from(Buffer.alloc(block, value)), 0);
  await device.flush();
}

/** Volumes from images and empty, snapshots, a clone whose parent is gone, one whose snapshot has no name any more. */
async function prepare(t: TestContext): Promise<string> {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(1_000_000, "x"));
  const dataDir = join(directory, "data");
  const ullage = await Ullage.open({ dataDir });
  await ullage.createVolume({ name: "web", from: { source: image }, settings: { hydrate: "off" } });
  await put(ullage, "web", 1);
  for (const name of ["s", "t"]) await ullage.createSnapshot("web", name);
  await put(ullage, "web", 2);
  await ullage.createVolume({ name: "clone", from: { snapshot: "web@t" } });
  await ullage.removeSnapshot("web", "t");
  await ullage.createVolume({ name: "parent", size: 1 << 20 });
  await put(ullage, "parent", 3);
  await ullage.createVolume({ name: "heir", from: { volume: "parent" } });
  await ullage.removeVolume("parent");
  await ullage.close();
  return dataDir;
}

/** Every file, with its path below the data directory, but not what any process changes. */
async function files(dataDir: string): Promise<string[]> {
  const entries = await readdir(dataDir, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && !/^catalog\.db|^lock$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name).slice(dataDir.length + 1))
    .sort();
}

void test("nothing is a stray where nothing was interrupted", async (t) => {
  const dataDir = await prepare(t);
  assert.deepEqual(await check(dataDir), []);
  assert.deepEqual(await repair(dataDir), []);
});

void test("what nothing refers to is reported with what it is; repair moves it away and deletes nothing", async (t) => {
  const dataDir = await prepare(t);
  const before = await files(dataDir);
  const [layer] = await readdir(join(dataDir, "layers"));
  const [map] = await readdir(join(dataDir, "maps"));
  const [volume] = await readdir(join(dataDir, "volumes"));
  const [blob] = (await readdir(join(dataDir, "blobs"))).filter((name) => /^[0-9a-f]{32}$/.test(name));
  const copy = (from: string, to: string): Promise<void> => cp(join(dataDir, from), join(dataDir, to));
  await copy(`layers/${layer}`, `layers/${id}`);
  await copy(`maps/${map}`, `maps/${id}`);
  const placed = {
    [`layers/${id}`]: / is a layer of .+ that no map and no log refers to/,
    "layers/notes": / is nothing that belongs into layers\//,
    [`layers/${"f".repeat(32)}`]: / is a layer without a header that no map/,
    [`maps/${id}`]: / is a frozen map of no snapshot, and no volume begins with it/,
    [`maps/${"e".repeat(32)}`]: / is a frozen map of no snapshot/, // one that can't even be read
    "maps/copy of a map": / is nothing that belongs into maps\//,
    "volumes/notes": / is no volume/,
    [`volumes/${volume}/notes`]: / is no file of a volume/,
    "blobs/notes": / is nothing that belongs into blobs\//,
    [`blobs/${blob}/notes`]: / is no file of a blob/,
    [`blobs/${blob}/data.tmp`]: / is no file of a blob/,
    [`blobs/${blob}/pins/notes`]: / is no pin of a volume/,
    "traces/notes": / is nothing that belongs into traces\//,
  };
  await mkdir(join(dataDir, "traces"), { recursive: true });
  for (const path of Object.keys(placed)) {
    if (!existsSync(join(dataDir, path))) await writeFile(join(dataDir, path), `was ${path}`);
  }
  await writeFile(join(dataDir, "orphans", "layers-notes"), "of an earlier repair");
  const found = await check(dataDir);
  assert.equal(found.length, Object.keys(placed).length, found.join("\n"));
  for (const [path, what] of Object.entries(placed)) {
    const message = found.find((each) => each.startsWith(`note: ${path} `)) ?? "";
    assert.match(message, what, path);
    assert.match(message, /: `repair` moves it to orphans\/$/);
  }
  assert.equal((await repair(dataDir)).length, found.length);
  assert.deepEqual(await check(dataDir), []);
  const orphans = Object.keys(placed).map((path) => `orphans/${path.replaceAll("/", "-")}`);
  const expected = [...before, ...orphans, "orphans/layers-notes.2"].sort();
  assert.deepEqual(await files(dataDir), expected);
  assert.equal(await readFile(join(dataDir, "orphans/layers-notes"), "utf8"), "of an earlier repair");
  assert.equal(await readFile(join(dataDir, "orphans/layers-notes.2"), "utf8"), "was layers/notes");
  const ullage = await Ullage.open({ dataDir });
  assert.ok((await ullage.listVolumes()).every(({ state }) => state === "ok"));
  for (const name of ["web", "clone", "heir"]) await ullage.getDevice(name);
  await ullage.getSnapshotDevice("web", "s");
  await ullage.close();
});

void test("what a blob's directory has beside the blob is moved away before the blob goes, a directory too; its own remains are removed", async (t) => {
  const dataDir = await prepare(t);
  const blobs = join(dataDir, "blobs");
  const [blob] = (await readdir(blobs)).filter((name) => /^[0-9a-f]{32}$/.test(name));
  // Half made, as far as the files tell; somebody has put more there.
  await mkdir(join(blobs, id, "folder"), { recursive: true });
  await writeFile(join(blobs, id, "folder", "letter"), "precious");
  await writeFile(join(blobs, id, "data"), "");
  const long = "ä".repeat(120);
  for (const name of ["map.tmp", "meta.json.tmp", "verified.tmp", long]) await writeFile(join(blobs, blob, name), name);
  const found = await check(dataDir);
  assert.equal(found.length, 6, found.join("\n"));
  assert.equal(found.filter((line) => line.endsWith("was left behind by a crash")).length, 3);
  assert.equal((await repair(dataDir)).length, found.length);
  assert.deepEqual(await check(dataDir), []);
  assert.equal(await readFile(join(dataDir, "orphans", `blobs-${id}-folder`, "letter"), "utf8"), "precious");
  assert.equal(existsSync(join(blobs, id)), false);
  assert.deepEqual((await readdir(join(blobs, blob))).toSorted(), ["data", "meta.json", "pins"]);
  const [moved, ...others] = (await readdir(join(dataDir, "orphans"))).filter((name) =>
    name.startsWith(`blobs-${blob}`),
  );
  assert.deepEqual(others, []);
  assert.equal(await readFile(join(dataDir, "orphans", moved), "utf8"), long);
});

void test("a blob that goes takes along what somebody has put beside it, and a removal that was interrupted there is ended by a start", async (t) => {
  const dataDir = await prepare(t);
  const blobs = join(dataDir, "blobs");
  const [blob] = (await readdir(blobs)).filter((name) => /^[0-9a-f]{32}$/.test(name));
  for (const name of [blob, `${id}.removed`]) {
    await mkdir(join(blobs, name, "folder", "within"), { recursive: true });
    await writeFile(join(blobs, name, "folder", "within", "letter"), "?");
  }
  const ullage = await Ullage.open({ dataDir });
  assert.equal(existsSync(join(blobs, `${id}.removed`)), false);
  await ullage.removeVolume("clone");
  await ullage.removeVolume("web", { snapshots: true });
  await ullage.close();
  assert.equal(existsSync(join(blobs, blob)), false);
});

void test("a kill while something is moved to orphans/ leaves it at one of both places, and the next repair moves the rest", async (t) => {
  const template = await prepare(t);
  const directory = await temporaryDirectory(t);
  const [blob] = (await readdir(join(template, "blobs"))).filter((name) => /^[0-9a-f]{32}$/.test(name));
  const paths = [`blobs/${blob}/notes`, `blobs/${blob}/pins/notes`];
  for (const path of paths) await writeFile(join(template, path), path);
  for (let step = 1, finished = false; !finished; step++) {
    const dataDir = join(directory, `${step}`);
    await cp(template, dataDir, { recursive: true });
    const world = new CrashingWorld(step);
    const moving = moveToOrphans({ fs: world.fs, dataDir }, paths);
    finished = await Promise.race([moving.then(() => true), world.crashed.then(() => false)]);
    await repair(dataDir);
    assert.deepEqual(await check(dataDir), []);
    for (const path of paths) {
      const orphan = join(dataDir, "orphans", path.replaceAll("/", "-"));
      assert.equal(await readFile(orphan, "utf8"), path, world.died ?? "no crash");
      assert.equal(existsSync(join(dataDir, path)), false);
    }
  }
});

void test("while something is damaged, nobody says what belongs to nothing", async (t) => {
  const dataDir = await prepare(t);
  await writeFile(join(dataDir, "layers", id), "?");
  await writeFile(join(dataDir, "maps", id), "?");
  const about = (lines: string[]): string[] => lines.filter((line) => line.includes(id));
  const whole = await temporaryDirectory(t);
  await cp(dataDir, join(whole, "data"), { recursive: true });
  for (const name of await readdir(join(dataDir, "volumes"))) {
    const dir = join(dataDir, "volumes", name);
    for (const file of await readdir(dir)) if (file.startsWith("map.")) await writeFile(join(dir, file), "damaged");
  }
  assert.ok((await check(dataDir)).length > 0);
  assert.deepEqual(about(await check(dataDir)), []);
  const lost = join(whole, "data");
  for (const suffix of ["", "-wal", "-shm"]) await rm(join(lost, `catalog.db${suffix}`), { force: true });
  assert.deepEqual(about(await check(lost)), []);
  const data = await OfflineData.open(lost, "repair");
  const { steps } = await planRepair(data);
  for (const step of steps) await step.run();
  await data.close();
  assert.deepEqual(about(steps.map(({ action }) => action)), []);
  assert.equal(about(await check(lost)).length, 2, "when all is well again they are found");
});

void test(
  "what a kill leaves is reported as what it is: cleared away by the next start, or there until a repair",
  patience,
  async (t) => {
    const work: Record<string, (ullage: Ullage) => Promise<unknown>> = {
      "taking a snapshot": (ullage) => ullage.createSnapshot("web", "u"),
      "removing one": (ullage) => ullage.removeSnapshot("web", "s"),
      "making a volume": (ullage) => ullage.createVolume({ name: "new", size: 1 << 20 }),
      "cloning one": (ullage) => ullage.createVolume({ name: "new", from: { snapshot: "web@s" } }),
      "removing a volume": (ullage) => ullage.removeVolume("web", { snapshots: true }),
    };
    const template = await prepare(t);
    const directory = await temporaryDirectory(t);
    const seen = new Set<string>();
    for (const [what, run] of Object.entries(work)) {
      for (let step = 1, finished = false; !finished; step++) {
        const dataDir = join(directory, `${what.replaceAll(" ", "-")}-${step}`);
        await cp(template, dataDir, { recursive: true });
        const world = new CrashingWorld(Infinity);
        const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
        world.crashAt = world.steps + step;
        finished = await Promise.race([run(ullage).then(() => true), world.crashed.then(() => false)]);
        world.crashAt = Infinity;
        if (finished) await ullage.close();
        else await world.bury();
        const data = await OfflineData.open(dataDir, "check");
        const strays = await findStrays(data, true);
        await data.close();
        const next = await Ullage.open({ dataDir });
        for (const { name } of await next.listVolumes()) await next.getDevice(name);
        await next.close();
        for (const { kind, path, message } of strays) {
          const about = `${what}, step ${step} (${world.died}): ${message}`;
          assert.equal(existsSync(join(dataDir, path)), kind === "orphan", about);
          seen.add(kind);
        }
        const later = await check(dataDir);
        const wrong = later.filter((line) => line.startsWith("damage") || line.includes("the next start"));
        assert.deepEqual(wrong, [], `${what}, step ${step} (${world.died})`);
        const layers = later.filter((line) => line.includes("layers/"));
        assert.deepEqual(layers, [], `${what}, step ${step} (${world.died})`);
        await rm(dataDir, { recursive: true });
      }
    }
    assert.ok(seen.has("remains"));
  },
);

void test("of the layers that a volume which was killed may have left only empty ones go: what has data is for people", async (t) => {
  const dataDir = await prepare(t);
  const world = new CrashingWorld(Infinity);
  const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
  await put(ullage, "web", 4);
  world.crashAt = world.steps + 1;
  await Promise.race([put(ullage, "web", 5), world.crashed]);
  world.crashAt = Infinity;
  await world.bury();
  const [empty, written] = [id, "f".repeat(32)];
  for (const name of [empty, written]) {
    const layer = await open(join(dataDir, "layers", name), "wx");
    await layer.write(await headerOf(dataDir, "web"), 0, block, 0);
    if (name === written) await layer.write(Buffer.alloc(block, 1), 0, block, block);
    await layer.truncate(1 << 20);
    await layer.close();
  }
  const next = await Ullage.open({ dataDir });
  await next.getDevice("web");
  await next.close();
  assert.equal(existsSync(join(dataDir, "layers", empty)), false);
  assert.equal(existsSync(join(dataDir, "layers", written)), true);
  const told = (await check(dataDir)).filter((line) => line.includes("layers/"));
  assert.equal(told.length, 1);
  assert.ok(told[0].startsWith(`note: layers/${written} is a layer of volume 'web' that no map and no log refers to`));
  assert.ok(told[0].endsWith("moves it to orphans/"));
});

/** Of a layer that was made for a volume. */
async function headerOf(dataDir: string, volume: string): Promise<Buffer> {
  const data = await OfflineData.open(dataDir, "check");
  try {
    const { id: creator } = data.rows.find(({ name }) => name === volume)!;
    for (const name of await readdir(join(dataDir, "layers"))) {
      if ((await layerCreator(data.env, name)) !== creator) continue;
      return (await readFile(join(dataDir, "layers", name))).subarray(0, block);
    }
  } finally {
    await data.close();
  }
  throw new Error(`there is no layer of ${volume}`);
}
