import { UllageError } from "../../src/base/errors.ts";
import { pageBytes, SimInode, type Survival } from "./sim-inode.ts";
import { type SimDirectory, SimNamespace } from "./sim-namespace.ts";
import { SimFileSystem } from "./sim-file-system.ts";
import { Random } from "./random.ts";
import type { SimScheduler } from "./sim-scheduler.ts";

/** What goes wrong, and what kind of file system this is. May be changed at any time. */
export interface SimDiskOptions {
  /** how much fits; more is ENOSPC after a prefix */
  capacityPages: number;
  /** the probability that a write of file data fails, after a prefix, with EIO or ENOSPC */
  writeErrors: number;
  /** the probability that write-back fails: told once per descriptor by a sync, pages lost */
  syncErrors: number;
  /** the probability that create, rename, unlink, truncate, punch or a directory sync fails and changes nothing */
  metadataErrors: number;
  /** Which files the three above concern. */
  faulty: (path: string) => boolean;
  /** the probability that a read on the calling thread is incomplete (RWF_NOWAIT found cold pages) */
  coldReads: number;
  /** false: punch answers false, as where fallocate is not supported */
  punches: boolean;
  /**
   * Extents that were never synced may hold old bytes of anyone after a power cut, where the page never had a durable
   * extent or a punch before. (ext4 data=writeback does it after a punch, too: there a volume warns that it can promise nothing.)
   */
  staleExtents: boolean;
  /** XFS: once a file was read, SEEK_DATA claims what was reserved and lost */
  seekClaimsReserved: boolean;
  /** The name that `binding` tells. */
  fileSystem: string;
  /** /proc/sys/kernel/random/boot_id cannot be read */
  bootIdHidden: boolean;
  /** the kernel has no STATX_MNT_ID_UNIQUE */
  mountIdHidden: boolean;
}

const defaults: SimDiskOptions = {
  capacityPages: 1 << 30,
  writeErrors: 0,
  syncErrors: 0,
  metadataErrors: 0,
  faulty: () => true,
  coldReads: 0.2,
  punches: true,
  staleExtents: false,
  seekClaimsReserved: false,
  fileSystem: "ext4",
  bootIdHidden: false,
  mountIdHidden: false,
};

/**
 * The kernel and the disk below one simulated machine. Processes come and go (`start`, `kill`), the machine loses power
 * (`powerCut`), the file system is unmounted under it (`remount`). What survives is picked by the seed from everything
 * that the calls made so far permit.
 */
export class SimDisk {
  readonly options: SimDiskOptions;
  readonly scheduler: SimScheduler;
  readonly random: Random;
  readonly namespace: SimNamespace;
  readonly locks = new Map<SimDirectory, SimFileSystem>();
  readonly device = 2049;
  bootId = "";
  mountId = 0;
  /** Calls that took effect, of all processes. */
  calls = 0;
  /** Write-backs that failed. */
  failures = 0;
  #seq = 0;
  #crashAt = Infinity;
  #process: SimFileSystem | undefined;
  #nextInode = 12;
  /** Files without a name that a descriptor still holds. */
  readonly #orphans = new Set<SimInode>();
  /** Bytes that were freed: what a stale extent shows. */
  #freed: Buffer[] = [];

  constructor(scheduler: SimScheduler, options: Partial<SimDiskOptions> = {}) {
    this.options = { ...defaults, ...options };
    this.scheduler = scheduler;
    // A generator of its own: what a crash leaves does not depend on how many tasks ran after the last call.
    this.random = new Random(scheduler.random.next());
    this.namespace = new SimNamespace((inode) => this.#detach(inode));
    this.#boot();
    this.#mount();
  }

  /** A process on this machine; one lives at a time. */
  start(): SimFileSystem {
    this.#process = new SimFileSystem(this);
    return this.#process;
  }

  /** The position of a change that happens now. */
  tick(): number {
    return ++this.#seq;
  }

  get now(): number {
    return this.#seq;
  }

  /** The process or the machine dies in the middle of the `calls`-th call from now; what it does from then on is void. */
  crashAfter(calls: number): void {
    this.#crashAt = this.calls + calls;
  }

  disarm(): void {
    this.#crashAt = Infinity;
  }

  /** A call is about to take effect. `dying`: the process dies in it, a part may still happen; `dead`: nothing may. */
  enter(process: SimFileSystem): "alive" | "dying" | "dead" {
    if (process.dead) return "dead";
    this.calls++;
    if (this.calls < this.#crashAt) return "alive";
    process.dead = true;
    this.scheduler.halt();
    return "dying";
  }

  /**
   * `kill -9`: the page cache stays. Calls in the thread pool may have run, in part or not at all; the process is gone
   * once they have ended, so nothing lands later.
   */
  kill(): void {
    this.disarm();
    const process = this.#process;
    if (!process) return;
    process.dead = true;
    const inFlight = [...process.inFlight];
    while (inFlight.length > 0) {
      const [call] = inFlight.splice(this.random.below(inFlight.length), 1);
      if (this.random.chance(0.5)) call.land();
    }
    process.closeAll();
    this.locks.clear();
    this.#process = undefined;
    this.scheduler.reset();
  }

  /** `kill -9`, then the container starts again: the same page cache behind a new mount. */
  restartContainer(): void {
    this.kill();
    this.#mount();
  }

  /** Power is lost: a new boot, and of everything that no sync covered any part. */
  powerCut(survival?: Survival): void {
    this.#loseCache(survival);
    this.#boot();
    this.#mount();
  }

  /** The disk went away and came back, or a snapshot of it was mounted: a power cut without a new boot id. */
  remount(survival?: Survival): void {
    this.#loseCache(survival);
    this.#mount();
  }

  /** Background write-back of one file fails while nobody syncs it. */
  failWriteback(inode: SimInode, seq = this.tick()): void {
    this.failures++;
    inode.failWriteback(seq, this.random, this.random.chance(0.7) ? "EIO" : "ENOSPC");
  }

  /** Memory pressure: clean pages are dropped, what was lost shows. */
  evict(): void {
    for (const inode of this.namespace.inodes()) inode.evict();
  }

  newInode(): SimInode {
    return new SimInode(this.#nextInode++);
  }

  get freePages(): number {
    let used = 0;
    for (const inode of this.namespace.inodes()) used += inode.allocatedPages;
    for (const inode of this.#orphans) used += inode.allocatedPages;
    return Math.max(0, this.options.capacityPages - used);
  }

  /** A descriptor was closed. */
  closed(inode: SimInode): void {
    inode.opens--;
    if (inode.opens === 0) this.#orphans.delete(inode);
  }

  lock(process: SimFileSystem, path: string): SimDirectory {
    const directory = this.namespace.directory(path);
    if (this.locks.has(directory)) throw new UllageError("locked", `${path} is locked by another process`);
    this.locks.set(directory, process);
    return directory;
  }

  #detach(inode: SimInode): void {
    if (inode.opens > 0) this.#orphans.add(inode);
    for (const state of inode.pages.values()) {
      if (state.cached && this.#freed.length < 64) this.#freed.push(state.cached);
    }
  }

  #loseCache(survival: Survival | undefined): void {
    this.kill();
    const choices: Survival[] = ["nothing", "everything", "mixed", "mixed"];
    const all = new Set([...this.namespace.inodes(), ...this.#orphans]);
    this.namespace.cut(this.random, survival ?? this.random.pick(choices));
    this.#orphans.clear();
    const stale = this.options.staleExtents ? (): Buffer => this.#stalePage() : undefined;
    const named = new Set(this.namespace.inodes());
    for (const inode of named) {
      all.delete(inode);
      inode.links = 1;
      inode.opens = 0;
      inode.cut(this.random, survival ?? this.random.pick(choices), stale);
    }
    for (const inode of all) this.#detach(inode);
  }

  #stalePage(): Buffer {
    if (this.#freed.length > 0 && this.random.chance(0.7)) return this.random.pick(this.#freed);
    return Buffer.alloc(pageBytes, this.random.between(1, 255));
  }

  #boot(): void {
    this.bootId = this.random.bytes(16).toString("hex");
  }

  #mount(): void {
    this.mountId = this.mountId + this.random.between(1, 5);
  }
}
