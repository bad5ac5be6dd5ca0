import assert from "node:assert/strict";
import { mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { SqliteMetadataStore } from "../../src/catalog/sqlite-metadata-store.ts";
import { checkData } from "../../src/daemon/offline/offline-check.ts";
import { OfflineData } from "../../src/daemon/offline/offline-data.ts";
import { planRepair } from "../../src/daemon/offline/offline-repair.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

/** A data directory with an empty volume `a`, and `b` from an image. */
async function prepare(t: TestContext): Promise<string> {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "image.raw");
  await writeFile(image, Buffer.alloc(100_000, "x"));
  const dataDir = join(directory, "data");
  const ullage = await openUllage(t, { dataDir });
  await ullage.createVolume({ name: "a", size: 1024 * 1024 });
  await ullage.createVolume({ name: "b", from: { source: image }, settings: { hydrate: "off", sync: "always" } });
  await ullage.close();
  return dataDir;
}

async function check(dataDir: string): Promise<string[]> {
  const data = await OfflineData.open(dataDir, "check");
  const problems = await checkData(data);
  await data.close();
  return problems.map(({ severity, message }) => `${severity}: ${message}`);
}

async function repair(dataDir: string): Promise<{ action: string; losses: string[] }[]> {
  const data = await OfflineData.open(dataDir, "repair");
  const { steps } = await planRepair(data);
  for (const step of steps) await step.run();
  await data.close();
  return steps;
}

async function names(dataDir: string): Promise<string[]> {
  const ullage = await Ullage.open({ dataDir });
  const volumes = await ullage.listVolumes();
  await ullage.close();
  assert.ok(volumes.every(({ state }) => state === "ok"));
  return volumes.map(({ name }) => name);
}

void test("durability rule 17: complete volumes without a row stop the start, and nothing is touched", async (t) => {
  const dataDir = await prepare(t);
  await rename(join(dataDir, "catalog.db"), join(dataDir, "catalog.old"));
  const before = await readdir(dataDir, { recursive: true });
  for (let attempt = 0; attempt < 2; attempt++) {
    await assert.rejects(Ullage.open({ dataDir }), {
      code: "catalog-lost",
      message: /knows nothing of 2 volumes .*: a, b$/,
      hint: /ullage repair/,
    });
  }
  const after = (await readdir(dataDir, { recursive: true })).filter((name) => !name.startsWith("catalog.db"));
  assert.deepEqual(after.sort(), before.sort());
});

void test("a lost catalog is found by check, and rebuilt by repair from what the volumes say", async (t) => {
  const dataDir = await prepare(t);
  const original = await openUllage(t, { dataDir });
  const before = await original.listVolumes();
  await original.close();
  await rm(join(dataDir, "catalog.db"));
  const found = await check(dataDir);
  assert.equal(found.length, 3, found.join("\n"));
  assert.match(found[0], /damage: .*catalog\.db is missing/);
  assert.match(found[1], /damage: volumes\/[0-9a-f]{32} is a volume that the catalog does not know/);
  const steps = await repair(dataDir);
  assert.equal(steps.length, 3);
  const repaired = await openUllage(t, { dataDir });
  assert.deepEqual(await repaired.listVolumes(), before);
  await repaired.close();
  assert.deepEqual(await check(dataDir), []);
});

void test("the keys of requests that took snapshots outlive the catalog; what is lost is said", async (t) => {
  const dataDir = await prepare(t);
  const original = await openUllage(t, { dataDir });
  const key = { key: "k", digest: "d" };
  const { id } = await original.createSnapshot("a", "s", key);
  await original.close();
  for (const suffix of ["", "-wal", "-shm"]) await rm(join(dataDir, `catalog.db${suffix}`), { force: true });
  const steps = await repair(dataDir);
  assert.match(steps[0].losses.join(), /Idempotency-Keys that volumes were made with/);
  const repaired = await openUllage(t, { dataDir });
  assert.equal((await repaired.createSnapshot("a", "s", key)).id, id);
  await assert.rejects(repaired.createSnapshot("a", "t", { ...key, digest: "other" }), { code: "request-key-reused" });
  await repaired.removeSnapshot("a", "s");
  assert.notEqual((await repaired.createSnapshot("a", "s", key)).id, id, "a key goes with what it made");
});

void test("a damaged catalog is put aside, not deleted", async (t) => {
  const dataDir = await prepare(t);
  await writeFile(join(dataDir, "catalog.db"), Buffer.alloc(8192, "!"));
  await assert.rejects(Ullage.open({ dataDir }), { code: "catalog-damaged", hint: /repair/ });
  await repair(dataDir);
  assert.deepEqual(await names(dataDir), ["a", "b"]);
  assert.ok((await readdir(dataDir)).includes("catalog.db.damaged"));
});

void test("durability rule 17: an older catalog that takes a volume in use for half made removes nothing", async (t) => {
  const dataDir = await prepare(t);
  const ullage = await openUllage(t, { dataDir });
  const before = await ullage.listVolumes();
  await ullage.close();
  const store = await SqliteMetadataStore.open(join(dataDir, "catalog.db"));
  await store.updateVolume(before[1].id, { state: "creating", blobId: null });
  await store.close();
  await assert.rejects(Ullage.open({ dataDir }), { code: "catalog-lost", message: /'b' .* has been in use/ });
  assert.match((await check(dataDir)).join(), /damage: volume 'b' is in use/);
  await repair(dataDir);
  const repaired = await openUllage(t, { dataDir });
  assert.deepEqual(await repaired.listVolumes(), before);
});

void test("durability rule 17: what nothing explains is moved to orphans, reported and kept", async (t) => {
  const dataDir = await prepare(t);
  const id = "0123456789abcdef".repeat(2);
  await mkdir(join(dataDir, "volumes", id));
  await writeFile(join(dataDir, "volumes", id, "intent.1"), "half a log");
  const ullage = await openUllage(t, { dataDir });
  const warnings = ullage.health().warnings;
  await ullage.close();
  assert.deepEqual(
    warnings.map(({ code }) => code),
    ["orphan"],
  );
  assert.match(warnings[0].message, new RegExp(`volumes/${id} .* is now orphans/volumes-${id}`));
  assert.deepEqual(await readdir(join(dataDir, "orphans", `volumes-${id}`)), ["intent.1"]);
  assert.deepEqual(await names(dataDir), ["a", "b"]);
});

void test("a volume whose files are gone does not keep the others from being served, and repair forgets it", async (t) => {
  const dataDir = await prepare(t);
  const ullage = await openUllage(t, { dataDir });
  const { id } = await ullage.showVolume("a");
  await ullage.close();
  await rm(join(dataDir, "volumes", id), { recursive: true });
  const again = await openUllage(t, { dataDir });
  const states = (await again.listVolumes()).map(({ name, state }) => [name, state]);
  assert.deepEqual(states, [
    ["a", "failed"],
    ["b", "ok"],
  ]);
  await again.close();
  await repair(dataDir);
  assert.deepEqual(await names(dataDir), ["b"]);
});

void test("check and repair stay out while a daemon has the directory", async (t) => {
  const dataDir = await prepare(t);
  await openUllage(t, { dataDir });
  await assert.rejects(OfflineData.open(dataDir, "check"), { code: "data-in-use" });
});
