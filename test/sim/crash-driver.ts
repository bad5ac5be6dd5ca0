import type { FileSystem } from "../../src/base/file-system.ts";
import type { Clock } from "../../src/base/clock.ts";
import { describeError, UllageError } from "../../src/base/errors.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { dropLayers } from "../../src/daemon/snapshots/layer-files.ts";
import { reclaim } from "../../src/daemon/snapshots/reclaim.ts";
import { Turns } from "../../src/daemon/turns.ts";
import type { VolumeLimits } from "../../src/volume/limits.ts";
import { layersDir } from "../../src/volume/paths.ts";
import type { VolumeEnvironment } from "../../src/volume/types.ts";
import { Volume } from "../../src/volume/volume.ts";
import { ModelVolume, type ModelWorld } from "./model-volume.ts";
import { Random } from "./random.ts";
import { SimBlob, SimSource, unitBytes } from "./sim-blob.ts";
import { SimDisk, type SimDiskOptions } from "./sim-disk.ts";
import type { SimFileSystem } from "./sim-file-system.ts";
import { SimScheduler } from "./sim-scheduler.ts";

/*
 * One seed is one world: a disk, a volume on it, and several lives of the process that serves the volume. Each life
 * recovers, proves every sector of volume, snapshots and clones against the oracles, works, and ends in a crash or a clean
 * stop:
 *
 *     open (a crash may strike here too) -> verify -> clients at work -> kill | container | power | remount | close
 *
 * What may be lost depends on how the life before ended and on what went wrong in it; the oracle is told before the
 * next life begins.
 */

export type End = "kill" | "container" | "power" | "remount" | "close";

/** What a group of seeds is about. */
export interface Profile {
  name: string;
  ends: readonly End[];
  /** the probability that a crash strikes while the volume is being opened */
  crashInOpen: number;
  disk?: (random: Random) => Partial<SimDiskOptions>;
  /** Faults that begin once the volume was created. */
  faults?: (random: Random) => Partial<SimDiskOptions>;
  /** Operations that the faults must not touch; they begin after the volume was opened then. */
  alwaysTakes?: readonly string[];
  /** the clients tell stories of single blocks, mostly (`Workload`) */
  stories?: boolean;
  /** every life has a remote writer (durability rule 16) */
  remote?: boolean;
  /** snapshots are taken, read and removed, clones are made, and the volume grows */
  structure?: boolean;
  /** and blocks that nothing refers to any more are freed */
  reclaim?: boolean;
}

/** Clones are volumes, too. */
const maxVolumes = 3;
const dataDir = "/data";
const runtimeDir = "/run";
const slowFiles = ["/layers/", "/maps/", "intent", "snapshot.", "map."];
const idOf = (random: Random): string => random.bytes(16).toString("hex");

/** Runs one seed. @throws CrashModelError */
export async function runSeed(seed: number, profile: Profile): Promise<void> {
  const world = new World(seed, profile);
  try {
    await world.run();
  } catch (error) {
    throw new CrashModelError(seed, profile, world.notes, error);
  }
}

/** What went wrong, and how to see it again. */
export class CrashModelError extends Error {
  readonly seed: number;

  constructor(seed: number, profile: Profile, notes: string[], cause: unknown) {
    const tail = process.env["ULLAGE_TRACE"] === undefined ? notes.slice(-12) : notes;
    super(
      `${profile.name}: seed ${seed}: ${describeError(cause)}\n` +
        `  replay: ULLAGE_TRACE=1 ULLAGE_SEED=${seed} sh bin/node --test test/sim/crash-model.test.ts\n` +
        tail.map((note) => `    ${note}`).join("\n"),
      { cause },
    );
    this.name = "CrashModelError";
    this.seed = seed;
  }
}

class World implements ModelWorld {
  readonly notes: string[] = [];
  readonly profile: Profile;
  readonly scheduler: SimScheduler;
  readonly disk: SimDisk;
  /** The volume, and clones that were made. */
  readonly #volumes: ModelVolume[];
  readonly #random: Random;
  readonly #source: SimSource | undefined;
  readonly #limits: Partial<VolumeLimits>;
  readonly #faults: Partial<SimDiskOptions>;
  readonly #clean: Partial<SimDiskOptions>;
  #process!: SimFileSystem;
  #env!: VolumeEnvironment;
  #references = new Turns();
  #reclaims = new Turns();
  moves = { given: 0, removed: 0 };
  #opening: Promise<SimBlob> | undefined;
  #blob: SimBlob | undefined;
  #faultsOn = false;
  #closing = false;
  /** A crash is to come while the clients work. */
  #mayCrash = false;
  /** Units of the blob went away under the readers. */
  #unitsLost = false;

  constructor(seed: number, profile: Profile) {
    this.profile = profile;
    this.scheduler = new SimScheduler(seed);
    const { random } = this.scheduler;
    this.#random = random;
    this.scheduler.slow = random.pick([undefined, undefined, undefined, ...slowFiles]);
    if (profile.reclaim && random.chance(0.4)) {
      // A read that is overtaken by all of reclaim (durability rule 5).
      this.scheduler.slow = "read /data/layers/";
      this.scheduler.slowness = 8;
    }
    this.#clean = {
      coldReads: random.pick([0, 0.2, 0.6]),
      punches: random.chance(0.85),
      staleExtents: profile.ends.every((end) => end === "power" || end === "close") && random.chance(0.3),
      seekClaimsReserved: random.chance(0.5),
      ...profile.disk?.(random),
    };
    this.#faults = profile.faults?.(random) ?? {};
    this.disk = new SimDisk(this.scheduler, this.#clean);
    const chunk = 4 * 1024 * 1024;
    const size = random.pick([1, 1, 2, 2, 3]) * chunk + random.pick([0, 0, 4096, 64 * 1024, 1024 * 1024, 512, 3584]);
    const id = idOf(random);
    if (random.chance(0.7)) {
      const blobSize = random.pick([size, size - 5000, 3 * 65536, 65536 + 13, chunk + 4096]);
      this.#source = new SimSource(idOf(random), Math.min(blobSize, size));
    }
    const source = this.#source;
    const zeros = Buffer.alloc(512);
    this.#volumes = [new ModelVolume(this, "disk", id, size, (sector) => source?.sector(sector) ?? zeros)];
    this.#limits = {
      logReserveBytes: 4096,
      logExtendBytes: random.pick([4096, 16384]),
      checkpointLogBytes: random.pick([400, 2000, 1 << 20]),
      logHardFactor: random.pick([2, 4]),
      sliceChunks: random.pick([1, 1, 65536]),
      dirtyBytes: random.pick([65536, 1 << 30]),
      slowWriteMs: random.pick([-1, 2, 2]),
    };
  }

  async run(): Promise<void> {
    await this.#create();
    const lives = this.#random.between(2, 4);
    for (let life = 1; life <= lives; life++) {
      this.note(`--- life ${life}`);
      if (!(await this.#life(life === lives))) return;
    }
  }

  async #create(): Promise<void> {
    const fs = this.#start();
    const directories = [dataDir, runtimeDir, `${dataDir}/volumes`, layersDir(dataDir), `${dataDir}/blobs`];
    const [volume] = this.#volumes;
    const { id, name } = volume;
    const [size] = volume.sizes();
    const setUp = async (): Promise<void> => {
      for (const directory of directories) await fs.mkdir(directory);
      if (this.#source) {
        const file = await fs.open(`${dataDir}/blobs/${this.#source.id}`, "create");
        await file.truncate(Math.ceil(this.#source.size / 4096) * 4096);
        await file.datasync();
        await file.close();
      }
      for (const directory of ["/", dataDir, `${dataDir}/blobs`]) await fs.syncDirectory(directory);
      await Volume.create(this.#env, {
        id,
        name,
        size,
        ...(this.#source && { blob: { id: this.#source.id, size: this.#source.size } }),
      });
    };
    await this.scheduler.complete(setUp());
    this.#crash(this.#random.pick(this.profile.ends));
  }

  /** @returns false when nothing more can be asked of this world */
  async #life(last: boolean): Promise<boolean> {
    if (!(await this.#openSomehow())) return false;
    this.#setFaults(false);
    // At times the clients are faster than what the volume does in the background after it was opened.
    if (last || this.#random.chance(0.75)) await this.scheduler.complete(this.#verify());
    if (last) {
      await this.scheduler.complete(this.#close());
      this.#checkNothingOpen();
      return true;
    }
    if (this.profile.structure && this.#random.chance(0.25) && !(await this.#revert())) return false;
    this.#setFaults(true);
    if (this.#source) this.#source.errors = this.#random.pick([0, 0, 0.2]);
    const end = this.#random.pick(this.profile.ends);
    // Mostly short; long enough at times for records to fill several pages of the log.
    const long = this.#random.chance(0.12);
    const callLimit = long ? 2500 : this.#random.pick([40, 200, 600]);
    this.#mayCrash = end !== "close";
    if (this.#mayCrash && this.#random.chance(0.85)) this.disk.crashAfter(this.#random.between(1, callLimit));
    const operations = long ? this.#random.between(40, 100) : this.#random.between(3, 20);
    const work = Promise.all(
      this.#volumes.map((volume) => {
        const clients = this.#random.between(1, this.profile.stories ? 2 : 4);
        return volume.workload.run(volume.target(), clients, operations);
      }),
    );
    if (end === "close" && this.#random.chance(0.4)) {
      // the volume is closed in the middle of it
      await this.#settle(Promise.race([work, this.#steps(this.#random.between(1, 60))]));
      return this.#end(end, work);
    }
    await this.#settle(work);
    return this.#end(end);
  }

  /** A volume becomes what a snapshot of it is. @returns false when nothing more can be asked of this world */
  async #revert(): Promise<boolean> {
    const volume = this.#random.pick(this.#volumes);
    if (this.#random.chance(0.6)) this.disk.crashAfter(this.#random.between(1, 100));
    const how = await this.#settle(volume.revert());
    if (how === "halted") {
      if (!this.#crash(this.#random.pick(this.profile.ends)) || !(await this.#openSomehow())) return false;
      this.#setFaults(false);
    } else {
      this.disk.disarm();
      const error = volume.volume === undefined ? await this.scheduler.complete(volume.tryOpen()) : undefined;
      if (error !== undefined) throw error;
    }
    await this.scheduler.complete(this.#verify());
    return true;
  }

  /** Waits; halting (a crash) is fine, any other failure is not. */
  async #settle(work: Promise<unknown>): Promise<"settled" | "halted"> {
    work.catch(() => {});
    const how = await this.scheduler.run(work);
    if (how === "settled") await work;
    return how;
  }

  async #steps(count: number): Promise<void> {
    for (let step = 0; step < count; step++) await this.scheduler.pause("before closing");
  }

  async #verify(): Promise<void> {
    for (const volume of this.#volumes) await volume.verify();
  }

  async #close(): Promise<void> {
    for (const { volume } of this.#volumes) await volume!.close();
    await this.#references.run(() => Promise.resolve());
  }

  async #end(end: End, work: Promise<unknown> = Promise.resolve()): Promise<boolean> {
    this.#mayCrash = false;
    if (end === "close" && !this.#process.dead) {
      this.note("close");
      this.#closing = true;
      this.disk.crashAfter(this.#random.chance(0.3) ? this.#random.between(1, 40) : 1 << 30);
      const closing = Promise.all(this.#volumes.map((volume) => this.#closeOne(volume)));
      if ((await this.#settle(closing)) === "settled") {
        if (!this.profile.structure) this.#checkNothingOpen();
        if ((await this.#settle(work)) === "settled") {
          // a clone that was being opened meanwhile
          const late = Promise.all(this.#volumes.map((volume) => this.#closeOne(volume)));
          const last = late.then(() => this.#references.run(() => Promise.resolve()));
          if ((await this.#settle(last)) === "settled") this.#checkNothingOpen();
        }
      }
      return this.#crash(this.#random.pick(["kill", "power"] as const));
    }
    return this.#crash(end === "close" ? "power" : end);
  }

  async #closeOne(model: ModelVolume): Promise<void> {
    const { volume, oracle } = model;
    if (volume === undefined) return;
    model.leave(); // connections have ended before
    const token = oracle.flushStart();
    const failed = await volume.close().then(
      () => undefined,
      (error: unknown) => describeError(error),
    );
    model.volume = undefined;
    this.note(failed === undefined ? "closed" : `close failed: ${failed}`);
    if (failed === undefined && volume.info().state !== "poisoned") oracle.flushDone(token);
    else if (failed !== undefined && !this.#faultsOn) throw new Error(`close failed: ${failed}`);
  }

  /** @returns false when the process died blind: it knew of a failed sync and could tell nobody */
  #crash(end: End): boolean {
    this.disk.disarm();
    this.note(`crash: ${end}`);
    this.disk.kill(); // calls in the thread pool may still land
    const blind = this.#volumes.filter((volume) => volume.mustKnowOfPoison()).length > 0;
    for (const volume of this.#volumes) volume.died();
    this.#closing = false;
    this.#mayCrash = false;
    this.#setFaults(false);
    if (end === "container") this.disk.restartContainer();
    else if (end === "remount") this.disk.remount();
    else if (end === "power") this.disk.powerCut();
    if (blind && end !== "remount" && end !== "power") return false;
    for (const volume of this.#volumes) volume.crashed(end);
    this.#start();
    return true;
  }

  #start(): FileSystem {
    this.#opening = undefined;
    this.#blob = undefined;
    this.#references = new Turns();
    this.#reclaims = new Turns();
    this.#process = this.disk.start();
    this.#env = {
      fs: this.#process,
      clock: this.scheduler.clock,
      randomBytes: (length) => this.#random.bytes(length),
      dataDir,
      runtimeDir,
      limits: this.#limits,
      log: (level, message) => {
        this.note(`log ${level}: ${message}`);
        for (const volume of this.#volumes)
          if (message.startsWith(`volume ${volume.id} is poisoned`)) volume.poisoned();
      },
    };
    return this.#process;
  }

  /** Opens the volumes, through crashes and faults. @returns false when the seed ends here */
  async #openSomehow(): Promise<boolean> {
    for (let attempt = 0; attempt < 3 && this.#random.chance(this.profile.crashInOpen); attempt++) {
      this.#setFaults(this.#random.chance(0.5) && !this.profile.alwaysTakes);
      this.disk.crashAfter(this.#random.between(1, this.#random.pick([15, 40, 100])));
      const opening = this.#tryOpen();
      const how = await this.scheduler.run(opening);
      // Opened, or refused; the rest of the calls are those that go on beside.
      if (how === "settled" && (await opening) === undefined) await this.#settle(this.#verify());
      if (!this.#crash(this.#random.pick(this.profile.ends))) return false;
    }
    this.disk.disarm();
    this.#setFaults(this.#random.chance(0.5) && !this.profile.alwaysTakes);
    for (let attempt = 0; ; attempt++) {
      const error = await this.scheduler.complete(this.#tryOpen());
      if (error === undefined) break;
      if (!this.#faultsOn || attempt > 2) throw error;
      this.#checkNothingOpen();
      this.#setFaults(false);
    }
    return true;
  }

  /** @returns why a volume cannot be opened; undefined: all are open */
  async #tryOpen(): Promise<unknown> {
    for (const volume of this.#volumes) {
      const error = await volume.tryOpen();
      if (error === undefined) continue;
      for (const other of this.#volumes) await other.giveUp();
      await this.#references.run(() => Promise.resolve());
      return error;
    }
    return undefined;
  }

  // ---- what volumes ask of their world --------------------------------------------------------------------------------

  get references(): Turns {
    return this.#references;
  }

  get room(): boolean {
    return this.#volumes.length < maxVolumes;
  }

  env(): VolumeEnvironment {
    return this.#env;
  }

  process(): SimFileSystem {
    return this.#process;
  }

  openBlob(): Promise<Blob> {
    this.#opening ??= this.#openBlob();
    this.#opening.catch(() => (this.#opening = undefined));
    return this.#opening;
  }

  async #openBlob(): Promise<SimBlob> {
    const file = await this.#env.fs.open(`${dataDir}/blobs/${this.#source!.id}`, "write");
    this.#blob = new SimBlob(this.disk, this.#source!, file);
    return this.#blob;
  }

  openLayers(volumeId: string): Set<string> | undefined {
    return this.#volumes.find(({ id }) => id === volumeId)?.volume?.layerIds();
  }

  dropLayers(layers: string[]): void {
    const env = this.#env;
    const openLayers = (volumeId: string): Set<string> | undefined => this.openLayers(volumeId);
    this.#references
      .run(() => dropLayers(env, new Set(layers), { openLayers }))
      .catch((error: unknown) => this.note(`layers are left behind: ${describeError(error)}`));
  }

  async reclaim(): Promise<void> {
    const { random, clock } = this.scheduler;
    // Other work comes between any two slices.
    const hurried: Clock = {
      ...clock,
      now: () => clock.now() + (random.chance(0.3) ? 1 : 0),
      sleep: () => this.scheduler.pause("reclaim rests"), // a timer would let all others end first
    };
    const work = async (): Promise<void> => {
      this.note("reclaim");
      const { bytes, leftAlone, reasons } = await reclaim(
        {
          env: { ...this.#env, clock: hurried },
          references: this.#references,
          moves: () => ({ ...this.moves }),
          volumes: () => this.#volumes.map((model) => ({ id: model.id, inspect: (look) => look(model.volume) })),
          unsealedLayers: () => new Set(this.#volumes.flatMap(({ volume }) => [...(volume?.unsealedLayerIds() ?? [])])),
        },
        { signal: new AbortController().signal },
      );
      this.note(`reclaimed ${bytes}, left alone ${leftAlone}: ${reasons.join("; ")}`);
    };
    await this.#reclaims.run(work).catch((error: unknown) => {
      if (!(error instanceof UllageError) || error.code !== "reclaim-busy") throw error;
      this.note("reclaim gives up: snapshots come and go");
    });
  }

  dead(): boolean {
    return this.#process.dead;
  }

  closing(): boolean {
    return this.#closing;
  }

  faultsOn(): boolean {
    return this.#faultsOn;
  }

  explains(): boolean {
    return this.disk.failures > 0 || this.#unitsLost;
  }

  loseUnit(offset: number): void {
    const blob = this.#blob;
    if (!blob || this.#faultsOn || this.#process.dead || offset >= blob.size) return;
    this.#unitsLost = true;
    blob.lose(Math.floor(offset / unitBytes));
    this.note(`the blob loses its unit at ${offset}`);
  }

  temptFate(calls: number): void {
    if (this.#mayCrash) this.disk.crashAfter(this.#random.between(1, calls));
  }

  add(volume: ModelVolume): void {
    this.#volumes.push(volume);
  }

  #setFaults(on: boolean): void {
    this.#faultsOn = on && Object.keys(this.#faults).length > 0;
    Object.assign(this.disk.options, { writeErrors: 0, syncErrors: 0, metadataErrors: 0, capacityPages: 1 << 30 });
    Object.assign(this.disk.options, this.#clean, this.#faultsOn ? this.#faults : {});
    if (this.#source) this.#source.errors = 0;
  }

  #checkNothingOpen(): void {
    const open = [...this.#process.files].map((file) => file.path).filter((path) => !path.includes("/blobs/"));
    const running = [...this.#process.inFlight].map((call) => call.label).filter((label) => !label.includes("/blobs/"));
    if (running.length > 0) throw new Error(`calls are still running: ${running.join(", ")}`);
    if (open.length > 0) throw new Error(`descriptors were left open: ${open.join(", ")}`);
    if (this.disk.locks.size > 0) throw new Error("the volume's directory was left locked");
  }

  note(text: string): void {
    this.notes.push(`${this.disk.calls} ${text}`);
  }
}
