import assert from "node:assert/strict";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { CorruptionError } from "../../src/base/errors.ts";
import { writeFrozenMap } from "../../src/volume/map/frozen-map.ts";
import { type Checkpoint, loadMapFile, writeMapFile } from "../../src/volume/map/map-file.ts";
import { chunkBlocks, OwnerMap } from "../../src/volume/map/owner-map.ts";
import { OwnerTable } from "../../src/volume/map/owner-table.ts";
import { mapPath } from "../../src/volume/paths.ts";
import { newId, volumeEnvironment } from "../support/volume-env.ts";
import { failing, FaultyFileSystem, ofMap } from "./faulty-file-system.ts";

const checkpoint: Checkpoint = {
  volumeId: newId(),
  number: 7,
  cut: 2 ** 40 + 3,
  size: 3 * chunkBlocks * 4096 - 512,
  lineage: newId(),
  head: 1,
  clean: false,
  lostUnflushed: true,
  remoteWriters: true,
};

function exampleMap(): { map: OwnerMap; table: OwnerTable } {
  const table = new OwnerTable();
  table.put(1, { kind: "layer", id: newId() });
  table.put(2, { kind: "blob", id: newId() });
  const map = new OwnerMap(3 * chunkBlocks);
  map.set(0, 2 * chunkBlocks, 2);
  map.set(5, 3, 1);
  map.set(2 * chunkBlocks + 1, 1, 1);
  return { map, table };
}

void test("a checkpoint comes back with everything that it says", async (t) => {
  const env = volumeEnvironment(t);
  const { map, table } = exampleMap();
  const { bytes, unused } = await writeMapFile(env, env.dataDir, checkpoint, map, table);
  assert.deepEqual(unused, []);
  const loaded = await loadMapFile(env, mapPath(env.dataDir, 7));
  assert.deepEqual(loaded.checkpoint, checkpoint);
  assert.equal(loaded.fileBytes, bytes);
  assert.deepEqual([...loaded.table.entries()], [...table.entries()]);
  for (let block = 0; block < map.blocks; block++) assert.equal(loaded.map.ownerOf(block), map.ownerOf(block));
  assert.deepEqual(readdirSync(env.dataDir), ["map.7"]);
});

void test("a checkpoint leaves out layers that no block has, but not its head", async (t) => {
  const env = volumeEnvironment(t);
  const { map, table } = exampleMap();
  table.put(3, { kind: "layer", id: newId() });
  table.put(4, { kind: "layer", id: newId() });
  const { unused } = await writeMapFile(env, env.dataDir, { ...checkpoint, head: 4 }, map, table);
  assert.deepEqual(unused, [3]);
  const loaded = await loadMapFile(env, mapPath(env.dataDir, 7));
  assert.deepEqual(
    [...loaded.table.entries()],
    [...table.entries()].filter(([id]) => id !== 3),
  );
});

void test("a checkpoint with a base begins with that frozen map, and adds its own head and its larger size", async (t) => {
  const env = volumeEnvironment(t);
  const { map, table } = exampleMap();
  const base = newId();
  const size = checkpoint.size - 2 * 4096;
  const frozen = new OwnerMap(Math.ceil(size / 4096));
  frozen.set(0, 2 * chunkBlocks, 2);
  frozen.set(frozen.blocks - 1, 1, 1);
  await writeFrozenMap(env, { id: base, volumeId: newId(), size, map: frozen, table });
  const write = (changes: Partial<Checkpoint>, owner: number): Promise<unknown> => {
    const own = new OwnerTable();
    own.put(owner, { kind: "layer", id: newId() });
    return writeMapFile(env, env.dataDir, { ...checkpoint, head: 3, base, ...changes }, undefined, own);
  };
  const load = (): ReturnType<typeof loadMapFile> => loadMapFile(env, mapPath(env.dataDir, 7));

  await write({}, 3);
  const loaded = await load();
  assert.deepEqual(loaded.checkpoint, { ...checkpoint, head: 3, base });
  assert.deepEqual([...loaded.table.entries()].slice(0, 2), [...table.entries()]);
  assert.equal(loaded.table.get(3)?.kind, "layer");
  assert.equal(loaded.map.blocks, map.blocks);
  for (let block = 0; block < map.blocks; block++) {
    assert.equal(loaded.map.ownerOf(block), block < frozen.blocks ? frozen.ownerOf(block) : 0, `block ${block}`);
  }

  await write({ size: size - 512 }, 3);
  await assert.rejects(load(), /fewer than the frozen map/);
  await write({}, 2);
  await assert.rejects(load(), /impossible owner id 2/);
  for (const head of [2, 4]) {
    await write({ head }, 3);
    await assert.rejects(load(), /names no head layer/);
  }
  await write({ base: newId() }, 3);
  await assert.rejects(load(), { errno: "ENOENT" });
});

void test("every byte of a checkpoint that changes, and every length that it is cut to, is refused as damage", async (t) => {
  const env = volumeEnvironment(t);
  const { map, table } = exampleMap();
  await writeMapFile(env, env.dataDir, checkpoint, map, table);
  const path = mapPath(env.dataDir, 7);
  const whole = readFileSync(path);
  const places = [...whole.keys()].filter((at) => at < 100 || at >= 4090 || at % 97 === 0);
  for (const at of places) {
    const damaged = Buffer.from(whole);
    damaged[at] ^= 1 << (at % 8);
    writeFileSync(path, damaged);
    // A version number that was never written yet is a newer program's, not damage.
    const wanted = at >= 8 && at < 12 ? /format-too-new|corrupt/ : /corrupt/;
    await assert.rejects(loadMapFile(env, path), (error: { code: string }) => wanted.test(error.code), `byte ${at}`);
  }
  for (const length of [0, 1, 4095, 4096, 4100, whole.length - 8, whole.length - 1]) {
    writeFileSync(path, whole.subarray(0, length));
    await assert.rejects(loadMapFile(env, path), CorruptionError, `length ${length}`);
  }
});

void test("rule 10: a checkpoint that can't be written leaves no file behind, whichever step fails", async (t) => {
  for (const step of ["write", "datasync"] as const) {
    const faulty = new FaultyFileSystem();
    const env = volumeEnvironment(t, { fs: faulty.fs });
    const { map, table } = exampleMap();
    faulty.before = failing("ENOSPC", (call) => call.name === step && ofMap(call));
    await assert.rejects(writeMapFile(env, env.dataDir, checkpoint, map, table), { errno: "ENOSPC" });
    assert.deepEqual(readdirSync(env.dataDir), []);
  }
});

void test("rule 10: the file is synced before it gets its name, and the directory after", async (t) => {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { fs: faulty.fs });
  const { map, table } = exampleMap();
  const calls: string[] = [];
  faulty.after = (call) => {
    if (call.name !== "write" || calls.at(-1) !== "write") calls.push(call.name);
  };
  await writeMapFile(env, env.dataDir, checkpoint, map, table);
  assert.deepEqual(
    calls.filter((name) => ["write", "datasync", "rename", "syncDirectory"].includes(name)),
    ["write", "datasync", "rename", "syncDirectory"],
  );
  assert.ok(calls.lastIndexOf("read") > calls.indexOf("syncDirectory"), "it is read back");
});

void test("rule 10: a checkpoint that does not read back as it was written is reported", async (t) => {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { fs: faulty.fs });
  const { map, table } = exampleMap();
  faulty.after = (call) => {
    if (call.name !== "rename") return;
    const path = join(env.dataDir, "map.7");
    const bytes = readFileSync(path);
    bytes[bytes.length - 3] ^= 1;
    writeFileSync(path, bytes);
  };
  await assert.rejects(writeMapFile(env, env.dataDir, checkpoint, map, table), CorruptionError);
});
