import { join } from "node:path";
import type { Clock } from "../../base/clock.ts";
import { describeError } from "../../base/errors.ts";
import type { FileSystem } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { formatSize } from "../../base/units.ts";
import type { Finding } from "../health/health.ts";
import type { SpareSpace } from "./spare-space.ts";

/** Below the data directory; there only while the probe runs, or when it could not be removed. */
const probeName = "health-probe";
const probeBytes = 4096;

/** What was found holds for so long: whoever asks more often gets the same answer. */
const freshMs = 5000;

/** A disk that takes longer than this to make one block durable does not work. */
const patienceMs = 5000;

/** Share of the file system that hydration leaves alone. */
const reserve = 0.05;

/**
 * Whether the data directory takes writes and makes them durable, found out by doing it: a small file is written, synced
 * and removed, in the thread pool. One probe at a time, and only when somebody asks; a disk that does not answer holds up
 * the probe and nobody else.
 */
export class DataProbe {
  readonly #fs: FileSystem;
  readonly #clock: Clock;
  readonly #dataDir: string;
  readonly #spare: Pick<SpareSpace, "refill">;
  #running: Promise<void> | undefined;
  #startedAt = 0;
  #endedAt = -Infinity;
  #failure: string | undefined;
  /** As of the last probe; undefined: not known. */
  space: { free: number; total: number } | undefined;

  constructor(fs: FileSystem, clock: Clock, dataDir: string, spare: Pick<SpareSpace, "refill">) {
    this.#spare = spare;
    this.#fs = fs;
    this.#clock = clock;
    this.#dataDir = dataDir;
  }

  /** Resolves when what is known is fresh, or when the disk did not answer in time. */
  async refresh(): Promise<void> {
    if (this.#running === undefined) {
      if (this.#clock.now() - this.#endedAt < freshMs) return;
      this.#startedAt = this.#clock.now();
      this.#running = this.#run();
    }
    const waited = new AbortController();
    const left = this.#startedAt + patienceMs - this.#clock.now();
    if (left <= 0) return;
    await Promise.race([this.#running, this.#clock.sleep(left, waited.signal).catch(() => undefined)]);
    waited.abort();
  }

  findings(): Finding[] {
    const late = this.#running !== undefined && this.#clock.now() - this.#startedAt >= patienceMs;
    if (late) {
      const message = `${this.#dataDir} has not taken a block of ${probeBytes} bytes for ${patienceMs / 1000} s`;
      return [{ check: "data", status: "fail", code: "data-not-answering", message }];
    }
    const findings: Finding[] = [];
    if (this.#failure !== undefined) {
      const message = `${this.#dataDir} takes no writes: ${this.#failure}`;
      findings.push({ check: "data", status: "fail", code: "data-unwritable", message });
    }
    if (this.space !== undefined && this.space.free < this.space.total * reserve) {
      const { free, total } = this.space;
      const message = `${formatSize(free)} of ${formatSize(total)} are free: hydration waits below ${reserve * 100} %, and writes fail at 0`;
      findings.push({ check: "space", status: "warn", code: "space-low", message });
    }
    return findings;
  }

  /** Never rejects. */
  async #run(): Promise<void> {
    try {
      this.space = await this.#fs.space(this.#dataDir);
      await this.#write();
      await this.#spare.refill();
      this.#failure = undefined;
    } catch (error) {
      this.#failure = describeError(error);
    }
    this.#endedAt = this.#clock.now();
    this.#running = undefined;
  }

  async #write(): Promise<void> {
    const path = join(this.#dataDir, probeName);
    await this.#fs.unlink(path);
    const file = await this.#fs.open(path, "create");
    try {
      const block = new IoBuffer(probeBytes);
      block.bytes.fill(0x55);
      await file.write(block, 0, probeBytes, 0);
      await file.datasync();
    } finally {
      await file.close();
      await this.#fs.unlink(path);
    }
  }
}
