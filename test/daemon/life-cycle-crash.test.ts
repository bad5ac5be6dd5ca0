import assert from "node:assert/strict";
import { cp, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { SqliteMetadataStore } from "../../src/catalog/sqlite-metadata-store.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import { layerCreator } from "../../src/daemon/volumes/volume-files.ts";
import type { VolumeEnvironment } from "../../src/volume/types.ts";
import { temporaryDirectory } from "./support.ts";
import { CrashingWorld } from "./crashing-world.ts";

const content = Buffer.alloc(300_000, "ullage");

/** Runs `work` on a data directory and dies at step n of it, for every n; after each death all must be in order. */
async function dieEverywhere(
  t: TestContext,
  options: {
    before?: (ullage: Ullage, image: string) => Promise<unknown>;
    work: (ullage: Ullage, image: string) => Promise<unknown>;
    names: string[][];
    /** What else must be in order after the next start. */
    also?: (ullage: Ullage) => Promise<unknown>;
  },
): Promise<void> {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, content);
  const template = join(directory, "template");
  const prepared = await Ullage.open({ dataDir: template });
  await options.before?.(prepared, image);
  await prepared.close();
  const opening = await stepsOfOpening(template);
  for (let step = 1, finished = false; !finished; step++) {
    const dataDir = join(directory, `data-${step}`);
    await cp(template, dataDir, { recursive: true });
    const world = new CrashingWorld(opening + step);
    const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
    finished = await Promise.race([options.work(ullage, image).then(() => true), world.crashed.then(() => false)]);
    world.crashAt = Infinity;
    if (finished) await ullage.close();
    else await world.bury();
    await assertInOrder(dataDir, options.names, `step ${step}: ${world.died ?? "none"}`, options.also);
    await rm(dataDir, { recursive: true });
  }
}

/** Deaths are counted from the end of the opening on. */
async function stepsOfOpening(dataDir: string): Promise<number> {
  const world = new CrashingWorld(Infinity);
  const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
  const { steps } = world;
  await ullage.close();
  return steps;
}

/** The next start leaves nothing half made, and what it lists can be read. */
async function assertInOrder(
  dataDir: string,
  names: string[][],
  died: string,
  also?: (ullage: Ullage) => Promise<unknown>,
): Promise<void> {
  const ullage = await Ullage.open({ dataDir });
  try {
    const volumes = await ullage.listVolumes();
    const found = volumes.map(({ name }) => name);
    assert.ok(
      names.some((allowed) => allowed.join() === found.join()),
      `${died}: ${found.join()}`,
    );
    for (const { name, state, reason, source } of volumes) {
      assert.equal(state, "ok", `${died}: ${name} ${reason}`);
      const device = await ullage.getDevice(name);
      const buffer = new IoBuffer(4096);
      await device.read(0, 4096, buffer, 0);
      const expected = source === null ? Buffer.alloc(4096) : content.subarray(0, 4096);
      assert.deepEqual(buffer.bytes, expected, died);
    }
    assert.deepEqual(ullage.health().warnings, [], died);
    await also?.(ullage);
  } finally {
    await ullage.close();
  }
  const store = await SqliteMetadataStore.open(join(dataDir, "catalog.db"));
  const rows = await store.listVolumes("", 100);
  await store.close();
  assert.ok(
    rows.every(({ state }) => state === "ready"),
    died,
  );
  assert.deepEqual((await readdir(join(dataDir, "volumes"))).sort(), rows.map(({ id }) => id).sort(), died);
  assert.deepEqual(await readdir(join(dataDir, "orphans")), [], died);
  const env = { fs: realFileSystem, dataDir } as VolumeEnvironment;
  for (const layer of await readdir(join(dataDir, "layers"))) {
    const creator = await layerCreator(env, layer);
    assert.ok(
      rows.some(({ id }) => id === creator),
      `${died}: layer ${layer} of ${creator}`,
    );
  }
}

void test("durability rule 17: a kill at any step of creating a volume leaves all of it or nothing", async (t) => {
  await dieEverywhere(t, {
    work: (ullage) => ullage.createVolume({ name: "new", size: 1024 * 1024 }),
    names: [[], ["new"]],
  });
});

void test("durability rule 17: a kill at any step of removing a volume leaves all of it or nothing", async (t) => {
  await dieEverywhere(t, {
    before: async (ullage) => {
      await ullage.createVolume({ name: "old", size: 1024 * 1024 });
      await ullage.createVolume({ name: "other", size: 1024 * 1024 });
    },
    work: (ullage) => ullage.removeVolume("old"),
    names: [["old", "other"], ["other"]],
  });
});

void test("durability rule 17: nor is a volume from an image half made, or half removed", async (t) => {
  await dieEverywhere(t, {
    before: (ullage, image) => ullage.createVolume({ name: "old", from: { source: image } }),
    work: async (ullage, image) => {
      await ullage.createVolume({ name: "new", from: { source: image } });
      await ullage.removeVolume("old");
    },
    names: [["old"], ["new", "old"], ["new"]],
  });
});

void test("durability rule 17: a kill at any step of an import leaves all of the disk or nothing", async (t) => {
  const piece = Buffer.alloc(300_000, 5);
  await dieEverywhere(t, {
    work: (ullage) =>
      ullage.importVolume("new", {
        size: undefined,
        format: "auto",
        async *pieces() {
          for (const offset of [4096, 700_000, 2_000_000]) yield { offset, bytes: piece };
          yield await Promise.resolve({ offset: 3_000_000, bytes: Buffer.alloc(0) });
        },
      }),
    names: [[], ["new"]],
    also: async (ullage) => {
      for (const { name, size } of await ullage.listVolumes()) {
        assert.equal(size, 3_000_320);
        const device = await ullage.getDevice(name);
        const buffer = new IoBuffer(size);
        await device.read(0, size, buffer, 0);
        const expected = Buffer.alloc(size);
        for (const offset of [4096, 700_000, 2_000_000]) piece.copy(expected, offset);
        assert.ok(buffer.bytes.equals(expected));
      }
    },
  });
});

void test("durability rule 17: a kill in the middle of a download leaves nothing of what was fetched", async (t) => {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(4 << 20, 1));
  const dataDir = join(directory, "data");
  const world = new CrashingWorld(Infinity);
  const ullage = await Ullage.open({ dataDir, fs: world.fs, openStore: world.openStore });
  const dieWhenItBegins = (bytes: number): void => {
    if (bytes === 0) world.crashAt = world.steps + 2;
  };
  const made = ullage.createVolume({ name: "new", from: { source: image, download: true } }, undefined, {
    onDownload: dieWhenItBegins,
  });
  await Promise.race([world.crashed, made]);
  world.crashAt = Infinity;
  await world.bury();
  assert.equal((await readdir(join(dataDir, "blobs"))).length, 1);
  const next = await Ullage.open({ dataDir });
  assert.deepEqual(await next.listVolumes(), []);
  await next.close();
  assert.deepEqual(await readdir(join(dataDir, "blobs")), []);
});
