import type { BlockDevice } from "../../src/export/block-device.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { describeError, errnoOf } from "../../src/base/errors.ts";
import { type Oracle, type OracleOperation, stamp } from "./oracle.ts";
import type { Random } from "./random.ts";
import type { SimScheduler } from "./sim-scheduler.ts";

const blockBytes = 4096;
const chunkBytes = 4 * 1024 * 1024;

type Kind =
  | "writeBlocks"
  | "writeBytes"
  | "writeSectors"
  | "writeLarge"
  | "trim"
  | "trimLarge"
  | "zero"
  | "zeroAllocate"
  | "zeroLarge"
  | "flush"
  | "writeFlush"
  | "read"
  | "checkpoint"
  | "story"
  | "loseUnit"
  | "wait"
  | StructureKind;

/** What changes more than blocks. */
export type StructureKind =
  "snapshot" | "readSnapshot" | "removeSnapshot" | "clone" | "grow" | "turnover" | "reclaim" | "reclaimStory";

/** What the clients work on, for one life of the volume. */
export interface WorkloadTarget {
  device: BlockDevice;
  checkpoint(): Promise<void>;
  /** Does it, or finds that it can't be done now. */
  structure(kind: StructureKind): Promise<void>;
  /** @returns what `flushed` wants to be told */
  flushing(): number;
  /** A flush was answered. */
  flushed(token: number): void;
  /** The cache loses the blob's unit there: it has to be fetched again. */
  loseUnit(offset: number): void;
  /** The process was killed: nothing that follows counts as answered. */
  dead(): boolean;
  /** The volume is being closed: its clients start nothing new. */
  closing(): boolean;
  /** An operation failed. Throws when nothing explains it. */
  onError(what: string, error: unknown): void;
  note(text: string): void;
}

/**
 * Seeded clients of a block device. Each seed has its own taste: a few places that most operations hit, and how often
 * each kind of operation comes, so that thousands of seeds meet combinations that an even mixture never would.
 */
export class Workload {
  readonly #random: Random;
  readonly #scheduler: SimScheduler;
  readonly #oracle: Oracle;
  #size: number;
  readonly #kinds: Kind[] = [];
  readonly #places: number[];
  readonly #syncShare: number;
  /** All operations meet on a few blocks. */
  readonly #narrow: boolean;
  #operations = 0;

  /**
   * @param size bytes of the volume, at first
   * @param stories most operations are steps of the history of one block
   * @param structure snapshots are taken, read and removed, clones are made, and the volume grows
   * @param reclaim and what is unused is freed
   */
  constructor(
    scheduler: SimScheduler,
    oracle: Oracle,
    size: number,
    {
      stories = false,
      structure = false,
      reclaim = false,
    }: { stories?: boolean; structure?: boolean; reclaim?: boolean },
  ) {
    const { random } = scheduler;
    this.#random = random;
    this.#scheduler = scheduler;
    this.#oracle = oracle;
    this.#size = size;
    const usual: Partial<Record<Kind, number>> = {
      writeBlocks: 12,
      writeBytes: 5,
      writeSectors: 4,
      writeLarge: 1,
      trim: 5,
      trimLarge: 1,
      zero: 2,
      zeroAllocate: 2,
      zeroLarge: 1,
      flush: 6,
      writeFlush: 3,
      read: 6,
      checkpoint: 1,
      story: 2,
      loseUnit: 2,
      wait: 1,
      ...(structure ? structureKinds : {}),
      ...(reclaim ? reclaimKinds : {}),
    };
    for (const [kind, weight] of Object.entries(usual) as [Kind, number][]) {
      const rare = kind === "trimLarge" || kind === "zeroLarge" || kind === "writeLarge";
      const times = random.chance(rare ? 0.6 : 0.25) ? 0 : weight * random.pick([1, 1, 2, 3]);
      for (let count = 0; count < times; count++) this.#kinds.push(kind);
    }
    this.#kinds.push("writeBlocks", "flush");
    if (structure) this.#kinds.push("snapshot", "snapshot");
    if (reclaim) this.#kinds.push("reclaimStory", "removeSnapshot");
    if (stories) for (let count = this.#kinds.length; count > 0; count--) this.#kinds.push("story");
    this.#narrow = stories || random.chance(structure ? 0.6 : 0.3);
    this.#places = Array.from(
      { length: this.#narrow ? 1 : random.between(1, 6) },
      () => random.below(size / blockBytes - 1) * blockBytes,
    );
    const chunks = Math.floor((size - 1) / chunkBytes);
    if (random.chance(0.6)) this.#places.push(random.between(1, chunks) * chunkBytes - blockBytes);
    if (random.chance(0.3)) this.#places.push(Math.floor((size - 1) / blockBytes) * blockBytes);
    this.#syncShare = random.pick([0, 0.5, 0.5, 0.9]);
  }

  /** Runs several clients at once until each has done its operations. */
  async run(target: WorkloadTarget, clients: number, operations: number): Promise<void> {
    const work = Array.from({ length: clients }, async () => {
      for (let done = 0; done < operations && !target.closing(); done++) {
        if (this.#random.chance(0.6)) await this.#scheduler.pause("a client's next request");
        if (!target.closing()) await this.#one(target);
      }
    });
    await Promise.all(work);
  }

  async #one(target: WorkloadTarget): Promise<void> {
    const kind = this.#random.pick(this.#kinds);
    this.#size = target.device.size;
    switch (kind) {
      case "writeBlocks":
      case "writeBytes":
      case "writeSectors":
      case "writeLarge":
        return this.write(target, ...this.#range(kind));
      case "writeFlush":
        await this.write(target, ...this.#range("writeBlocks"));
        return target.closing() ? undefined : this.flush(target);
      case "trim":
      case "trimLarge":
        return this.#trim(target, ...this.#range(kind));
      case "zero":
      case "zeroLarge":
        return this.#zero(target, ...this.#range(kind), false);
      case "zeroAllocate":
        return this.#zero(target, ...this.#range(kind), true);
      case "flush":
        return this.flush(target);
      case "read":
        return this.#readAnywhere(target);
      case "checkpoint":
        target.note("checkpoint");
        await target.checkpoint().catch((error: unknown) => target.onError("checkpoint", error));
        return;
      case "story":
        return this.#story(target);
      case "loseUnit":
        target.loseUnit(this.#random.pick(this.#places));
        return;
      case "wait":
        return this.#scheduler.clock.sleep(this.#random.between(1, 2000));
      case "snapshot":
      case "readSnapshot":
      case "removeSnapshot":
      case "clone":
      case "grow":
      case "turnover":
      case "reclaim":
      case "reclaimStory":
        return target.structure(kind);
    }
  }

  /** What happens to one block, step by step: most faults need a history there that chance alone seldom writes. */
  async #story(target: WorkloadTarget): Promise<void> {
    const block = this.#random.pick(this.#places) + this.#random.below(2) * blockBytes;
    if (block + blockBytes > this.#size) return;
    const steps = ["write", "write", "write", "trim", "trim", "flush", "flush", "part"] as const;
    for (let left = this.#random.between(3, 8); left > 0 && !target.closing(); left--) {
      const step = this.#random.pick(steps);
      if (step === "write") await this.write(target, block, blockBytes);
      else if (step === "trim") await this.#trim(target, block, blockBytes);
      else if (step === "part") await this.write(target, block + this.#random.below(4000), this.#random.between(1, 96));
      else await this.flush(target);
    }
  }

  /** A range of blocks that is written often. */
  popular(): [number, number] {
    return this.#range("writeBlocks");
  }

  #range(kind: Kind): [number, number] {
    const random = this.#random;
    const place = random.chance(this.#narrow ? 0.98 : 0.85)
      ? random.pick(this.#places)
      : random.below(this.#size / blockBytes - 1) * blockBytes;
    let offset = place + random.below(this.#narrow ? 2 : 4) * blockBytes;
    let length = random.pick(this.#narrow ? [1, 1, 2] : [1, 1, 1, 2, 3, 8]) * blockBytes;
    if (kind === "writeBytes" || ((kind === "trim" || kind === "zero") && random.chance(0.5))) {
      offset += random.below(blockBytes);
      length = random.pick([1, 13, 511, 512, 600, 4096, 5000, 9000]);
    } else if (kind === "writeSectors") {
      offset += random.below(8) * 512;
      length = random.between(1, 12) * 512;
    } else if (kind === "writeLarge") {
      length = random.between(16, 40) * blockBytes;
    } else if (kind === "trimLarge" || kind === "zeroLarge") {
      offset = random.chance(0.5) ? 0 : offset;
      length = random.pick([1, 1, 2]) * chunkBytes - random.below(3) * blockBytes;
    }
    offset = Math.min(offset, this.#size - 1);
    return [offset, Math.min(length, this.#size - offset)];
  }

  async write(target: WorkloadTarget, offset: number, length: number): Promise<void> {
    const range = this.#free(offset, length);
    if (!range) return;
    [offset, length] = range;
    const name = ++this.#operations;
    const bytes = stamp(name, offset, length);
    const buffer = IoBuffer.from(bytes);
    target.note(`op ${name}: write ${describeRange(offset, length)}`);
    const operation = this.#oracle.issue(offset, length, bytes);
    await this.#settle(target, `op ${name} (write)`, operation, async () => {
      const now = this.#random.chance(this.#syncShare) && target.device.tryWrite(offset, length, buffer, 0);
      if (!now && !target.dead()) await target.device.write(offset, length, buffer, 0);
    });
    buffer.bytes.fill(0xbb); // a device that still reads it now writes garbage
  }

  async #trim(target: WorkloadTarget, offset: number, length: number): Promise<void> {
    this.#size = target.device.size;
    const first = Math.ceil(offset / blockBytes) * blockBytes;
    const end = offset + length === this.#size ? this.#size : Math.floor((offset + length) / blockBytes) * blockBytes;
    if (end <= first || this.#oracle.conflicts(first, end - first)) return;
    const name = ++this.#operations;
    target.note(`op ${name}: trim ${describeRange(offset, length)}`);
    const operation = this.#oracle.issue(first, end - first, undefined);
    await this.#settle(target, `op ${name} (trim)`, operation, () => target.device.trim(offset, length));
  }

  async #zero(target: WorkloadTarget, offset: number, length: number, allocate: boolean): Promise<void> {
    const range = this.#free(offset, length);
    if (!range) return;
    [offset, length] = range;
    const name = ++this.#operations;
    target.note(`op ${name}: zero ${describeRange(offset, length)}${allocate ? " allocate" : ""}`);
    const operation = this.#oracle.issue(offset, length, undefined);
    await this.#settle(target, `op ${name} (zero)`, operation, () =>
      target.device.zero(offset, length, { allocate, fast: false }),
    );
  }

  async flush(target: WorkloadTarget): Promise<void> {
    const token = this.#oracle.flushStart();
    const size = target.flushing();
    target.note(`flush ${token} begins`);
    try {
      await target.device.flush();
    } catch (error) {
      target.note(`flush ${token} failed: ${describeError(error)}`);
      target.onError("flush", error);
      return;
    }
    target.note(`flush ${token} ends`);
    this.#oracle.flushDone(token);
    target.flushed(size);
  }

  async #readAnywhere(target: WorkloadTarget): Promise<void> {
    const [offset, length] = this.#range(this.#random.pick<Kind>(["writeBlocks", "writeBytes", "writeLarge"]));
    await this.read(target, offset, length);
  }

  /** Reads and asks the oracle. @throws OracleError */
  async read(target: WorkloadTarget, offset: number, length: number): Promise<void> {
    const buffer = new IoBuffer(length);
    buffer.bytes.fill(0xa5);
    const read = this.#oracle.readStart(offset, length);
    try {
      const now = this.#random.chance(0.5) && target.device.tryRead(offset, length, buffer, 0);
      if (target.dead()) return;
      if (!now) await target.device.read(offset, length, buffer, 0);
    } catch (error) {
      this.#oracle.readFailed(read);
      target.onError(`read ${describeRange(offset, length)}`, error);
      return;
    }
    this.#oracle.readDone(read, buffer.bytes);
  }

  /** Reads every sector that was ever touched, and some others. @throws OracleError */
  async verify(target: WorkloadTarget): Promise<void> {
    this.#size = target.device.size;
    const touched = this.#oracle.touched.filter((sector) => sector * 512 < this.#size);
    for (const [offset, length] of runsOf(touched)) await this.read(target, offset, length);
    for (let turn = 0; turn < 4; turn++) await this.#readAnywhere(target);
  }

  async #settle(
    target: WorkloadTarget,
    what: string,
    operation: OracleOperation,
    run: () => Promise<void>,
  ): Promise<void> {
    try {
      await run();
    } catch (error) {
      if (target.dead()) return;
      target.note(`${what} failed: ${errnoOf(error)} ${describeError(error)}`);
      this.#oracle.settle(operation, false);
      target.onError(what, error);
      return;
    }
    if (target.dead()) return;
    target.note(`${what} done`);
    this.#oracle.settle(operation, true);
  }

  /** The range, widened to whole sectors if need be, such that it may run now; undefined: not now. */
  #free(offset: number, length: number): [number, number] | undefined {
    if (!this.#oracle.conflicts(offset, length)) return [offset, length];
    const first = Math.floor(offset / 512) * 512;
    const end = Math.min(this.#size, Math.ceil((offset + length) / 512) * 512);
    return this.#oracle.conflicts(first, end - first) ? undefined : [first, end - first];
  }
}

const reclaimKinds = { reclaim: 4, reclaimStory: 3, removeSnapshot: 4 };

const structureKinds: Record<Exclude<StructureKind, keyof typeof reclaimKinds> | "removeSnapshot", number> = {
  snapshot: 4,
  readSnapshot: 2,
  removeSnapshot: 2,
  clone: 1,
  grow: 2,
  turnover: 1,
};

const longestRun = 512;

/** Ranges of bytes that cover the sectors, with gaps of up to eight sectors. @param sectors ascending */
export function runsOf(sectors: readonly number[]): [number, number][] {
  const runs: [number, number][] = [];
  for (let index = 0; index < sectors.length;) {
    const first = sectors[index];
    let next = first;
    while (index < sectors.length && sectors[index] <= next + 8 && sectors[index] < first + longestRun) {
      next = sectors[index++] + 1;
    }
    runs.push([first * 512, (next - first) * 512]);
  }
  return runs;
}

function describeRange(offset: number, length: number): string {
  return `${offset}+${length} (block ${offset / blockBytes}, sectors ${Math.floor(offset / 512)}-${Math.ceil((offset + length) / 512) - 1})`;
}
