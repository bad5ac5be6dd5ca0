import assert from "node:assert/strict";
import { cp, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { SqliteMetadataStore } from "../../src/catalog/sqlite-metadata-store.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import type { BlockDevice } from "../../src/export/block-device.ts";
import { describedSnapshots } from "../../src/volume/snapshot-files.ts";
import { CrashingWorld } from "./crashing-world.ts";
import { demandNothingUseless } from "./layer-inspection.ts";
import { temporaryDirectory } from "./support.ts";

const block = 4096;
/** For the longest of them, a hundred lives and more, on a busy machine. */
const patience = { timeout: 8 * 60_000 };

async function put(ullage: Ullage, name: string, value: number): Promise<void> {
  const device = await ullage.getDevice(name);
  await device.write(0, block, IoBuffer.from(Buffer.alloc(block, value)), 0);
  await device.flush();
}

async function first(device: BlockDevice): Promise<number> {
  const buffer = new IoBuffer(block);
  await device.read(0, block, buffer, 0);
  return buffer.bytes[0];
}

/** `web=2 web@s=1`: every volume and snapshot, and what its first block holds. */
async function contents(ullage: Ullage): Promise<string> {
  const found: string[] = [];
  for (const { name, state, reason } of await ullage.listVolumes()) {
    assert.equal(state, "ok", `${name}: ${reason}`);
    found.push(`${name}=${await first(await ullage.getDevice(name))}`);
  }
  for (const { volume, name } of ullage.listSnapshots()) {
    found.push(`${volume}@${name}=${await first(await ullage.getSnapshotDevice(volume, name))}`);
  }
  for (const { name, volume, snapshot, implicit } of ullage.listExports()) {
    if (!implicit) found.push(`${name}->${snapshot === null ? volume : `${volume}@${snapshot}`}`);
  }
  return found.join(" ");
}

/** Rows of exports, whether they say anything or not. */
async function exportRows(dataDir: string): Promise<string[]> {
  const store = await SqliteMetadataStore.open(join(dataDir, "catalog.db"));
  const rows = await store.listExports("", 100);
  await store.close();
  return rows.map(({ name }) => name);
}

/** The logs of a copy are not believed as far as those of the original: opening and closing begins new ones. */
async function touch(dataDir: string): Promise<void> {
  const ullage = await Ullage.open({ dataDir });
  for (const { name } of await ullage.listVolumes()) await ullage.getDevice(name);
  await ullage.close();
}

/** Dies at step n of `work`, for every n; after each death what is there must be one of `allowed`, and nothing else. */
async function dieEverywhere(
  t: TestContext,
  options: {
    before: (ullage: Ullage) => Promise<void>;
    work: (ullage: Ullage) => Promise<unknown>;
    allowed: string[];
    /** What there must be after each death besides. */
    demand?: (ullage: Ullage, dataDir: string) => Promise<void>;
  },
): Promise<void> {
  const directory = await temporaryDirectory(t);
  const template = join(directory, "template");
  const prepared = await Ullage.open({ dataDir: template });
  await options.before(prepared);
  await prepared.close();
  const sample = join(directory, "sample");
  await cp(template, sample, { recursive: true });
  await touch(sample);
  const counted = new CrashingWorld(Infinity);
  const opened = await Ullage.open({ dataDir: sample, fs: counted.fs, openStore: counted.openStore });
  const opening = counted.steps; // deaths are counted from the end of the opening on
  await opened.close();
  const seen = new Set<string>();
  for (let step = 1, finished = false; !finished; step++) {
    const dataDir = join(directory, `data-${step}`);
    await cp(template, dataDir, { recursive: true });
    await touch(dataDir);
    const world = new CrashingWorld(opening + step);
    const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
    finished = await Promise.race([options.work(ullage).then(() => true), world.crashed.then(() => false)]);
    world.crashAt = Infinity;
    if (finished) await ullage.close();
    else await world.bury();
    const died = `step ${step}: ${world.died ?? "none"}`;
    const next = await Ullage.open({ dataDir });
    const found = await contents(next).catch((error: unknown) => assert.fail(`${died}: ${String(error)}`));
    assert.ok(options.allowed.includes(found), `${died}: ${found}`);
    seen.add(found);
    await options.demand?.(next, dataDir);
    for (const { name } of await next.listVolumes()) await next.removeVolume(name, { snapshots: true });
    await next.close();
    assert.deepEqual(await exportRows(dataDir), [], `${died}: an export of nothing`);
    for (const folder of ["layers", "maps", "volumes", "orphans"]) {
      assert.deepEqual(await readdir(join(dataDir, folder)).catch(() => []), [], `${died}: ${folder}`);
    }
    await rm(dataDir, { recursive: true });
  }
  assert.deepEqual([...seen].sort(), [...options.allowed].sort());
}

async function prepare(ullage: Ullage): Promise<void> {
  await ullage.createVolume({ name: "web", size: 1 << 20 });
  await put(ullage, "web", 1);
  await ullage.createSnapshot("web", "s");
  await put(ullage, "web", 2);
}

void test("durability rules 3 and 17: a kill at any step of taking a snapshot leaves all of it or nothing", async (t) => {
  await dieEverywhere(t, {
    before: prepare,
    work: (ullage) => ullage.createSnapshot("web", "t"),
    allowed: ["web=2 web@s=1", "web=2 web@s=1 web@t=2"],
  });
});

void test("a snapshot that is asked for again with its key after a kill at any step is there once", async (t) => {
  const key = { key: "k", digest: "d" };
  await dieEverywhere(t, {
    before: prepare,
    work: (ullage) => ullage.createSnapshot("web", "t", key),
    allowed: ["web=2 web@s=1", "web=2 web@s=1 web@t=2"],
    demand: async (ullage) => {
      const there = ullage.listSnapshots().find(({ name }) => name === "t");
      const made = await ullage.createSnapshot("web", "t", key);
      assert.equal(made.id, there?.id ?? made.id, "the one that was made before the kill");
      assert.deepEqual(
        ullage.listSnapshots().map(({ name }) => name),
        ["s", "t"],
      );
      await assert.rejects(ullage.createSnapshot("web", "u", { ...key, digest: "other" }), {
        code: "request-key-reused",
      });
    },
  });
});

void test("durability rule 17: a kill at any step of an export leaves nothing that its volume was frozen with", async (t) => {
  await dieEverywhere(t, {
    before: prepare,
    work: async (ullage) => {
      const disk = await ullage.openContent("web", undefined, "qcow2", { address: "test", remote: false });
      await disk.read(0, block, new IoBuffer(block), 0);
      await disk.close();
    },
    allowed: ["web=2 web@s=1"],
    demand: async (ullage, dataDir) => {
      for (const id of await readdir(join(dataDir, "volumes"))) {
        const described = describedSnapshots(await readdir(join(dataDir, "volumes", id)));
        assert.equal(described.length, ullage.listSnapshots().length, "a snapshot that nobody sees");
      }
    },
  });
});

void test("durability rule 17: a kill at any step of removing a snapshot leaves all of it or nothing", async (t) => {
  await dieEverywhere(t, {
    before: prepare,
    work: (ullage) => ullage.removeSnapshot("web", "s"),
    allowed: ["web=2 web@s=1", "web=2"],
  });
});

void test(
  "durability rule 17: a kill at any step of cloning leaves all of the clone or nothing",
  patience,
  async (t) => {
    await dieEverywhere(t, {
      before: prepare,
      work: async (ullage) => {
        await ullage.createVolume({ name: "c1", from: { snapshot: "web@s" } });
        await ullage.createVolume({ name: "c2", from: { volume: "web" } });
      },
      allowed: ["web=2 web@s=1", "c1=1 web=2 web@s=1", "c1=1 c2=2 web=2 web@s=1"],
    });
  },
);

void test(
  "durability rule 17: a kill at any step of a revert leaves the volume before it or after it",
  patience,
  async (t) => {
    await dieEverywhere(t, {
      before: prepare,
      work: (ullage) => ullage.revertVolume("web", "s"),
      allowed: ["web=2 web@s=1", "web=1 web@s=1"],
    });
  },
);

void test("durability rule 17: a kill at any step of removing a cloned volume leaves the clone whole", async (t) => {
  await dieEverywhere(t, {
    before: async (ullage) => {
      await prepare(ullage);
      await ullage.createVolume({ name: "c", from: { volume: "web" } });
    },
    work: (ullage) => ullage.removeVolume("web", { snapshots: true }),
    allowed: ["c=2 web=2 web@s=1", "c=2 web=2", "c=2"],
  });
});

async function prepareExports(ullage: Ullage): Promise<void> {
  await prepare(ullage);
  await ullage.addExport({ name: "x", target: "web" });
  await ullage.addExport({ name: "y", target: "web@s" });
}

void test("durability rule 17: a kill at any step of adding or removing an export leaves all of it or nothing", async (t) => {
  await dieEverywhere(t, {
    before: prepareExports,
    work: async (ullage) => {
      await ullage.addExport({ name: "z", target: "web@s" });
      await ullage.removeExport("x");
    },
    allowed: [
      "web=2 web@s=1 x->web y->web@s",
      "web=2 web@s=1 x->web y->web@s z->web@s",
      "web=2 web@s=1 y->web@s z->web@s",
    ],
  });
});

void test("durability rule 17: a kill at any step of removing a volume leaves no export of nothing", async (t) => {
  await dieEverywhere(t, {
    before: prepareExports,
    work: (ullage) => ullage.removeVolume("web", { snapshots: true }),
    allowed: ["web=2 web@s=1 x->web y->web@s", "web=2 x->web", ""],
  });
});

void test("durability rule 17: nor does one of removing a snapshot that a clone begins with", async (t) => {
  await dieEverywhere(t, {
    before: async (ullage) => {
      await prepareExports(ullage);
      await ullage.createVolume({ name: "c", from: { snapshot: "web@s" } });
    },
    work: (ullage) => ullage.removeSnapshot("web", "s"),
    allowed: ["c=1 web=2 web@s=1 x->web y->web@s", "c=1 web=2 x->web"],
  });
});

void test("durability rule 4: a kill at any step of reclaim costs nothing, and the next one frees the rest", async (t) => {
  const needed = [1, 1, 2, 1];
  await dieEverywhere(t, {
    before: async (ullage) => {
      await ullage.createVolume({ name: "web", size: 1 << 20 });
      const device = await ullage.getDevice("web");
      await device.write(0, 4 * block, IoBuffer.from(Buffer.alloc(4 * block, 1)), 0);
      await ullage.createSnapshot("web", "s");
      await device.write(2 * block, block, IoBuffer.from(Buffer.alloc(block, 2)), 0);
      await ullage.createSnapshot("web", "t");
      await ullage.createVolume({ name: "c", from: { snapshot: "web@t" } });
      await ullage.removeSnapshot("web", "s");
    },
    work: async (ullage) => assert.notEqual((await ullage.reclaim()).reclaimedBytes, 0),
    allowed: ["c=1 web=1 web@t=1"],
    demand: async (ullage, dataDir) => {
      await ullage.reclaim();
      await demandNothingUseless(ullage, dataDir);
      const devices = [
        await ullage.getDevice("web"),
        await ullage.getDevice("c"),
        await ullage.getSnapshotDevice("web", "t"),
      ];
      for (const device of devices) {
        const buffer = new IoBuffer(4 * block);
        await device.read(0, 4 * block, buffer, 0);
        assert.deepEqual(
          needed.map((_, at) => buffer.bytes[at * block]),
          needed,
        );
      }
    },
  });
});
