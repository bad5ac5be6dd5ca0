import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test, type TestContext } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import {
  defaultSettings,
  type ExportRecord,
  type SnapshotRecord,
  type VolumeRecord,
} from "../../src/catalog/metadata-store.ts";
import { schemaVersion } from "../../src/catalog/catalog-database.ts";
import { SqliteMetadataStore } from "../../src/catalog/sqlite-metadata-store.ts";
import { fillDisk, freeDisk, mountTmpfs } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { oldVersions } from "./old-versions.ts";

async function temporaryPath(t: TestContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "ullage-catalog-"));
  t.after(() => rm(directory, { recursive: true }));
  return join(directory, "catalog.db");
}

function volume(name: string, id: number, more: Partial<VolumeRecord> = {}): VolumeRecord {
  return {
    id: id.toString(16).padStart(32, "0"),
    name,
    state: "ready",
    size: 2 ** 41,
    source: "/images/debian.raw",
    format: "raw",
    blobId: null,
    settings: { ...defaultSettings },
    hydration: { wanted: true, paused: false, rate: null, priority: 0 },
    createdAt: "2026-01-02T03:04:05.678Z",
    requestKey: null,
    requestDigest: null,
    origin: null,
    standing: null,
    ...more,
  };
}

void test("what was stored is there after a reopening, in every field", async (t) => {
  const path = await temporaryPath(t);
  const records = [
    volume("a", 1),
    volume("b", 2, {
      state: "creating",
      source: null,
      format: null,
      blobId: "f".repeat(32),
      settings: { hydrate: "off", sync: "always", remoteAfterPowerLoss: "serve", cache: "none" },
      hydration: { wanted: false, paused: true, rate: 5, priority: -3 },
      requestKey: "k",
      requestDigest: "d",
      origin: { volumeId: "a".repeat(32), volume: "was", snapshotId: "b".repeat(32), snapshot: "then" },
    }),
  ];
  const before = await SqliteMetadataStore.open(path);
  for (const record of records) await before.insertVolume(record);
  await before.close();
  const after = await SqliteMetadataStore.open(path);
  t.after(() => after.close());
  assert.deepEqual(await after.listVolumes("", 10), records);
});

void test("a name belongs to one volume until that is being deleted", async (t) => {
  const store = await SqliteMetadataStore.open(await temporaryPath(t));
  t.after(() => store.close());
  await store.insertVolume(volume("a", 1));
  await assert.rejects(store.insertVolume(volume("a", 2)), { code: "name-taken" });
  await store.insertVolume(volume("b", 3));
  await assert.rejects(store.updateVolume(volume("b", 3).id, { name: "a" }), { code: "name-taken" });
  await store.updateVolume(volume("a", 1).id, { state: "deleting" });
  await store.insertVolume(volume("a", 2));
  assert.equal(store.readOnlyReason, undefined);
});

void test("every change may be repeated", async (t) => {
  const store = await SqliteMetadataStore.open(await temporaryPath(t));
  t.after(() => store.close());
  const record = volume("a", 1);
  await store.insertVolume(record);
  await store.insertVolume(record);
  assert.equal(await store.updateVolume(record.id, { size: 512, state: "ready" }), true);
  assert.equal(await store.updateVolume(record.id, { size: 512, state: "ready" }), true);
  assert.equal(await store.updateVolume(record.id, { blobId: null, hydration: record.hydration }), true);
  assert.deepEqual(await store.listVolumes("", 10), [{ ...record, size: 512 }]);
  await store.deleteVolume(record.id);
  await store.deleteVolume(record.id);
  assert.equal(await store.updateVolume(record.id, { size: 1024 }), false);
  assert.deepEqual(await store.listVolumes("", 10), []);
});

void test("pages go through all volumes in the order of their ids", async (t) => {
  const store = await SqliteMetadataStore.open(await temporaryPath(t));
  t.after(() => store.close());
  for (const id of [5, 3, 1, 4, 2]) await store.insertVolume(volume(`v${id}`, id));
  const first = await store.listVolumes("", 3);
  const second = await store.listVolumes(first[2].id, 3);
  assert.deepEqual(
    [...first, ...second].map(({ name }) => name),
    ["v1", "v2", "v3", "v4", "v5"],
  );
});

void test("exports are kept by id, may be stored and removed again, and have names of their own", async (t) => {
  const path = await temporaryPath(t);
  const added = (name: string, id: number, more: Partial<ExportRecord> = {}): ExportRecord => ({
    id: id.toString(16).padStart(32, "0"),
    name,
    volumeId: "a".repeat(32),
    snapshotId: null,
    options: { readOnly: true, description: "for the backup" },
    createdAt: "2026-01-02T03:04:05.678Z",
    requestKey: null,
    requestDigest: null,
    ...more,
  });
  const rows = [added("x", 1), added("y", 2, { snapshotId: "b".repeat(32), requestKey: "k", requestDigest: "d" })];
  const before = await SqliteMetadataStore.open(path);
  for (const row of [...rows, rows[0]]) await before.insertExport(row);
  await assert.rejects(before.insertExport(added("x", 3)), { code: "name-taken" });
  await before.close();
  const after = await SqliteMetadataStore.open(path);
  t.after(() => after.close());
  assert.deepEqual(await after.listExports("", 10), rows);
  assert.deepEqual(await after.listExports(rows[0].id, 10), [rows[1]]);
  for (const row of [...rows, rows[0]]) await after.deleteExport(row.id);
  assert.deepEqual(await after.listExports("", 10), []);
  assert.equal(after.readOnlyReason, undefined);
});

const snapshot: SnapshotRecord = {
  id: "5".repeat(32),
  volumeId: "1".repeat(32),
  name: "tuesday",
  state: "ready",
  size: 4096,
  createdAt: "2026-01-05T03:04:05.678Z",
  requestKey: "snapshot key",
  requestDigest: "digest",
};

void test("a snapshot is kept with the request that made it, and gives both up with its name", async (t) => {
  const path = await temporaryPath(t);
  const before = await SqliteMetadataStore.open(path);
  for (const row of [snapshot, snapshot]) await before.insertSnapshot(row);
  const other = { ...snapshot, id: "6".repeat(32), name: "other" };
  await assert.rejects(before.insertSnapshot(other), { code: "name-taken" });
  await before.close();
  const after = await SqliteMetadataStore.open(path);
  t.after(() => after.close());
  assert.deepEqual(await after.listSnapshots("", 10), [snapshot]);
  await after.updateSnapshot(snapshot.id, { name: null });
  await after.insertSnapshot(other);
  const nameless = { ...snapshot, name: null, requestKey: null, requestDigest: null };
  assert.deepEqual(await after.listSnapshots("", 10), [nameless, other]);
});

void test("a catalog of any older version is upgraded with all that it has", async (t) => {
  assert.equal(oldVersions.length, schemaVersion - 1, "each older version is tried");
  for (const [index, sql] of oldVersions.entries()) {
    const path = await temporaryPath(t);
    const old = new DatabaseSync(path);
    old.exec(sql);
    old.close();
    for (const opening of ["first", "second"]) {
      const store = await SqliteMetadataStore.open(path);
      const what = `version ${index + 1}, ${opening} opening`;
      const [web, ...more] = await store.listVolumes("", 10);
      assert.deepEqual([web.name, web.requestKey, web.standing, more.length], ["web", "volume key", null, 0], what);
      const snapshots = await store.listSnapshots("", 10);
      const monday = snapshots.filter(({ name }) => name === "monday");
      assert.deepEqual(
        monday.map(({ volumeId, requestKey, requestDigest }) => [volumeId, requestKey, requestDigest]),
        index + 1 >= 2 ? [[web.id, null, null]] : [],
        what,
      );
      const names = (await store.listExports("", 10)).map(({ name, requestKey }) => `${name}: ${requestKey}`);
      assert.deepEqual(names, index + 1 >= 3 ? ["boot: export key"] : [], what);
      await store.insertSnapshot(snapshot); // as any row of today
      assert.deepEqual((await store.listSnapshots("4", 10))[0], snapshot, what);
      await store.close();
    }
    const upgraded = new DatabaseSync(path);
    const fresh = await temporaryPath(t);
    await (await SqliteMetadataStore.open(fresh)).close();
    const tables = (database: DatabaseSync): unknown =>
      database
        .prepare("SELECT m.name, c.name AS column FROM sqlite_schema m, pragma_table_info(m.name) c ORDER BY 1, c.cid")
        .all();
    const made = new DatabaseSync(fresh);
    assert.deepEqual(tables(upgraded), tables(made), `version ${index + 1}`);
    for (const database of [upgraded, made]) database.close();
  }
});

void test("a newer catalog is refused, naming both versions", async (t) => {
  const path = await temporaryPath(t);
  await (await SqliteMetadataStore.open(path)).close();
  const database = new DatabaseSync(path);
  database.exec("PRAGMA user_version = 7");
  database.close();
  await assert.rejects(SqliteMetadataStore.open(path), { code: "catalog-version", message: /version 7.*up to 5/ });
});

void test("on a full disk a change is refused and has not happened; with space again it goes on", async (t) => {
  if (!requireTool(t, "root", "mount")) return;
  const dir = mountTmpfs(t, 2 * 1024 * 1024);
  const path = join(dir, "catalog.db");
  const store = await SqliteMetadataStore.open(path);
  fillDisk(dir);
  const made: string[] = [];
  let refused = 0;
  for (let n = 1; refused < 3; n++) {
    const { id } = volume(`v${n}`, n);
    try {
      await store.insertVolume(volume(`v${n}`, n));
      made.push(id);
    } catch (error) {
      assert.ok(error instanceof IoError);
      assert.equal(error.errno, "ENOSPC");
      assert.match(error.hint!, /free some space/);
      refused++;
    }
  }
  assert.equal(store.readOnlyReason, undefined);
  const ids = async (from: SqliteMetadataStore): Promise<string[]> =>
    (await from.listVolumes("", 1000)).map(({ id }) => id);
  assert.deepEqual(await ids(store), made);
  freeDisk(dir);
  await store.insertVolume(volume("last", 900));
  made.push(volume("last", 900).id);
  assert.deepEqual(await ids(store), made);
  await store.close();
  const again = await SqliteMetadataStore.open(path);
  assert.deepEqual(await ids(again), made);
  await again.close();
});

void test("another program's database and a file that is none are left alone", async (t) => {
  const path = await temporaryPath(t);
  const database = new DatabaseSync(path);
  database.exec("CREATE TABLE theirs (x)");
  database.close();
  await assert.rejects(SqliteMetadataStore.open(path), { code: "catalog-foreign" });
  const garbage = `${path}.2`;
  await writeFile(garbage, Buffer.alloc(8192, "x"));
  await assert.rejects(SqliteMetadataStore.open(garbage), { code: "catalog-damaged", hint: /repair/ });
});

void test("durability rule 17: once a change has failed, nothing is changed any more, but reading goes on", async (t) => {
  const path = await temporaryPath(t);
  const store = await SqliteMetadataStore.open(path);
  t.after(() => store.close());
  await store.insertVolume(volume("a", 1));
  // Another writer that never ends stands for a disk that fails: SQLite gives up after its time-out.
  const other = new DatabaseSync(path);
  other.exec("BEGIN IMMEDIATE");
  await assert.rejects(store.insertVolume(volume("b", 2)), { code: "catalog-read-only" });
  other.exec("ROLLBACK");
  other.close();
  assert.match(store.readOnlyReason ?? "", /locked/);
  await assert.rejects(store.deleteVolume(volume("a", 1).id), { code: "catalog-read-only", hint: /restart/ });
  assert.deepEqual(
    (await store.listVolumes("", 10)).map(({ name }) => name),
    ["a"],
  );
});
