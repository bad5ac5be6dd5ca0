import assert from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { NewDisk } from "../../src/volume/new-disk.ts";
import { descriptionPath, layersDir, logPath, mapPath, volumeDir } from "../../src/volume/paths.ts";
import { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  chunkBytes,
  expectFilled,
  memoryDirectory,
  newId,
  openDescriptors,
  openVolume,
  volumeEnvironment,
} from "../support/volume-env.ts";
import { type Call, FaultyFileSystem, ofHead, ofMap } from "./faulty-file-system.ts";
import { changes } from "./lives.ts";

/** A disk of 1 MiB with a block of ones, two blocks of zeros behind it, and nothing else. */
const content = async (disk: NewDisk): Promise<number> => {
  await disk.write(8 * blockBytes, blockBytes, IoBuffer.from(Buffer.alloc(blockBytes, 1)), 0);
  await disk.write(9 * blockBytes, 2 * blockBytes, IoBuffer.from(Buffer.alloc(2 * blockBytes)), 0);
  return 1 << 20;
};

void test("rules 1 and 17: what a volume begins with is synced, at its full size, before its first checkpoint", async (t) => {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), fs: faulty.fs });
  const calls: string[] = [];
  faulty.after = (call) => {
    if (call.name === "rename" && ofMap(call)) calls.push("checkpoint");
    else if (ofHead(call)) calls.push(call.name);
  };
  const id = newId();
  await Volume.create(env, { id, name: "disk", size: 512, content });
  assert.deepEqual(calls.slice(calls.lastIndexOf("write")), ["write", "truncate", "datasync", "checkpoint"]);
  assert.deepEqual(openDescriptors(env.dataDir), []);
  const volume = await openVolume(env, id);
  assert.equal(volume.size, 1 << 20);
  await expectFilled(volume, 0, 8 * blockBytes, 0);
  await expectFilled(volume, 8 * blockBytes, blockBytes, 1);
  await expectFilled(volume, 9 * blockBytes, (1 << 20) - 9 * blockBytes, 0);
  await volume.close();
});

void test("rule 27: the layer is complete, synced and in synced directories before the checkpoint that names it", async (t) => {
  const faulty = new FaultyFileSystem();
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), fs: faulty.fs });
  const id = newId();
  const calls: Call[] = [];
  faulty.after = (call) => void calls.push(call);
  await Volume.create(env, { id, name: "disk", size: 10 * blockBytes + 512 });
  const at = (name: Call["name"], which: (call: Call) => boolean): number =>
    calls.findIndex((call) => call.name === name && which(call));
  const unnamed = ({ path }: Call): boolean => /\/layers\/[0-9a-f]{32}\.tmp$/.test(path);
  const directory = (path: string) => (call: Call) => call.path === path;
  const named = calls.findIndex((call) => call.name === "rename" && ofMap(call));
  const order = [
    at("truncate", unnamed),
    at("datasync", unnamed),
    at("rename", ofHead),
    at("syncDirectory", directory(layersDir(env.dataDir))),
    named,
  ];
  assert.deepEqual(
    order,
    order.toSorted((one, other) => one - other),
  );
  assert.ok(!order.includes(-1));
  const last = (path: string): number =>
    calls.findLastIndex((call) => call.name === "syncDirectory" && call.path === path);
  for (const path of [volumeDir(env.dataDir, id), join(env.dataDir, "volumes"), env.dataDir]) {
    assert.ok(last(path) > (path === volumeDir(env.dataDir, id) ? named : 0), path);
  }
  const layer = calls.find((call) => call.name === "rename" && ofHead(call))!.path;
  assert.equal(statSync(layer).size, 4096 + 11 * blockBytes, "whole blocks, from the start");
  assert.deepEqual(openDescriptors(env.dataDir), []);
});

void test("a new volume's checkpoint waits for its name until the other files and all directories are durable", async (t) => {
  const id = newId();
  const dir = (root: string): string => volumeDir(root, id);
  const steps: Record<string, (call: Call, root: string) => boolean> = {
    layer: ({ name, path }) => name === "datasync" && path.includes("/layers/"),
    log: ({ name, path }, root) => name === "datasync" && path === logPath(dir(root), 1),
    description: ({ name, path }, root) => name === "datasync" && path === descriptionPath(dir(root)),
    layers: ({ name, path }, root) => name === "syncDirectory" && path === layersDir(root),
    "the volume's directory": ({ name, path }, root) => name === "syncDirectory" && path === dir(root),
    volumes: ({ name, path }, root) => name === "syncDirectory" && path === join(root, "volumes"),
    "the data directory": ({ name, path }, root) => name === "syncDirectory" && path === root,
  };
  for (const [step, is] of Object.entries(steps)) {
    const faulty = new FaultyFileSystem();
    const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), fs: faulty.fs });
    const calls: string[] = [];
    faulty.before = (call) => {
      if (call.name === "rename" && ofMap(call)) calls.push("checkpoint");
      if (calls.length > 0 || !is(call, env.dataDir)) return undefined;
      calls.push("held");
      // Everything that does not wait for it happens meanwhile.
      const others = async (): Promise<void> => {
        for (let turn = 0; turn < 200; turn++) await nextTurn();
        for (let wait = 0; wait < 10; wait++) await env.fs.readdir(env.dataDir);
        calls.push("over");
      };
      return others();
    };
    await Volume.create(env, { id, name: "disk", size: 1 << 20 });
    assert.deepEqual(calls, ["held", "over", "checkpoint"], step);
  }
});

for (const [what, made] of Object.entries({ "an empty volume": {}, "one with a content": { content } })) {
  void test(`${what} exists from its first checkpoint on: killed in front of any step before, there is none`, async (t) => {
    let steps = 1;
    for (let step = 1; step <= steps; step++) {
      const faulty = new FaultyFileSystem();
      const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), fs: faulty.fs });
      const id = newId();
      let seen = 0;
      let resolveKilled: () => void = () => undefined;
      const killed = new Promise<void>((resolve) => (resolveKilled = resolve));
      faulty.before = (call) => {
        if (!changes(call) || ++seen !== step || step === 1) return undefined;
        void faulty.kill().then(resolveKilled);
        return undefined;
      };
      const creating = Volume.create(env, { id, name: "disk", size: chunkBytes, ...made });
      if (step === 1) {
        await creating;
        steps = seen;
        continue;
      }
      creating.catch(() => undefined);
      await killed;
      const opening = openVolume(volumeEnvironment(t, { dataDir: env.dataDir }), id);
      if (!existsSync(mapPath(volumeDir(env.dataDir, id), 1))) {
        await assert.rejects(opening, { name: /Error/ }, `step ${step}`);
      } else {
        const volume = await opening;
        await expectFilled(volume, 0, 8 * blockBytes, 0);
        await expectFilled(volume, 8 * blockBytes, blockBytes, "content" in made ? 1 : 0);
        await volume.close();
      }
      assert.deepEqual(openDescriptors(env.dataDir), []);
    }
  });
}

void test("a volume describes itself in words, for whoever has lost the catalog", async (t) => {
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t) });
  const id = newId();
  await Volume.create(env, { id, name: "build disk", size: chunkBytes, details: { source: "http://x.test/i.raw" } });
  const text = JSON.parse(readFileSync(join(volumeDir(env.dataDir, id), "volume.json"), "utf8")) as object;
  assert.deepEqual(
    { ...text, createdAt: undefined },
    { formatVersion: 1, id, name: "build disk", size: chunkBytes, createdAt: undefined, source: "http://x.test/i.raw" },
  );
});

void test("a volume that exists can't be created again", async (t) => {
  const env = volumeEnvironment(t, { dataDir: memoryDirectory(t) });
  const id = newId();
  await Volume.create(env, { id, name: "disk", size: chunkBytes });
  await assert.rejects(Volume.create(env, { id, name: "disk", size: chunkBytes }), { errno: "EEXIST" });
  await (await openVolume(env, id)).close();
});
