import assert from "node:assert/strict";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Volume } from "../../src/volume/volume.ts";
import { loadFrozenMap, readFrozenTable } from "../../src/volume/map/frozen-map.ts";
import { SnapshotView } from "../../src/volume/snapshot-view.ts";
import {
  blockBytes,
  chunkBytes,
  createVolume,
  filled,
  newId,
  openVolume,
  read,
  volumeEnvironment,
  write,
  writeAsync,
} from "../support/volume-env.ts";
import { Lives } from "./lives.ts";

const size = 8 * chunkBytes;
const at = (block: number): number => block * blockBytes;

async function take(volume: Volume, name = "s"): Promise<string> {
  const { id } = await volume.snapshot({ id: newId(), name, createdAt: "2026-01-01T00:00:00Z" });
  return id;
}

async function view(lives: { env: Parameters<typeof loadFrozenMap>[0] }, id: string): Promise<SnapshotView> {
  return new SnapshotView(lives.env, await loadFrozenMap(lives.env, id), new Map());
}

void test("a snapshot keeps what was there, writes go on in a new head", async (t) => {
  const lives = await Lives.create(t, size);
  const volume = await lives.open();
  await write(volume, at(1), filled(1));
  await write(volume, at(2), filled(1));
  const id = await take(volume);
  await write(volume, at(2), filled(2));
  await volume.trim(at(1), blockBytes);
  await write(volume, at(3), filled(2));
  assert.deepEqual(await read(volume, at(1), 3 * blockBytes), Buffer.concat([filled(0), filled(2), filled(2)]));
  await volume.writeSnapshot(id);
  const snapshot = await view(lives, id);
  assert.deepEqual(await read(snapshot, at(1), 3 * blockBytes), Buffer.concat([filled(1), filled(1), filled(0)]));
  await snapshot.close();
  await volume.close();
  const again = await lives.open();
  assert.deepEqual(await read(again, at(1), 3 * blockBytes), Buffer.concat([filled(0), filled(2), filled(2)]));
  await again.close();
});

void test("a snapshot of a snapshot's successor shares its layers, and a partial write reads from them", async (t) => {
  const lives = await Lives.create(t, size);
  const volume = await lives.open();
  await write(volume, at(0), filled(1));
  await take(volume, "a");
  await writeAsync(volume, 100, Buffer.alloc(50, 2));
  const expected = Buffer.concat([filled(1)]);
  expected.fill(2, 100, 150);
  assert.deepEqual(await read(volume, 0, blockBytes), expected);
  const second = await take(volume, "b");
  await write(volume, at(0), filled(3));
  await volume.writeSnapshot(second);
  const snapshot = await view(lives, second);
  assert.deepEqual(await read(snapshot, 0, blockBytes), expected);
  await snapshot.close();
  await volume.close();
});

void test("durability rule 3: a snapshot under a killed process is there in the next life, at any step", async (t) => {
  for (let step = 1, finished = false; !finished; step++) {
    const lives = await Lives.create(t, size);
    const volume = await lives.open();
    await write(volume, at(1), filled(1));
    const id = newId();
    const died = lives.killAt(step);
    const taken = volume
      .snapshot({ id, name: "s", createdAt: "2026-01-01T00:00:00Z" })
      .then(() => volume.writeSnapshot(id))
      .then(() => true);
    finished = await Promise.race([taken, died.then(() => false)]);
    lives.faulty.before = () => undefined;
    if (finished) await write(volume, at(1), filled(2));
    const next = await lives.open();
    assert.deepEqual(await read(next, at(1), blockBytes), filled(finished ? 2 : 1), `step ${step}`);
    await write(next, at(1), filled(3));
    await next.flush();
    await next.checkpoint();
    await next.close();
    const last = await lives.open();
    assert.deepEqual(await read(last, at(1), blockBytes), filled(3), `step ${step}`);
    await last.close();
    if (!(await lives.env.fs.exists(`${lives.env.dataDir}/maps/${id}`))) {
      assert.equal(finished, false);
      continue;
    }
    const snapshot = await view(lives, id);
    assert.deepEqual(await read(snapshot, at(1), blockBytes), filled(1), `step ${step}`);
    await snapshot.close();
  }
});

void test("durability rule 10: no checkpoint goes ahead of a frozen map that only the older files can rebuild", async (t) => {
  const lives = await Lives.create(t, size);
  const volume = await lives.open();
  await write(volume, at(1), filled(1));
  lives.faulty.before = ({ name, path }) => {
    if (name === "open" && path.includes("/maps/")) throw Object.assign(new Error("full"), { errno: "ENOSPC" });
    return undefined;
  };
  const id = await take(volume);
  await write(volume, at(1), filled(2));
  await assert.rejects(volume.checkpoint());
  await lives.kill();
  const next = await lives.open();
  await next.writeSnapshot(id);
  const snapshot = await view(lives, id);
  assert.deepEqual(await read(snapshot, at(1), blockBytes), filled(1));
  assert.deepEqual(await read(next, at(1), blockBytes), filled(2));
  await snapshot.close();
  await next.close();
});

void test("durability rule 18: a layer that nothing refers to any more leaves the table with the next checkpoint", async (t) => {
  const lives = await Lives.create(t, size);
  const volume = await lives.open();
  await write(volume, at(1), filled(1));
  await take(volume);
  assert.equal(volume.layerIds().size, 2);
  await write(volume, at(1), filled(2));
  await volume.checkpoint();
  assert.equal(volume.layerIds().size, 1);
  await volume.close();
  const next = await lives.open();
  assert.deepEqual(await read(next, at(1), blockBytes), filled(2));
  await next.close();
});

void test("a volume grows while it is open, and what is new reads as zeros", async (t) => {
  const env = volumeEnvironment(t);
  const id = await createVolume(env, 5120);
  const volume = await openVolume(env, id);
  await writeAsync(volume, 0, Buffer.alloc(5120, 1));
  const frozen = await take(volume);
  await volume.grow(chunkBytes + 512);
  assert.equal(volume.size, chunkBytes + 512);
  await writeAsync(volume, chunkBytes, Buffer.alloc(512, 2));
  const expected = Buffer.concat([Buffer.alloc(5120, 1), Buffer.alloc(chunkBytes - 5120), Buffer.alloc(512, 2)]);
  assert.deepEqual(await read(volume, 0, volume.size), expected);
  await volume.close();
  const next = await openVolume(env, id);
  assert.deepEqual(await read(next, 0, next.size), expected);
  await next.close();
  assert.equal((await readFrozenTable(env, frozen)).size, 5120);
});

void test("a clone begins with a frozen map that its first checkpoint only names", async (t) => {
  const env = volumeEnvironment(t);
  const id = await createVolume(env, size);
  const volume = await openVolume(env, id);
  await write(volume, at(1), filled(1));
  const frozen = await take(volume);
  await write(volume, at(1), filled(2));
  await volume.writeSnapshot(frozen);
  const { table } = await readFrozenTable(env, frozen);
  const cloneId = await createVolume(env, 2 * size, { base: { id: frozen, freeOwner: table.free() } });
  const clone = await openVolume(env, cloneId);
  assert.deepEqual(await read(clone, at(1), blockBytes), filled(1));
  await write(clone, at(1), filled(3));
  await write(clone, size + at(1), filled(4));
  await clone.close();
  const again = await openVolume(env, cloneId);
  assert.deepEqual(await read(again, at(1), blockBytes), filled(3));
  assert.deepEqual(await read(again, size + at(1), blockBytes), filled(4));
  assert.deepEqual(await read(volume, at(1), blockBytes), filled(2));
  await again.close();
  await volume.close();
});

void test("writers under way when a snapshot is taken land before or after it, whole", async (t) => {
  const env = volumeEnvironment(t);
  const id = await createVolume(env, size);
  const volume = await openVolume(env, id);
  const ids: string[] = [];
  const seen: number[] = [];
  for (let round = 1; round <= 20; round++) {
    const writes = [0, 1, 2, 3].map((n) => volume.write(at(n), blockBytes, IoBuffer.from(filled(round)), 0));
    const snapshot = take(volume, `s${round}`);
    await Promise.all(writes);
    ids.push(await snapshot);
    seen.push(round);
  }
  for (const [index, frozen] of ids.entries()) {
    await volume.writeSnapshot(frozen);
    const snapshot = await view({ env }, frozen);
    for (const n of [0, 1, 2, 3]) {
      const [value] = await read(snapshot, at(n), 1);
      assert.ok(value === seen[index] || value === seen[index] - 1);
      assert.deepEqual(await read(snapshot, at(n), blockBytes), filled(value));
    }
    await snapshot.close();
  }
  await volume.close();
});
