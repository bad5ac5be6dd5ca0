import assert from "node:assert/strict";
import { readdir, rm } from "node:fs/promises";
import { existsSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import * as fc from "fast-check";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { Ullage } from "../../src/daemon/ullage.ts";
import type { BlockDevice } from "../../src/export/block-device.ts";
import { CrashingWorld } from "./crashing-world.ts";
import { demandNothingUseless, demandSpaceAddsUp, unnamedLayers } from "./layer-inspection.ts";

/*
 * Volumes, snapshots and clones beside a model of plain arrays, one byte per sector: any sequence of commands, kills among
 * them, leaves exactly what the model says. A failure prints seed and path; ULLAGE_MODEL_SEED and ULLAGE_MODEL_PATH replay
 * it, ULLAGE_MODEL_RUNS sets how many are run.
 */

const sector = 512;
const names = ["a", "b", "c", "d"];
const snapshotNames = ["s", "t", "u"];

interface ModelVolume {
  sectors: Uint8Array;
  snapshots: Map<string, Uint8Array>;
}

type Model = Map<string, ModelVolume>;

/** One data directory through many processes. */
class World {
  readonly dataDir: string;
  /** Layers that a kill left behind: it came between the end of the last file that named one and the layer's own. */
  readonly leftBehind = new Set<string>();
  #world = new CrashingWorld(Infinity);
  #ullage: Ullage | undefined;

  constructor(dataDir: string) {
    this.dataDir = dataDir;
  }

  get ullage(): Ullage {
    return this.#ullage!;
  }

  async start(): Promise<void> {
    this.#world = new CrashingWorld(Infinity);
    const { fs, openStore } = this.#world;
    this.#ullage = await Ullage.open({ dataDir: this.dataDir, fs, openStore });
  }

  /** kill -9: nothing that is under way goes on. What nobody has named for a while must have gone by then. */
  async kill(): Promise<void> {
    for (let tries = 0; (await this.#unnamed()).length > 0; tries++) {
      assert.ok(tries < 1000, "a layer that nobody names stays");
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    this.#world.crashAt = 0;
    await this.#world.bury();
    for (const layer of await this.#unnamed()) this.leftBehind.add(layer);
    await this.start();
  }

  async #unnamed(): Promise<string[]> {
    return (await unnamedLayers(this.dataDir)).filter((layer) => !this.leftBehind.has(layer));
  }

  async restart(): Promise<void> {
    await this.ullage.close();
    await this.start();
  }
}

const pick = <T>(of: readonly T[], n: number): T | undefined => (of.length === 0 ? undefined : of[n % of.length]);

async function contentOf(device: BlockDevice): Promise<Buffer> {
  const buffer = new IoBuffer(device.size);
  await device.read(0, device.size, buffer, 0);
  return buffer.bytes;
}

async function compare(what: string, device: BlockDevice, sectors: Uint8Array): Promise<void> {
  assert.equal(device.size, sectors.length * sector, `size of ${what}`);
  const content = await contentOf(device);
  for (let at = 0; at < sectors.length; at++) {
    const found = content.subarray(at * sector, (at + 1) * sector);
    assert.ok(
      found.every((byte) => byte === sectors[at]),
      `${what}, sector ${at}: ${found[0]} instead of ${sectors[at]}`,
    );
  }
}

async function compareAll(model: Model, { ullage }: World): Promise<void> {
  const listed = (await ullage.listVolumes()).map(({ name, state }) => `${name} ${state}`);
  assert.deepEqual(
    listed,
    [...model.keys()].sort().map((name) => `${name} ok`),
  );
  for (const [name, { sectors, snapshots }] of model) {
    await compare(name, await ullage.getDevice(name), sectors);
    const { runs } = await ullage.mapVolume(name, 0, 1e6);
    const written = runs.filter(({ kind }) => kind === "written").map(({ length }) => Math.ceil(length / 4096) * 4096);
    assert.equal(
      (await ullage.showVolume(name)).writtenBytes,
      written.reduce((sum, bytes) => sum + bytes, 0),
      `written bytes of ${name}`,
    );
    assert.deepEqual(
      ullage
        .listSnapshots(name)
        .map((view) => view.name)
        .sort(),
      [...snapshots.keys()].sort(),
    );
    for (const [snapshot, frozen] of snapshots) {
      await compare(`${name}@${snapshot}`, await ullage.getSnapshotDevice(name, snapshot), frozen);
    }
  }
}

type Command = fc.AsyncCommand<Model, World>;

/** A command on one of the volumes that there are; does nothing when there is none. */
function onVolume(
  label: string,
  which: number,
  run: (volume: ModelVolume, name: string, world: World, model: Model) => Promise<void>,
): Command {
  return {
    check: (model) => model.size > 0,
    run: async (model, world) => {
      const name = pick([...model.keys()], which)!;
      await run(model.get(name)!, name, world, model);
    },
    toString: () => label,
  };
}

const index = fc.nat({ max: 11 });
const range = fc.record({ at: fc.nat({ max: 199 }), count: fc.integer({ min: 1, max: 40 }) });

/** The part of a range that lies inside the volume, if any does. */
function inside({ sectors }: ModelVolume, { at, count }: { at: number; count: number }): { at: number; count: number } {
  const start = at % sectors.length;
  return { at: start, count: Math.min(count, sectors.length - start) };
}

const commands: fc.Arbitrary<Command>[] = [
  fc.tuple(index, fc.integer({ min: 1, max: 160 })).map(([n, sectors]): Command => ({
    check: (model) => model.size < names.length,
    run: async (model, { ullage }) => {
      const name = names.filter((candidate) => !model.has(candidate))[n % (names.length - model.size)];
      await ullage.createVolume({ name, size: sectors * sector });
      model.set(name, { sectors: new Uint8Array(sectors), snapshots: new Map() });
    },
    toString: () => `create(${n}, ${sectors})`,
  })),
  fc.tuple(index, range, fc.integer({ min: 1, max: 255 })).map(([n, where, value]) =>
    onVolume(`write(${n}, ${JSON.stringify(where)}, ${value})`, n, async (volume, name, { ullage }) => {
      const { at, count } = inside(volume, where);
      const device = await ullage.getDevice(name);
      const buffer = IoBuffer.from(Buffer.alloc(count * sector, value));
      if (!device.tryWrite(at * sector, count * sector, buffer, 0))
        await device.write(at * sector, count * sector, buffer, 0);
      volume.sectors.fill(value, at, at + count);
    }),
  ),
  fc.tuple(index, range, fc.boolean()).map(([n, where, allocate]) =>
    onVolume(`zero(${n}, ${JSON.stringify(where)}, ${allocate})`, n, async (volume, name, { ullage }) => {
      const { at, count } = inside(volume, where);
      await (await ullage.getDevice(name)).zero(at * sector, count * sector, { allocate, fast: false });
      volume.sectors.fill(0, at, at + count);
    }),
  ),
  fc.tuple(index, range).map(([n, where]) =>
    onVolume(`trim(${n}, ${JSON.stringify(where)})`, n, async (volume, name, { ullage }) => {
      const { at, count } = inside(volume, where);
      await (await ullage.getDevice(name)).trim(at * sector, count * sector);
      const end = at + count === volume.sectors.length ? Infinity : Math.floor((at + count) / 8) * 8;
      volume.sectors.fill(0, Math.min(Math.ceil(at / 8) * 8, at + count), Math.max(0, Math.min(end, at + count)));
    }),
  ),
  index.map((n) => onVolume(`flush(${n})`, n, async (_, name, { ullage }) => (await ullage.getDevice(name)).flush())),
  fc.tuple(index, index).map(([n, s]) =>
    onVolume(`snapshot(${n}, ${s})`, n, async (volume, name, { ullage }) => {
      const free = pick(
        snapshotNames.filter((candidate) => !volume.snapshots.has(candidate)),
        s,
      );
      if (free === undefined) return;
      await ullage.createSnapshot(name, free);
      volume.snapshots.set(free, volume.sectors.slice());
    }),
  ),
  fc.tuple(index, index).map(([n, s]) =>
    onVolume(`removeSnapshot(${n}, ${s})`, n, async (volume, name, { ullage }) => {
      const taken = pick([...volume.snapshots.keys()], s);
      if (taken === undefined) return;
      await ullage.removeSnapshot(name, taken);
      volume.snapshots.delete(taken);
    }),
  ),
  fc.tuple(index, index).map(([n, s]) =>
    onVolume(`revert(${n}, ${s})`, n, async (volume, name, { ullage }) => {
      const taken = pick([...volume.snapshots.keys()], s);
      if (taken === undefined) return;
      await ullage.revertVolume(name, taken);
      volume.sectors = volume.snapshots.get(taken)!.slice();
    }),
  ),
  fc.tuple(index, index, fc.boolean()).map(([n, s, live]) =>
    onVolume(`clone(${n}, ${s}, ${live})`, n, async (volume, name, { ullage }, model) => {
      const free = names.find((candidate) => !model.has(candidate));
      const taken = pick([...volume.snapshots.keys()], s);
      if (free === undefined || (!live && taken === undefined)) return;
      const from = live ? { volume: name } : { snapshot: `${name}@${taken}` };
      await ullage.createVolume({ name: free, from });
      const sectors = live ? volume.sectors : volume.snapshots.get(taken!)!;
      model.set(free, { sectors: sectors.slice(), snapshots: new Map() });
    }),
  ),
  fc.tuple(index, fc.integer({ min: 1, max: 200 })).map(([n, sectors]) =>
    onVolume(`resize(${n}, ${sectors})`, n, async (volume, name, { ullage }) => {
      const before = volume.sectors;
      const shrunk = ullage.changeVolume(name, { size: sectors * sector, force: true });
      // What a shrink would cut off must be unowned, which the model can't know; that it is zeros, it can.
      if (sectors < before.length) {
        if (
          (await shrunk.then(
            () => "done",
            (error: { code?: string }) => error.code,
          )) === "not-empty"
        )
          return;
        assert.ok(before.subarray(Math.ceil(sectors / 8) * 8).every((value) => value === 0));
      }
      await shrunk;
      const after = new Uint8Array(sectors);
      after.set(before.subarray(0, sectors));
      volume.sectors = after;
    }),
  ),
  index.map((n) =>
    onVolume(`remove(${n})`, n, async (_, name, { ullage }, model) => {
      await ullage.removeVolume(name, { snapshots: true });
      model.delete(name);
    }),
  ),
  fc.constant<Command>({ check: () => true, run: (_, world) => world.kill(), toString: () => "kill" }),
  fc.constant<Command>({ check: () => true, run: (_, world) => world.restart(), toString: () => "restart" }),
  fc.constant<Command>({ check: () => true, run: compareAll, toString: () => "compare" }),
  fc.constant<Command>({
    check: () => true,
    run: async (_, { ullage }) => {
      const { leftAlone, reasons } = await ullage.reclaim();
      assert.deepEqual({ leftAlone, reasons }, { leftAlone: 0, reasons: [] });
    },
    toString: () => "reclaim",
  }),
  fc.constant<Command>({
    check: () => true,
    run: (_, { ullage, dataDir }) => demandSpaceAddsUp(ullage, dataDir),
    toString: () => "space",
  }),
];

void test("volumes, snapshots and clones are what a model of plain arrays says, through kills and restarts", async () => {
  const numRuns = Number(process.env["ULLAGE_MODEL_RUNS"] ?? 60);
  const seed = process.env["ULLAGE_MODEL_SEED"];
  const path = process.env["ULLAGE_MODEL_PATH"];
  const parent = existsSync("/dev/shm") ? "/dev/shm" : tmpdir();
  const property = fc.asyncProperty(fc.commands(commands, { maxCommands: 40, size: "max" }), async (list) => {
    const dataDir = await mkdtemp(join(parent, "ullage-model-"));
    const world = new World(dataDir);
    const model: Model = new Map();
    try {
      await world.start();
      await fc.asyncModelRun(() => ({ model, real: world }), list);
      await compareAll(model, world);
      await world.ullage.reclaim();
      await demandNothingUseless(world.ullage, dataDir, world.leftBehind);
      await demandSpaceAddsUp(world.ullage, dataDir);
      await compareAll(model, world);
      for (const name of model.keys()) await world.ullage.removeVolume(name, { snapshots: true });
      await world.ullage.close();
      for (const folder of ["layers", "maps", "volumes"]) {
        const left = (await readdir(join(dataDir, folder)).catch(() => [])).filter((id) => !world.leftBehind.has(id));
        assert.deepEqual(left, [], `what is left in ${folder}`);
      }
    } finally {
      await world.kill().catch(() => undefined);
      await world.ullage.close().catch(() => undefined);
      await rm(dataDir, { recursive: true, force: true });
    }
  });
  await fc.assert(property, {
    numRuns,
    endOnFailure: true,
    ...(seed === undefined ? {} : { seed: Number(seed) }),
    ...(path === undefined ? {} : { path }),
  });
});
