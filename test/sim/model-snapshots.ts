import { describeError } from "../../src/base/errors.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { dropLayers } from "../../src/daemon/snapshots/layer-files.ts";
import { loadFrozenMap, readFrozenTable } from "../../src/volume/map/frozen-map.ts";
import { frozenMapPath, mapsDir, snapshotPath, volumeDir } from "../../src/volume/paths.ts";
import { baseOf, frozenReferences } from "../../src/volume/layers/references.ts";
import { forgetSnapshot, readSnapshot } from "../../src/volume/snapshot-files.ts";
import { SnapshotView } from "../../src/volume/snapshot-view.ts";
import type { CreateVolumeOptions } from "../../src/volume/open-volume.ts";
import type { Blob } from "../../src/blob/blob.ts";
import type { ModelVolume, ModelWorld } from "./model-volume.ts";
import type { SnapshotOracle } from "./snapshot-oracle.ts";
import { runsOf } from "./workload.ts";

/** So many of one volume at a time: each is read as a whole in every life. */
const maxSnapshots = 8;

interface ModelSnapshot {
  id: string;
  name: string;
  oracle: SnapshotOracle;
  /**
   * - tried: not answered; it may be there or not
   * - there: it must be there, whatever happens
   * - leaving: its removal has begun; while its description is there it is whole
   */
  state: "tried" | "there" | "leaving";
  /** Who is using it. */
  users: number;
}

/**
 * The snapshots of one modelled volume, and what durability rule 3 says of them: one that was answered is there after
 * every crash, as it was; one that was not is whole or not there.
 */
export class ModelSnapshots {
  readonly #world: ModelWorld;
  readonly #owner: ModelVolume;
  readonly #all: ModelSnapshot[] = [];

  constructor(world: ModelWorld, owner: ModelVolume) {
    this.#world = world;
    this.#owner = owner;
  }

  /** The process is dead. */
  died(): void {
    for (const snapshot of this.#all) snapshot.users = 0;
  }

  /** @throws what the volume throws */
  async take(): Promise<void> {
    if (this.#all.length >= maxSnapshots) return;
    const { random } = this.#world.scheduler;
    const volume = this.#owner.volume!;
    const { oracle } = this.#owner;
    const id = random.bytes(16).toString("hex");
    const name = `s${id.slice(0, 4)}`;
    const snapshot: ModelSnapshot = { id, name, oracle: oracle.snapshotStart(volume.size), state: "tried", users: 1 };
    this.#all.push(snapshot);
    this.#note(snapshot, "is being taken");
    if (random.chance(0.25)) void this.#strikeBehindRecord(snapshot);
    try {
      const { size } = await volume.snapshot({ id, name, createdAt: this.#world.scheduler.clock.wallTime() });
      oracle.snapshotEnd(snapshot.oracle);
      snapshot.oracle.size = size;
      snapshot.state = "there";
      this.#note(snapshot, "is taken");
      if (random.chance(0.2)) this.#world.temptFate(25);
    } catch (error) {
      oracle.snapshotEnd(snapshot.oracle);
      this.#note(snapshot, `was not taken: ${describeError(error)}`);
      throw error;
    } finally {
      snapshot.users--;
    }
  }

  /** The crash comes while the record is in the log, and nothing of it is durable: chance alone seldom hits that. */
  async #strikeBehindRecord(snapshot: ModelSnapshot): Promise<void> {
    const volume = this.#owner.volume!;
    const there = (): boolean => volume.pendingSnapshot(snapshot.id) !== undefined;
    for (let turn = 0; turn < 300 && snapshot.users > 0 && !there(); turn++) {
      await this.#world.scheduler.pause("waiting for a snapshot's record");
    }
    if (snapshot.users > 0 && there()) this.#world.temptFate(12);
  }

  async readOne(): Promise<void> {
    const snapshot = this.#pick();
    if (snapshot) await this.#read(snapshot);
  }

  /** What a clone begins with, and what it shows then; undefined when there is no snapshot to begin with. */
  async base(): Promise<
    { base: CreateVolumeOptions["base"]; oracle: SnapshotOracle; release: () => void } | undefined
  > {
    const snapshot = this.#pick();
    if (!snapshot) return undefined;
    snapshot.users++;
    const release = (): void => void snapshot.users--;
    try {
      await this.#read(snapshot); // so that all it holds is known
      const { table } = await readFrozenTable(this.#world.env(), snapshot.id);
      return { base: { id: snapshot.id, freeOwner: table.free() }, oracle: snapshot.oracle, release };
    } catch (error) {
      release();
      throw error;
    }
  }

  /** Removes one as the daemon would: its description, the layers that nothing else needs, its frozen map. */
  async remove(): Promise<void> {
    const snapshot = this.#pick();
    if (!snapshot || snapshot.users > 0) return;
    await this.#world.references.run(async () => {
      if (snapshot.users > 0 || snapshot.state !== "there") return;
      snapshot.state = "leaving"; // so that nobody begins to use it
      if (await this.#isBase(snapshot.id)) snapshot.state = "there";
      else await this.#finishRemoval(snapshot);
    });
  }

  /** May be repeated. */
  async #finishRemoval(snapshot: ModelSnapshot): Promise<void> {
    const env = this.#world.env();
    const { id } = snapshot;
    this.#world.moves.removed++;
    this.#note(snapshot, "is being removed");
    await forgetSnapshot(env, volumeDir(env.dataDir, this.#owner.id), id);
    await this.#owner.volume?.forgetSnapshot(id);
    if (await env.fs.exists(frozenMapPath(env.dataDir, id))) {
      const candidates = await frozenReferences(env, id);
      const openLayers = (volumeId: string): Set<string> | undefined => this.#world.openLayers(volumeId);
      await dropLayers(env, candidates, { openLayers, withoutMap: id });
      await env.fs.unlink(frozenMapPath(env.dataDir, id));
      await env.fs.syncDirectory(mapsDir(env.dataDir));
    }
    this.#forget(snapshot);
    this.#note(snapshot, "is removed");
  }

  /** In a new life, before anything else: reads all that are there. */
  async verify(): Promise<void> {
    for (const snapshot of this.#all.slice()) await this.#verifyOne(snapshot);
  }

  async #verifyOne(snapshot: ModelSnapshot): Promise<void> {
    const env = this.#world.env();
    const dir = volumeDir(env.dataDir, this.#owner.id);
    const { id, state } = snapshot;
    if (!(await env.fs.exists(snapshotPath(dir, id)))) {
      if (state === "there") throw new Error(`snapshot ${snapshot.name} was answered, and its description is gone`);
      if (state === "leaving") await this.#world.references.run(() => this.#finishRemoval(snapshot));
      else this.#forget(snapshot);
      return;
    }
    const pending = this.#owner.volume!.pendingSnapshot(id) !== undefined;
    if (!pending && !(await env.fs.exists(frozenMapPath(env.dataDir, id)))) {
      if (state !== "tried") throw new Error(`snapshot ${snapshot.name} was answered, and its frozen map is gone`);
      await forgetSnapshot(env, dir, id);
      this.#forget(snapshot);
      return;
    }
    if (state === "tried") {
      const { size } = await readSnapshot(env, dir, id);
      if (!this.#owner.everHad(size)) throw new Error(`snapshot ${snapshot.name} has ${size} bytes`);
      snapshot.oracle.size = size;
    }
    await this.#read(snapshot);
    snapshot.state = "there";
  }

  /** @throws OracleError */
  async #read(snapshot: ModelSnapshot): Promise<void> {
    const { random } = this.#world.scheduler;
    const env = this.#world.env();
    const { id, oracle } = snapshot;
    snapshot.users++;
    try {
      if (this.#owner.volume === undefined) return; // closed meanwhile
      await this.#owner.volume.writeSnapshot(id);
      const frozen = await loadFrozenMap(env, id);
      if (frozen.size !== oracle.size || frozen.volumeId !== this.#owner.id) {
        throw new Error(`snapshot ${snapshot.name} has ${frozen.size} bytes of volume ${frozen.volumeId}`);
      }
      const blobs = new Map<number, Blob>();
      for (const [owner, { kind }] of frozen.table.entries()) {
        if (kind === "blob") blobs.set(owner, await this.#world.openBlob());
      }
      const view = new SnapshotView(env, frozen, blobs);
      const sectors = new Set([...oracle.touched, ...this.#owner.oracle.touched, random.below(frozen.size / 512)]);
      const inside = [...sectors].filter((sector) => sector * 512 < frozen.size).sort((one, other) => one - other);
      try {
        for (const [offset, length] of runsOf(inside)) {
          const buffer = new IoBuffer(length);
          buffer.bytes.fill(0xa5);
          const now = random.chance(0.5) && view.tryRead(offset, length, buffer, 0);
          if (!now) await view.read(offset, length, buffer, 0);
          if (!this.#world.dead()) oracle.check(offset, buffer.bytes);
        }
      } finally {
        await view.close();
      }
    } finally {
      snapshot.users--;
    }
  }

  #pick(): ModelSnapshot | undefined {
    const there = this.#all.filter(({ state }) => state === "there");
    return there.length > 0 ? this.#world.scheduler.random.pick(there) : undefined;
  }

  /** Whether the checkpoint of some volume names the frozen map. */
  async #isBase(id: string): Promise<boolean> {
    const env = this.#world.env();
    for (const volumeId of await env.fs.readdir(`${env.dataDir}/volumes`)) {
      if ((await baseOf(env, volumeId)) === id) return true;
    }
    return false;
  }

  #forget(snapshot: ModelSnapshot): void {
    this.#all.splice(this.#all.indexOf(snapshot), 1);
  }

  #note({ name }: ModelSnapshot, text: string): void {
    this.#world.note(`snapshot ${name} ${text}`);
  }
}
