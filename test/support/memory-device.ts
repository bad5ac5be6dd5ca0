import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { IoError } from "../../src/base/errors.ts";
import type { IoBuffer } from "../../src/base/io-buffer.ts";
import {
  type Attachment,
  type BlockDevice,
  type Client,
  type Extent,
  ExtentState,
} from "../../src/export/block-device.ts";

export type DeviceOperation = "read" | "write" | "trim" | "zero" | "flush" | "prefetch" | "extents" | "attach";

export interface MemoryDeviceOptions {
  size: number;
  readOnly?: boolean;
}

const BLOCK = 4096;

/** One stay of a client, as the device saw it. */
export interface Stay {
  client: Client;
  broken: boolean;
  released: boolean;
  clean: boolean | undefined;
}

/**
 * A disk in memory, for tests of exports. It can be told to refuse the synchronous forms, to take its time, and to
 * fail; it notes who is attached, what ran, and whether anything was done for a client that had been released.
 */
export class MemoryDevice implements BlockDevice {
  readonly size: number;
  readonly readOnly: boolean;
  state: "serving" | "held" | "fenced" = "serving";
  readonly lineage = randomBytes(16).toString("hex");
  readonly data: Buffer;
  /** Per 4 KiB block, what `extents` says. */
  readonly states: Uint8Array;
  /** The synchronous forms answer false. */
  slow = false;
  /** Milliseconds that every asynchronous form takes. */
  delayMs = 0;
  /** Asynchronous forms wait for this. */
  gate: Promise<void> = Promise.resolve();
  /** Throws or rejects when it returns an errno. */
  fault: (operation: DeviceOperation, offset: number, length: number) => string | undefined = () => undefined;
  readonly counts: Record<DeviceOperation, number> = {
    read: 0,
    write: 0,
    trim: 0,
    zero: 0,
    flush: 0,
    prefetch: 0,
    extents: 0,
    attach: 0,
  };
  readonly stays: Stay[] = [];
  /** Asynchronous forms that have started and not ended, and the most there ever were. */
  running = 0;
  mostRunning = 0;
  /** What `flush` has made durable: a copy of `data`, when `trackDurable` was called. */
  durable: Buffer | undefined;
  lastZero: { allocate: boolean; fast: boolean } | undefined;

  constructor(options: MemoryDeviceOptions) {
    this.size = options.size;
    this.readOnly = options.readOnly ?? false;
    this.data = Buffer.alloc(options.size);
    this.states = new Uint8Array(Math.ceil(options.size / BLOCK)).fill(ExtentState.zero);
  }

  /** What `learnZeros` answers. */
  learning: BlockDevice["learnZeros"] = () => undefined;

  trackDurable(): void {
    this.durable = Buffer.from(this.data);
  }

  tryRead(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    if (this.slow) return false;
    this.#check("read", offset, length, buffer, at);
    this.data.copy(buffer.bytes, at, offset, offset + length);
    return true;
  }

  async read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    await this.#async(() => {
      this.#check("read", offset, length, buffer, at);
      this.data.copy(buffer.bytes, at, offset, offset + length);
    });
  }

  tryWrite(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    if (this.slow) return false;
    this.#check("write", offset, length, buffer, at);
    this.#store(offset, length, buffer, at);
    return true;
  }

  async write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    await this.#async(() => {
      this.#check("write", offset, length, buffer, at);
      this.#store(offset, length, buffer, at);
    });
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#async(() => {
      this.#check("trim", offset, length);
      const first = Math.ceil(offset / BLOCK) * BLOCK;
      const end = Math.floor((offset + length) / BLOCK) * BLOCK;
      if (end <= first) return;
      this.data.fill(0, first, end);
      this.states.fill(ExtentState.zero, first / BLOCK, end / BLOCK);
    });
  }

  async zero(offset: number, length: number, options: { allocate: boolean; fast: boolean }): Promise<void> {
    this.lastZero = options;
    await this.#async(() => {
      this.#check("zero", offset, length);
      if (options.fast && options.allocate) throw new IoError("ENOTSUP", "zeroes that take space are no faster");
      this.data.fill(0, offset, offset + length);
      if (options.allocate) {
        this.states.fill(ExtentState.written, Math.floor(offset / BLOCK), Math.ceil((offset + length) / BLOCK));
      } else {
        const first = Math.ceil(offset / BLOCK);
        const end = Math.floor((offset + length) / BLOCK);
        if (end > first) this.states.fill(ExtentState.zero, first, end);
      }
    });
  }

  async flush(): Promise<void> {
    await this.#async(() => {
      this.#check("flush", 0, 0);
      if (this.durable !== undefined) this.data.copy(this.durable);
    });
  }

  async prefetch(offset: number, length: number): Promise<void> {
    await this.#async(() => {
      this.#check("prefetch", offset, length);
      for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + length; block++) {
        if (this.states[block] === ExtentState.remote) this.states[block] = ExtentState.local;
      }
    });
  }

  learnZeros(offset: number, length: number): Promise<number> | undefined {
    return this.learning(offset, length);
  }

  extents(offset: number, length: number, limit: number): Extent[] {
    this.#check("extents", offset, length);
    const runs: Extent[] = [];
    let at = offset;
    while (at < offset + length) {
      const block = Math.floor(at / BLOCK);
      const state = this.states[block] as ExtentState;
      const end = Math.min((block + 1) * BLOCK, offset + length);
      const last = runs.at(-1);
      if (last !== undefined && last.state === state) last.length += end - at;
      else if (runs.length === limit) break;
      else runs.push({ length: end - at, state });
      at = end;
    }
    return runs;
  }

  async attach(client: Client): Promise<Attachment> {
    this.counts.attach++;
    const errno = this.fault("attach", 0, 0);
    if (errno !== undefined) throw new IoError(errno, `injected ${errno}`);
    while (this.stays.some((stay) => stay.broken && !stay.released)) await sleep(1);
    const stay: Stay = { client, broken: false, released: false, clean: undefined };
    this.stays.push(stay);
    return {
      broken: () => {
        if (stay.broken || stay.released) throw new Error("broken twice, or after release");
        stay.broken = true;
      },
      release: (clean) => {
        if (stay.released) throw new Error("released twice");
        stay.released = true;
        stay.clean = clean;
      },
    };
  }

  /** Those who are attached and were not released. */
  get attached(): Stay[] {
    return this.stays.filter((stay) => !stay.released);
  }

  async #async(operation: () => void): Promise<void> {
    this.running++;
    this.mostRunning = Math.max(this.mostRunning, this.running);
    try {
      if (this.delayMs > 0) await sleep(this.delayMs);
      await this.gate;
      operation();
    } finally {
      this.running--;
    }
  }

  #store(offset: number, length: number, buffer: IoBuffer, at: number): void {
    buffer.bytes.copy(this.data, offset, at, at + length);
    this.states.fill(ExtentState.written, Math.floor(offset / BLOCK), Math.ceil((offset + length) / BLOCK));
  }

  #check(operation: DeviceOperation, offset: number, length: number, buffer?: IoBuffer, at = 0): void {
    this.counts[operation]++;
    if (offset < 0 || length < 0 || offset + length > this.size) throw new Error(`${operation} out of bounds`);
    if (buffer !== undefined && (at < 0 || at + length > buffer.length)) throw new Error("outside of the buffer");
    if (this.readOnly && (operation === "write" || operation === "trim" || operation === "zero")) {
      throw new Error(`${operation} of a read-only device`);
    }
    const errno = this.fault(operation, offset, length);
    if (errno !== undefined) throw new IoError(errno, `injected ${errno}`);
  }
}
