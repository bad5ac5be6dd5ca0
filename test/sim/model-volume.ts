import { allOf } from "../../src/base/all-of.ts";
import { describeError, errnoOf, IoError, SourceError, UllageError } from "../../src/base/errors.ts";
import type { Blob } from "../../src/blob/blob.ts";
import type { Turns } from "../../src/daemon/turns.ts";
import { poisonPath, runtimePoisonPath, volumeDir } from "../../src/volume/paths.ts";
import { revertVolume } from "../../src/volume/rebase-volume.ts";
import { baseOf } from "../../src/volume/layers/references.ts";
import type { VolumeEnvironment } from "../../src/volume/types.ts";
import { Volume } from "../../src/volume/volume.ts";
import type { End, Profile } from "./crash-driver.ts";
import { ModelSnapshots } from "./model-snapshots.ts";
import { type Loss, Oracle } from "./oracle.ts";
import type { SimDisk } from "./sim-disk.ts";
import type { SimFileSystem } from "./sim-file-system.ts";
import { SimInode } from "./sim-inode.ts";
import type { SimScheduler } from "./sim-scheduler.ts";
import type { SnapshotOracle } from "./snapshot-oracle.ts";
import { type StructureKind, Workload, type WorkloadTarget } from "./workload.ts";

/** What the volumes of a world share. */
export interface ModelWorld {
  readonly profile: Profile;
  readonly scheduler: SimScheduler;
  readonly disk: SimDisk;
  /** Of the process that lives now. */
  env(): VolumeEnvironment;
  process(): SimFileSystem;
  readonly references: Turns;
  /** See `ReclaimHost`. */
  readonly moves: { given: number; removed: number };
  /** Frees blocks that nothing refers to. @throws what `reclaim` throws */
  reclaim(): Promise<void>;
  openBlob(): Promise<Blob>;
  /** The volume's layers in memory; undefined when it is not open. */
  openLayers(volumeId: string): Set<string> | undefined;
  /** Removes those of the layers that nothing refers to any more, in its turn. */
  dropLayers(layers: string[]): void;
  /** The process is dead. */
  dead(): boolean;
  closing(): boolean;
  faultsOn(): boolean;
  /** Whether failures may still come from earlier faults of this world. */
  explains(): boolean;
  /** The cache loses a unit of the blob. */
  loseUnit(offset: number): void;
  /** The crash, if one is to come at all, comes within so many calls. */
  temptFate(calls: number): void;
  /** A volume that must be there from now on. */
  add(volume: ModelVolume): void;
  readonly room: boolean;
  note(text: string): void;
}

/** Where the header of a log has its flags (docs/FORMAT.md). */
const strayByte = 84;
const blockBytes = 4096;
/** It grows by so much at most. */
const mostGrowth = 8 * 1024 * 1024;

/** One volume of a world: what it may show, what has happened to it, and whoever works on it. */
export class ModelVolume {
  readonly id: string;
  readonly name: string;
  oracle: Oracle;
  workload: Workload;
  readonly snapshots: ModelSnapshots;
  /** Undefined: not open. */
  volume: Volume | undefined;
  readonly #world: ModelWorld;
  readonly #limit: number;
  /** The size that was answered last, and those that were tried since. */
  #size: number;
  #sizesTried: number[] = [];
  readonly #sizesEver = new Set<number>();
  #growing = false;
  /** Changes of head or size that were begun, and how many are running. */
  #changes = 0;
  #changesRunning = 0;
  /** The last one of which it is certain that it was committed, if it was made. */
  #changesCertain = 0;
  /** Write-backs that had failed when the disk's content was last taken for what it is. */
  #failuresForgiven = 0;
  #remoteAttached = false;
  /** Durability rule 16: somebody who lived through a power cut believes in lost writes. */
  #refusalDue = false;
  /** A recovery since the last reopening may have found that the page cache was lost. */
  #lossPossible = false;
  #reopening = false;
  /** What it is being reverted to, unless that is known to have failed or to be done. */
  #reverting: { id: string; oracle: SnapshotOracle } | undefined;
  /** The call during which the volume found itself poisoned, in this life. */
  #poisonedAt: number | undefined;

  constructor(world: ModelWorld, name: string, id: string, size: number, initial: (sector: number) => Buffer) {
    this.#world = world;
    this.id = id;
    this.name = name;
    this.#size = size;
    this.#sizesEver.add(size);
    this.#limit = size + mostGrowth;
    this.oracle = new Oracle(initial);
    this.workload = this.#newWorkload();
    this.snapshots = new ModelSnapshots(world, this);
  }

  #newWorkload(): Workload {
    return new Workload(this.#world.scheduler, this.oracle, this.#size, this.#world.profile);
  }

  /** Sizes that it may have. */
  sizes(): number[] {
    return [this.#size, ...this.#sizesTried];
  }

  /** Sizes that it had, or may have had, at any time. */
  everHad(size: number): boolean {
    return this.#sizesEver.has(size);
  }

  // ---- crashes ------------------------------------------------------------------------------------------------------

  /**
   * A process that was told of a failed sync of head or log leaves a mark for the next one (durability rule 6).
   * @returns true when it died before it could
   */
  mustKnowOfPoison(): boolean {
    const { disk } = this.#world;
    const process = this.#world.process();
    const layers = this.volume?.layerIds() ?? new Set<string>();
    const told = process.syncErrorsTold.filter(
      ({ path }) =>
        (path.includes("/layers/") && (this.volume === undefined || layers.has(path.slice(-32)))) ||
        (path.includes("intent") && path.includes(this.id)),
    );
    const places = [poisonPath(volumeDir("/data", this.id)), runtimePoisonPath("/run", this.id)];
    if (told.length === 0 || places.some((path) => disk.namespace.lookup(path) !== undefined)) return false;
    // A log or a layer that failed to be created is none to be marked for; and so many other calls may come before the mark's.
    const layer = told.find(({ path }) => this.volume !== undefined && path.includes("layers"));
    const known = this.#poisonedAt ?? layer?.call ?? Infinity;
    if (!this.#reopening && disk.calls - known > 60) {
      throw new Error("a sync failed, and no mark of it was left");
    }
    return true;
  }

  /** It knows of a failed sync. */
  poisoned(): void {
    this.#poisonedAt ??= this.#world.disk.calls;
  }

  /** The process is dead, and no call of it lands any more. */
  died(): void {
    this.volume = undefined;
    this.#poisonedAt = undefined;
    this.#reopening = false;
    this.#growing = false;
    this.snapshots.died();
  }

  /** The oracle learns what may be lost. */
  crashed(end: End): void {
    const { disk, profile } = this.#world;
    const failed = disk.failures > this.#failuresForgiven;
    const { bootIdHidden, mountIdHidden, fileSystem, punches } = disk.options;
    // Where blocks without an owner may have data, or the head may have changed, only an unchanged mount proves that the
    // page cache survived.
    const remounted = mountIdHidden || end === "container";
    const holesTell = punches && !this.#straysPossible() && !this.#structureUncertain();
    const weak = bootIdHidden || fileSystem === "zfs" || (remounted && !holesTell);
    let loss: Loss;
    if (end === "power") loss = "unflushed";
    else if (end === "remount") loss = "unflushed, cache kept";
    else loss = failed || weak ? "unflushed, cache kept" : "nothing";
    if (end === "remount" || end === "power") this.#failuresForgiven = disk.failures;
    this.#changesRunning = 0;
    this.oracle.crash(loss);
    if (end === "power" && this.#remoteAttached) this.#refusalDue = true;
    const clientsLive = end !== "power" || profile.remote === true || bootIdHidden;
    if (clientsLive && loss !== "nothing") this.#lossPossible = true;
  }

  /** Whether a log says that blocks without an owner may have data: it began after a kill and they are not swept yet. */
  #straysPossible(): boolean {
    const directory = this.#world.disk.namespace.directory(volumeDir("/data", this.id));
    return [...directory.entries].some(([name, node]) => {
      const page = node instanceof SimInode ? node.pages.get(0)?.cached : undefined;
      return name.startsWith("intent.") && page !== undefined && (page[strayByte] & 1) === 1;
    });
  }

  /** Whether the log may have an uncommitted record of a snapshot or a size. */
  #structureUncertain(): boolean {
    return this.#changesRunning > 0 || this.#changes > this.#changesCertain;
  }

  // ---- opening and closing ------------------------------------------------------------------------------------------

  /** @returns why the volume cannot be opened; undefined: it is open, and has its client */
  async tryOpen(): Promise<unknown> {
    try {
      await this.#learnOfRevert();
      await this.open(false);
      await this.attach();
      return undefined;
    } catch (error) {
      this.#note(`open: ${describeError(error)}`);
      await this.giveUp();
      const code = error instanceof UllageError ? error.code : "";
      if (code === "poisoned" && this.#world.profile.faults === undefined) return error;
      if (code === "lost-unflushed" && this.#world.disk.failures === 0 && !this.#lossPossible) return error;
      if (code !== "poisoned" && code !== "lost-unflushed") return error;
    }
    try {
      // An operator was told, and looked at it; a crash in the middle of reopening leaves either.
      this.#reopening = true;
      this.#refusalDue = false;
      this.oracle.crash("unflushed, cache kept");
      await this.open(true);
      this.#failuresForgiven = this.#world.disk.failures;
      const { syncErrorsTold } = this.#world.process();
      const others = syncErrorsTold.filter(({ path }) => path.includes("intent") && !path.includes(this.id));
      syncErrorsTold.splice(0, Infinity, ...others);
      this.#reopening = false;
      this.#poisonedAt = undefined;
      this.#lossPossible = false;
      await this.attach();
      return undefined;
    } catch (error) {
      this.#note(`reopen: ${describeError(error)}`);
      await this.giveUp();
      return error;
    }
  }

  /** Closes it, if it is open. */
  async giveUp(): Promise<void> {
    const { volume } = this;
    this.volume = undefined;
    await volume?.close().catch((failure: unknown) => this.#note(`close: ${describeError(failure)}`));
  }

  async open(acceptLoss: boolean): Promise<void> {
    this.volume = await Volume.open(this.#world.env(), {
      id: this.id,
      name: this.name,
      settings: { sync: "normal", remoteAfterPowerLoss: "refuse" },
      openBlob: () => this.#world.openBlob(),
      onLayersUnused: (layers) => this.#world.dropLayers(layers),
      acceptLoss,
    });
    this.#note(`opened: ${this.volume.info().state}`);
    const { size } = this.volume;
    if (!this.sizes().includes(size))
      throw new Error(`${this.name} has ${size} bytes, not ${this.sizes().join(" or ")}`);
  }

  async attach(): Promise<void> {
    const remote = this.#world.profile.remote ?? false;
    await this.volume!.attach({ protocol: "nbd", address: "model", remote, writable: true, close: () => {} });
    if (this.#refusalDue) throw new Error("remote writers were connected when the power went, and nobody is told");
    this.#remoteAttached = remote;
  }

  /** Reads everything that is known of it and its snapshots. */
  async verify(): Promise<void> {
    const target = this.target();
    await this.workload.verify(target);
    await this.snapshots.verify().catch((error: unknown) => target.onError("reading the snapshots", error));
  }

  /** It is being closed: its connections have ended. */
  leave(): void {
    this.#remoteAttached = false;
  }

  // ---- work ---------------------------------------------------------------------------------------------------------

  target(): WorkloadTarget {
    const volume = this.volume!;
    const world = this.#world;
    const process = world.process();
    return {
      device: volume,
      checkpoint: () => volume.checkpoint(),
      structure: (kind) => this.#structure(kind),
      flushing: () => this.#flushing(),
      flushed: (token) => this.#flushed(token),
      loseUnit: (offset) => world.loseUnit(offset),
      dead: () => process.dead,
      closing: () => world.closing(),
      onError: (what, error) => {
        if (process.dead) return;
        const faulty = world.faultsOn() && !world.profile.alwaysTakes?.some((kind) => what.includes(kind));
        const ours = error instanceof IoError && (faulty || world.explains());
        const tooLate = world.closing() && errnoOf(error) === "ESHUTDOWN";
        if (error instanceof SourceError || tooLate || ours) return;
        throw new Error(`${what} failed: ${describeError(error)}`, { cause: error });
      },
      note: (text) => this.#note(text),
    };
  }

  async #structure(kind: StructureKind): Promise<void> {
    const target = this.target();
    try {
      if (kind === "snapshot") await Promise.all([this.#changing(() => this.snapshots.take()), this.#beside(target)]);
      else if (kind === "readSnapshot") await this.snapshots.readOne();
      else if (kind === "removeSnapshot") await this.snapshots.remove();
      else if (kind === "clone") await this.#clone();
      else if (kind === "turnover") await this.#turnover(target);
      else if (kind === "reclaim") await this.#reclaim();
      else if (kind === "reclaimStory") await this.#reclaimStory(target);
      else await this.#grow();
    } catch (error) {
      target.onError(kind, error);
    }
  }

  /** At times a checkpoint takes its cut close to a snapshot's. */
  async #beside(target: WorkloadTarget): Promise<void> {
    const { random } = this.#world.scheduler;
    if (!random.chance(0.3)) return;
    for (let turn = random.between(1, 40); turn > 0; turn--) await this.#world.scheduler.pause("before a checkpoint");
    if (!target.closing()) await target.checkpoint().catch((error: unknown) => target.onError("checkpoint", error));
  }

  /** The structure changes: until something is known to be committed, a recovery may trust less (rule `cut`). */
  async #changing(work: () => Promise<void>): Promise<void> {
    const change = ++this.#changes;
    const alone = this.#changesRunning === 0;
    this.#changesRunning++;
    if (this.#world.scheduler.random.chance(0.3)) this.#world.temptFate(60);
    try {
      await work();
      if (alone && change === this.#changes) this.#changesCertain = change;
    } finally {
      this.#changesRunning--;
    }
  }

  #flushing(): number {
    return this.#changesRunning > 0 ? -1 : this.#changes;
  }

  #flushed(token: number): void {
    if (token < 0 || token !== this.#changes || this.volume === undefined) return;
    this.#changesCertain = token;
    this.#size = this.volume.size; // whatever it was before, now it is durable
    this.#sizesTried = [];
  }

  /** A layer comes to have blocks that a checkpoint knows, is sealed, and loses them all: with the next one it may go. */
  async #turnover(target: WorkloadTarget): Promise<void> {
    const { workload, snapshots } = this;
    const [offset, length] = workload.popular();
    const steps = [
      () => this.#changing(() => snapshots.take()),
      () => workload.write(target, offset, length),
      () => target.checkpoint(),
      () => this.#changing(() => snapshots.take()),
      () => snapshots.remove(),
      () => snapshots.remove(),
      () => workload.write(target, offset, length),
    ];
    for (const step of steps) if (!target.closing()) await step();
    if (target.closing()) return;
    if (this.#world.scheduler.random.chance(0.5)) this.#world.temptFate(40);
    await target.checkpoint();
  }

  async #reclaim(): Promise<void> {
    if (this.#world.scheduler.random.chance(0.2)) this.#world.temptFate(60);
    await this.#world.reclaim();
  }

  /**
   * A sealed layer has blocks that only the volume refers to; it loses some of them, durably or not, perhaps while they are
   * being read, and then they are reclaimed.
   */
  async #reclaimStory(target: WorkloadTarget): Promise<void> {
    const { workload, snapshots } = this;
    const { random } = this.#world.scheduler;
    const [offset, length] = workload.popular();
    const steps = [
      () => workload.write(target, offset, length),
      () => this.#changing(() => snapshots.take()),
      () => snapshots.remove(),
      () => (random.chance(0.5) ? snapshots.remove() : Promise.resolve()),
      () => (random.chance(0.2) ? this.#clone() : Promise.resolve()),
    ];
    for (const step of steps) if (!target.closing()) await step();
    if (target.closing()) return;
    const beside: Promise<void>[] = [];
    if (random.chance(0.5)) beside.push(workload.read(target, offset, length));
    beside.push(workload.write(target, offset, length));
    if (random.chance(0.5)) await beside[beside.length - 1];
    if (random.chance(0.3)) beside.push(this.#changing(() => snapshots.take()));
    if (random.chance(0.4)) this.#world.temptFate(80);
    beside.push(this.#world.reclaim());
    await allOf(beside);
    if (random.chance(0.4)) this.#world.temptFate(10);
  }

  async #grow(): Promise<void> {
    const { random } = this.#world.scheduler;
    const size = this.volume!.size + random.pick([512, 3584, blockBytes, 65536, 1 << 20, 4 << 20]);
    if (this.#growing || size > this.#limit) return;
    this.#growing = true;
    this.#sizesTried.push(size);
    this.#sizesEver.add(size);
    try {
      this.#note(`grows to ${size}`);
      await this.#changing(() => this.volume!.grow(size));
      this.#size = size;
      this.#sizesTried = [];
      this.#note(`has ${size}`);
    } finally {
      this.#growing = false;
    }
  }

  async #clone(): Promise<void> {
    const world = this.#world;
    const { random } = world.scheduler;
    if (!world.room) return;
    const from = await this.snapshots.base();
    if (from === undefined) return;
    const clone = await world.references
      .run(async () => {
        world.moves.given++;
        const { oracle, base } = from;
        const size = oracle.size + random.pick([0, 0, 512, 1 << 20]);
        const id = random.bytes(16).toString("hex");
        const model = new ModelVolume(world, `clone ${id.slice(0, 4)}`, id, size, (sector) => oracle.content(sector));
        model.#note(`begins with snapshot ${base!.id.slice(0, 4)}`);
        await Volume.create(world.env(), { id, name: model.name, size, base: base! });
        return model;
      })
      .finally(from.release);
    clone.#note("is made");
    world.add(clone);
    await clone.open(false);
    if (world.closing()) return;
    await clone.attach();
    await clone.workload.run(clone.target(), 1, random.between(1, 8));
  }

  // ---- reverting ----------------------------------------------------------------------------------------------------

  /** Closes it, and makes it what one of its snapshots is; it has to be opened again. */
  async revert(): Promise<void> {
    const { disk, references } = this.#world;
    const env = this.#world.env();
    if (disk.failures > 0 || this.volume!.info().state !== "ok") return;
    const to = await this.snapshots.base();
    if (to === undefined) return;
    const { id } = to.base!;
    if ((await baseOf(env, this.id)) !== id) {
      this.#note(`is being reverted to snapshot ${id.slice(0, 4)}`);
      this.#reverting = { id, oracle: to.oracle };
      const token = this.oracle.flushStart();
      this.#world.moves.given++;
      this.leave();
      await this.volume!.close();
      this.volume = undefined;
      this.oracle.flushDone(token);
      await references.run(() => revertVolume(env, this.id, id));
      this.#become(to.oracle);
    }
    to.release();
  }

  /** The process died while it was being reverted: it is what it was, or what it was to become. */
  async #learnOfRevert(): Promise<void> {
    if (this.#reverting === undefined) return;
    if ((await baseOf(this.#world.env(), this.id)) === this.#reverting.id) this.#become(this.#reverting.oracle);
    else this.#note("was not reverted");
    this.#reverting = undefined;
  }

  #become(snapshot: SnapshotOracle): void {
    this.#note("is reverted");
    this.#reverting = undefined;
    this.oracle = new Oracle((sector) => snapshot.content(sector));
    this.#size = snapshot.size;
    this.#sizesTried = [];
    this.workload = this.#newWorkload();
  }

  #note(text: string): void {
    this.#world.note(this.name === "disk" ? text : `${this.name}: ${text}`);
  }
}
