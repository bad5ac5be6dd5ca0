import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { promisify } from "node:util";
import { launchDaemon, run, type Daemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { readVolumeToFile, type ReadOptions } from "./reader.ts";

const execute = promisify(execFile);
const timeout = 60_000;

/** A data directory that the real program works in, one daemon after the other, and that the reader reads in between. */
export class World {
  readonly base: string;
  readonly dataDir: string;
  readonly #t: TestContext;
  #daemon: Daemon | undefined;
  #files = 0;

  private constructor(t: TestContext, base: string, dataDir: string) {
    this.#t = t;
    this.base = base;
    this.dataDir = dataDir;
  }

  /** @param dataDir one that exists; default: a new one */
  static async create(t: TestContext, dataDir?: string): Promise<World> {
    const base = await temporaryDirectory(t);
    return new World(t, base, dataDir ?? join(base, "data"));
  }

  /** A file of random bytes to make volumes from. */
  image(bytes: number): string {
    const path = this.#file();
    writeFileSync(path, randomBytes(bytes));
    return path;
  }

  async serve(): Promise<void> {
    this.#daemon = await launchDaemon(this.#t, this.dataDir);
  }

  /** SIGTERM is a clean stop, SIGKILL none. */
  async stop(signal: "SIGTERM" | "SIGKILL"): Promise<void> {
    const { code, stderr } = await this.#running.stop(signal);
    if (signal === "SIGTERM" && code !== 0) throw new Error(`serve ended with ${code}: ${stderr}`);
    this.#daemon = undefined;
  }

  /** A client command, e.g. `volume create v --size 1M`. @returns the object that it prints */
  cli(...args: string[]): Promise<unknown> {
    return this.#running.json(args);
  }

  /** Runs Python on a connection `h`; it ends without a flush, unless the script has one. */
  async nbdsh(volume: string, script: string): Promise<void> {
    await execute("nbdsh", ["-u", this.#running.uri(volume), "-c", script], { timeout });
  }

  /** The whole disk as a client sees it. */
  async truth(volume: string): Promise<Buffer> {
    const path = this.#file();
    await execute("nbdcopy", [this.#running.uri(volume), path], { timeout });
    return take(path);
  }

  /** The whole disk as the independent reader reads it from the files. */
  read(volume: string, options?: ReadOptions, dataDir = this.dataDir): Buffer {
    const path = this.#file();
    readVolumeToFile(dataDir, volume, path, options);
    return take(path);
  }

  /** Throws when `ullage check` finds anything. */
  async check(): Promise<void> {
    const { code, stdout, stderr } = await run(["check", this.dataDir]);
    if (code !== 0) throw new Error(`check ended with ${code}: ${stdout}${stderr}`);
  }

  get #running(): Daemon {
    if (this.#daemon === undefined) throw new Error("no daemon is running");
    return this.#daemon;
  }

  #file(): string {
    return join(this.base, `file-${this.#files++}`);
  }
}

function take(path: string): Buffer {
  const bytes = readFileSync(path);
  rmSync(path);
  return bytes;
}

/** Python for `nbdsh`: writes, trims and zeroes of every alignment between two offsets, the same for the same seed. */
export function mixedWrites(seed: number, from: number, to: number): string {
  return `
import random
r = random.Random(${seed})
for i in range(150):
    offset = r.randrange(${from}, ${to})
    length = min(r.choice([1, 512, 4096, 5000, 100000]) * r.randrange(1, 4), ${to} - offset)
    kind = r.randrange(8)
    if kind < 5: h.pwrite(r.randbytes(length), offset, nbd.CMD_FLAG_FUA if kind == 4 else 0)
    elif kind == 5: h.trim(length, offset)
    else: h.zero(length, offset, nbd.CMD_FLAG_NO_HOLE if kind == 7 else 0)
`;
}

/** The first byte in which they differ, in words; undefined when they are the same. */
export function difference(read: Buffer, truth: Buffer): string | undefined {
  if (read.equals(truth)) return undefined;
  if (read.length !== truth.length) return `${read.length} bytes instead of ${truth.length}`;
  const at = read.findIndex((byte, index) => byte !== truth[index]);
  return `byte ${at} (block ${Math.floor(at / 4096)}) is ${read[at]} instead of ${truth[at]}`;
}
