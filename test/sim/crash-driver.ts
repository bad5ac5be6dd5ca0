import type { FileSystem } from "../../src/base/file-system.ts";
import { describeError, errnoOf, IoError, SourceError, UllageError } from "../../src/base/errors.ts";
import type { Blob } from "../../src/blob/blob.ts";
import type { VolumeLimits } from "../../src/volume/limits.ts";
import { layersDir, poisonPath, runtimePoisonPath, volumeDir } from "../../src/volume/paths.ts";
import type { OpenVolumeOptions, VolumeEnvironment } from "../../src/volume/types.ts";
import { Volume } from "../../src/volume/volume.ts";
import { type Loss, Oracle } from "./oracle.ts";
import { Random } from "./random.ts";
import { SimBlob, SimSource, unitBytes } from "./sim-blob.ts";
import { SimDisk, type SimDiskOptions } from "./sim-disk.ts";
import type { SimFileSystem } from "./sim-file-system.ts";
import { SimInode } from "./sim-inode.ts";
import { SimScheduler } from "./sim-scheduler.ts";
import { Workload, type WorkloadTarget } from "./workload.ts";

/*
 * One seed is one world: a disk, a volume on it, and several lives of the process that serves the volume. Each life
 * recovers, proves every sector against the oracle, works, and ends in a crash or a clean stop:
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
}

/** Where the header of a log has its flags (docs/FORMAT.md). */
const strayByte = 84;
const dataDir = "/data";
const runtimeDir = "/run";
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

class World {
  readonly notes: string[] = [];
  readonly #profile: Profile;
  readonly #random: Random;
  readonly #scheduler: SimScheduler;
  readonly #disk: SimDisk;
  readonly #oracle: Oracle;
  readonly #workload: Workload;
  readonly #id: string;
  readonly #size: number;
  readonly #source: SimSource | undefined;
  readonly #limits: Partial<VolumeLimits>;
  readonly #faults: Partial<SimDiskOptions>;
  readonly #clean: Partial<SimDiskOptions>;
  readonly #remoteWriter: boolean;
  #process!: SimFileSystem;
  #env!: VolumeEnvironment;
  #blob: SimBlob | undefined;
  #volume: Volume | undefined;
  /** Write-backs that have failed before the last time the disk's content was taken for what it is. */
  #failuresForgiven = 0;
  #remoteAttached = false;
  /** Durability rule 16: somebody who lived through a power cut believes in lost writes. */
  #refusalDue = false;
  /** A recovery since the last reopening may have found that the page cache was lost. */
  #lossPossible = false;
  #faultsOn = false;
  #closing = false;
  #reopening = false;
  /** Units of the blob went away under the readers. */
  #unitsLost = false;

  constructor(seed: number, profile: Profile) {
    this.#profile = profile;
    this.#scheduler = new SimScheduler(seed);
    const { random } = this.#scheduler;
    this.#random = random;
    this.#clean = {
      coldReads: random.pick([0, 0.2, 0.6]),
      punches: random.chance(0.85),
      staleExtents: profile.ends.every((end) => end === "power" || end === "close") && random.chance(0.3),
      seekClaimsReserved: random.chance(0.5),
      ...profile.disk?.(random),
    };
    this.#faults = profile.faults?.(random) ?? {};
    this.#disk = new SimDisk(this.#scheduler, this.#clean);
    const chunk = 4 * 1024 * 1024;
    this.#size = random.pick([1, 1, 2, 2, 3]) * chunk + random.pick([0, 0, 4096, 64 * 1024, 1024 * 1024, 512, 3584]);
    this.#id = idOf(random);
    if (random.chance(0.7)) {
      const blobSize = random.pick([this.#size, this.#size - 5000, 3 * 65536, 65536 + 13, chunk + 4096]);
      this.#source = new SimSource(idOf(random), Math.min(blobSize, this.#size));
    }
    const source = this.#source;
    const zeros = Buffer.alloc(512);
    this.#oracle = new Oracle((sector) => source?.sector(sector) ?? zeros);
    this.#workload = new Workload(this.#scheduler, this.#oracle, this.#size, profile.stories ?? false);
    this.#limits = {
      logReserveBytes: 4096,
      logExtendBytes: random.pick([4096, 16384]),
      checkpointLogBytes: random.pick([400, 2000, 1 << 20]),
      logHardFactor: random.pick([2, 4]),
      sliceChunks: random.pick([1, 1, 65536]),
      dirtyBytes: random.pick([65536, 1 << 30]),
      slowWriteMs: random.pick([-1, 2, 2]),
    };
    this.#remoteWriter = profile.remote ?? false;
  }

  async run(): Promise<void> {
    await this.#create();
    const lives = this.#random.between(2, 4);
    for (let life = 1; life <= lives; life++) {
      this.#note(`--- life ${life}`);
      if (!(await this.#life(life === lives))) return;
    }
  }

  async #create(): Promise<void> {
    const fs = this.#start();
    const directories = [dataDir, runtimeDir, `${dataDir}/volumes`, layersDir(dataDir), `${dataDir}/blobs`];
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
        id: this.#id,
        name: "disk",
        size: this.#size,
        ...(this.#source && { blob: { id: this.#source.id, size: this.#source.size } }),
      });
    };
    await this.#scheduler.complete(setUp());
    this.#crash(this.#random.pick(this.#profile.ends));
  }

  /** @returns false when nothing more can be asked of this world */
  async #life(last: boolean): Promise<boolean> {
    if (!(await this.#openSomehow())) return false;
    this.#setFaults(false);
    // At times the clients are faster than what the volume does in the background after it was opened.
    if (last || this.#random.chance(0.75)) await this.#scheduler.complete(this.#workload.verify(this.#target()));
    if (last) {
      await this.#scheduler.complete(this.#volume!.close());
      this.#checkNothingOpen();
      return true;
    }
    this.#setFaults(true);
    if (this.#source) this.#source.errors = this.#random.pick([0, 0, 0.2]);
    const end = this.#random.pick(this.#profile.ends);
    // Mostly short; long enough at times for records to fill several pages of the log.
    const long = this.#random.chance(0.12);
    const callLimit = long ? 2500 : this.#random.pick([40, 200, 600]);
    if (end !== "close" && this.#random.chance(0.85)) this.#disk.crashAfter(this.#random.between(1, callLimit));
    const operations = long ? this.#random.between(40, 100) : this.#random.between(3, 20);
    const work = this.#workload.run(this.#target(), this.#random.between(1, this.#profile.stories ? 2 : 4), operations);
    if (end === "close" && this.#random.chance(0.4)) {
      // the volume is closed in the middle of it
      await this.#settle(Promise.race([work, this.#steps(this.#random.between(1, 60))]));
      return this.#end(end, work);
    }
    await this.#settle(work);
    return this.#end(end);
  }

  /** Waits; halting (a crash) is fine, any other failure is not. */
  async #settle(work: Promise<unknown>): Promise<"settled" | "halted"> {
    work.catch(() => {});
    const how = await this.#scheduler.run(work);
    if (how === "settled") await work;
    return how;
  }

  async #steps(count: number): Promise<void> {
    for (let step = 0; step < count; step++) await this.#scheduler.pause("before closing");
  }

  async #end(end: End, work: Promise<void> = Promise.resolve()): Promise<boolean> {
    if (end === "close" && !this.#process.dead) {
      this.#note("close");
      this.#remoteAttached = false; // connections have ended before
      this.#closing = true;
      const token = this.#oracle.flushStart();
      this.#disk.crashAfter(this.#random.chance(0.3) ? this.#random.between(1, 40) : 1 << 30);
      const closing = this.#volume!.close();
      const how = await this.#scheduler.run(closing);
      if (how === "settled") {
        const failed = await closing.then(
          () => undefined,
          (error: unknown) => describeError(error),
        );
        this.#note(failed === undefined ? "closed" : `close failed: ${failed}`);
        if (failed === undefined && this.#volume!.info().state !== "poisoned") {
          this.#oracle.flushDone(token);
        } else if (failed !== undefined && !this.#faultsOn) throw new Error(`close failed: ${failed}`);
        this.#checkNothingOpen();
        await this.#settle(work);
      }
      return this.#crash(this.#random.pick(["kill", "power"] as const));
    }
    return this.#crash(end === "close" ? "power" : end);
  }

  /** @returns false when the process died blind: it knew of a failed sync and could tell nobody */
  #crash(end: End): boolean {
    this.#disk.disarm();
    this.#note(`crash: ${end}`);
    this.#disk.kill(); // calls in the thread pool may still land
    const blind = this.#mustKnowOfPoison();
    this.#volume = undefined;
    this.#closing = false;
    this.#reopening = false;
    this.#setFaults(false);
    const failed = this.#disk.failures > this.#failuresForgiven;
    const { bootIdHidden, mountIdHidden, fileSystem, punches } = this.#disk.options;
    // Where blocks without an owner may have data, only an unchanged mount proves that the page cache survived.
    const remounted = mountIdHidden || end === "container";
    const weak = bootIdHidden || fileSystem === "zfs" || (remounted && (!punches || this.#straysPossible()));
    let loss: Loss;
    switch (end) {
      case "kill":
      case "close":
        loss = failed || weak ? "unflushed, cache kept" : "nothing";
        break;
      case "container":
        this.#disk.restartContainer();
        loss = failed || weak ? "unflushed, cache kept" : "nothing";
        break;
      case "remount":
        this.#disk.remount();
        loss = "unflushed, cache kept";
        break;
      case "power":
        this.#disk.powerCut();
        loss = "unflushed";
        break;
    }
    if (end === "remount" || end === "power") this.#failuresForgiven = this.#disk.failures;
    else if (blind) return false;
    this.#oracle.crash(loss);
    if (end === "power" && this.#remoteAttached) this.#refusalDue = true;
    const clientsLive = end !== "power" || this.#remoteWriter || bootIdHidden;
    if (clientsLive && loss !== "nothing") this.#lossPossible = true;
    this.#start();
    return true;
  }

  /** Whether a log says that blocks without an owner may have data: it began after a kill and they are not swept yet. */
  #straysPossible(): boolean {
    const directory = this.#disk.namespace.directory(volumeDir(dataDir, this.#id));
    return [...directory.entries].some(([name, node]) => {
      const page = node instanceof SimInode ? node.pages.get(0)?.cached : undefined;
      return name.startsWith("intent.") && page !== undefined && (page[strayByte] & 1) === 1;
    });
  }

  /**
   * A process that was told of a failed sync of head or log leaves a mark for the next one (durability rule 6).
   * @returns true when it died before it could
   */
  #mustKnowOfPoison(): boolean {
    const told = this.#process.syncErrorsTold.filter(({ path }) => /layers|intent/.test(path));
    const places = [poisonPath(volumeDir(dataDir, this.#id)), runtimePoisonPath(runtimeDir, this.#id)];
    if (told.length === 0 || places.some((path) => this.#disk.namespace.lookup(path) !== undefined)) return false;
    // A log that failed to be created is none to be marked for; and so many other calls may come before the mark's.
    const ours = told.find(({ path }) => path.includes("layers") || this.#volume?.info().state === "poisoned");
    if (ours && !this.#reopening && this.#disk.calls - ours.call > 60) {
      throw new Error("a sync failed, and no mark of it was left");
    }
    return true;
  }

  #start(): FileSystem {
    this.#blob = undefined;
    this.#process = this.#disk.start();
    this.#env = {
      fs: this.#process,
      clock: this.#scheduler.clock,
      randomBytes: (length) => this.#random.bytes(length),
      dataDir,
      runtimeDir,
      limits: this.#limits,
      log: (level, message) => this.#note(`log ${level}: ${message}`),
    };
    return this.#process;
  }

  /** Opens the volume, through crashes and faults. @returns false when the seed ends here */
  async #openSomehow(): Promise<boolean> {
    for (let attempt = 0; attempt < 3 && this.#random.chance(this.#profile.crashInOpen); attempt++) {
      this.#setFaults(this.#random.chance(0.5) && !this.#profile.alwaysTakes);
      this.#disk.crashAfter(this.#random.between(1, this.#random.pick([15, 40, 100])));
      const how = await this.#scheduler.run(this.#tryOpen());
      if (how === "settled") {
        // Opened, or refused; the rest of the calls are those that go on beside.
        if (this.#volume) await this.#scheduler.run(this.#workload.verify(this.#target()));
      }
      if (!this.#crash(this.#random.pick(this.#profile.ends))) return false;
    }
    this.#disk.disarm();
    this.#setFaults(this.#random.chance(0.5) && !this.#profile.alwaysTakes);
    for (let attempt = 0; ; attempt++) {
      const error = await this.#scheduler.complete(this.#tryOpen());
      if (error === undefined) break;
      if (!this.#faultsOn || attempt > 2) throw error;
      this.#checkNothingOpen();
      this.#setFaults(false);
    }
    return true;
  }

  /** @returns why the volume cannot be opened; undefined: `#volume` is open */
  async #tryOpen(): Promise<unknown> {
    try {
      await this.#open(false);
      await this.#attach();
      return undefined;
    } catch (error) {
      this.#note(`open: ${describeError(error)}`);
      if (this.#volume)
        await this.#volume.close().catch((failure: unknown) => this.#note(`close: ${describeError(failure)}`));
      this.#volume = undefined;
      await this.#blob?.file.close();
      this.#blob = undefined;
      const code = error instanceof UllageError ? error.code : "";
      if (code === "poisoned" && Object.keys(this.#faults).length === 0) return error;
      if (code === "lost-unflushed" && !this.#failuresEver() && !this.#lossPossible) return error;
      if (code !== "poisoned" && code !== "lost-unflushed") return error;
    }
    try {
      // an operator looked at it
      this.#reopening = true;
      this.#oracle.crash("unflushed, cache kept");
      await this.#open(true);
      this.#failuresForgiven = this.#disk.failures;
      this.#process.syncErrorsTold.length = 0;
      this.#reopening = false;
      this.#lossPossible = false;
      this.#refusalDue = false;
      await this.#attach();
      return undefined;
    } catch (error) {
      this.#note(`reopen: ${describeError(error)}`);
      return error;
    }
  }

  #failuresEver(): boolean {
    return this.#disk.failures > 0;
  }

  async #open(acceptLoss: boolean): Promise<void> {
    const options: OpenVolumeOptions = {
      id: this.#id,
      name: "disk",
      settings: { sync: "normal", remoteAfterPowerLoss: "refuse" },
      openBlob: async (): Promise<Blob> => {
        const file = await this.#env.fs.open(`${dataDir}/blobs/${this.#source!.id}`, "write");
        this.#blob = new SimBlob(this.#disk, this.#source!, file);
        return this.#blob;
      },
      acceptLoss,
    };
    this.#volume = await Volume.open(this.#env, options);
    this.#note(`opened: ${this.#volume.info().state}`);
  }

  async #attach(): Promise<void> {
    await this.#volume!.attach({
      protocol: "nbd",
      address: "model",
      remote: this.#remoteWriter,
      writable: true,
      close: () => {},
    });
    if (this.#refusalDue) throw new Error("remote writers were connected when the power went, and nobody is told");
    this.#remoteAttached = this.#remoteWriter;
  }

  #setFaults(on: boolean): void {
    this.#faultsOn = on && Object.keys(this.#faults).length > 0;
    Object.assign(this.#disk.options, { writeErrors: 0, syncErrors: 0, metadataErrors: 0, capacityPages: 1 << 30 });
    Object.assign(this.#disk.options, this.#clean, this.#faultsOn ? this.#faults : {});
    if (this.#source) this.#source.errors = 0;
  }

  #checkNothingOpen(): void {
    const open = [...this.#process.files].map((file) => file.path).filter((path) => !path.includes("/blobs/"));
    const running = [...this.#process.inFlight].map((call) => call.label).filter((label) => !label.includes("/blobs/"));
    if (running.length > 0) throw new Error(`calls are still running: ${running.join(", ")}`);
    if (open.length > 0) throw new Error(`descriptors were left open: ${open.join(", ")}`);
    if (this.#disk.locks.size > 0) throw new Error("the volume's directory was left locked");
  }

  #target(): WorkloadTarget {
    const volume = this.#volume!;
    const process = this.#process;
    return {
      device: volume,
      checkpoint: () => volume.checkpoint(),
      loseUnit: (offset) => {
        const blob = this.#blob;
        if (!blob || this.#faultsOn || process.dead || offset >= blob.size) return;
        this.#unitsLost = true;
        blob.lose(Math.floor(offset / unitBytes));
        this.#note(`the blob loses its unit at ${offset}`);
      },
      dead: () => process.dead,
      closing: () => this.#closing,
      onError: (what, error) => {
        if (process.dead) return;
        const faulty = this.#faultsOn && !this.#profile.alwaysTakes?.some((kind) => what.includes(kind));
        const ours = faulty || this.#failuresEver() || this.#unitsLost;
        const tooLate = this.#closing && errnoOf(error) === "ESHUTDOWN";
        const explained = error instanceof SourceError || tooLate || (error instanceof IoError && ours);
        if (!explained) throw new Error(`${what} failed: ${describeError(error)}`, { cause: error });
      },
      note: (text) => this.#note(text),
    };
  }

  #note(text: string): void {
    this.notes.push(`${this.#disk.calls} ${text}`);
  }
}
