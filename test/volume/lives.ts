import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { layersDir } from "../../src/volume/paths.ts";
import type { OpenVolumeOptions } from "../../src/volume/types.ts";
import type { Volume } from "../../src/volume/volume.ts";
import {
  blockBytes,
  createVolume,
  memoryDirectory,
  openVolume,
  type TestEnvironment,
  volumeEnvironment,
} from "../support/volume-env.ts";
import { type Call, FaultyFileSystem } from "./faulty-file-system.ts";

/**
 * One volume and the processes that open it one after the other; each has a file system that can be killed. In memory,
 * unless `dataDir` says otherwise.
 */
export class Lives {
  readonly env: TestEnvironment;
  readonly id: string;
  faulty: FaultyFileSystem;
  /** For the lives to come. */
  onDrop: FaultyFileSystem["onDrop"] = () => true;
  readonly #options: Partial<OpenVolumeOptions>;

  private constructor(env: TestEnvironment, faulty: FaultyFileSystem, id: string, options: Partial<OpenVolumeOptions>) {
    this.env = env;
    this.faulty = faulty;
    this.id = id;
    this.#options = options;
  }

  static async create(
    t: TestContext,
    size: number,
    changes: Parameters<typeof volumeEnvironment>[1] = {},
    options: Partial<OpenVolumeOptions> = {},
  ): Promise<Lives> {
    const faulty = new FaultyFileSystem();
    const env = volumeEnvironment(t, { dataDir: memoryDirectory(t), ...changes, fs: faulty.fs });
    const lives = new Lives(env, faulty, await createVolume(env, size), options);
    t.after(() => lives.kill());
    return lives;
  }

  /** Bytes on disk of all layers. */
  layerBytes(): number {
    const dir = layersDir(this.env.dataDir);
    return readdirSync(dir).reduce((sum, name) => sum + statSync(join(dir, name)).blocks * 512, 0);
  }

  kill(): Promise<void> {
    return this.faulty.kill();
  }

  /** The next life; `before` sees its calls from the first one on. */
  async open(before?: FaultyFileSystem["before"], options: Partial<OpenVolumeOptions> = {}): Promise<Volume> {
    await this.kill();
    this.faulty = new FaultyFileSystem();
    if (before) this.faulty.before = before;
    this.faulty.onDrop = this.onDrop;
    this.env.fs = this.faulty.fs;
    return openVolume({ ...this.env }, this.id, { ...this.#options, ...options });
  }

  /** Kills in front of the `count`-th call from now on that changes anything. @returns what resolves then */
  killAt(count: number): Promise<void> {
    return new Promise((resolve) => {
      let left = count;
      this.faulty.before = (call) => {
        if (!changes(call) || --left > 0) return undefined;
        void this.kill();
        resolve();
        return undefined;
      };
    });
  }
}

export const changes = (call: Call): boolean => call.name !== "read";

/** What each block may hold: the value that was answered last, and those that were tried since. */
export class BlockModel {
  readonly #blocks = new Map<number, number[]>();

  constructor(blocks: number) {
    for (let block = 0; block < blocks; block++) this.#blocks.set(block, [0]);
  }

  answered(block: number, value: number): void {
    this.#blocks.set(block, [value]);
  }

  /** It may have happened. */
  tried(block: number, value: number): void {
    this.#blocks.get(block)!.push(value);
  }

  /** Fails on a block that shows anything else, and settles on what is there. */
  async verify(volume: Volume, what: string): Promise<void> {
    const buffer = new IoBuffer(blockBytes);
    for (const [block, allowed] of this.#blocks) {
      const { bytes } = buffer;
      await volume.read(block * blockBytes, blockBytes, buffer, 0);
      const [value] = bytes;
      if (!bytes.every((byte) => byte === value) || !allowed.includes(value)) {
        throw new Error(`${what}: block ${block} shows ${value}, not ${allowed.join(" or ")}`);
      }
      this.#blocks.set(block, [value]);
    }
  }
}
