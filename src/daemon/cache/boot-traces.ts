import { join } from "node:path";
import { describeError } from "../../base/errors.ts";
import type { FileSystem } from "../../base/file-system.ts";
import { identityHash, type BlobMeta } from "../../blob/blob-meta.ts";
import { type BootTrace, checkTrace } from "../../blob/boot-trace.ts";
import { replaceFile } from "../../blob/durable-file.ts";

/*
 * What was read first of each version of each image: <data>/traces/<identity>.json, where the identity is what pins the
 * version (SHA-256, the first 32 hex digits). A trace outlives its blob: an image that is evicted and comes back is
 * fetched in the right order. It is advice: one that is missing or damaged costs time, and nothing else.
 */

const FORMAT = "ullage-trace";
const VERSION = 1;
/** The oldest go when there are more. */
const KEPT = 1000;

export class BootTraces {
  readonly #fs: FileSystem;
  readonly #dir: string;
  readonly #log: (level: "warn", message: string) => void;
  /** By file name; undefined: there is none. */
  readonly #loaded = new Map<string, Promise<BootTrace | undefined>>();

  constructor(fs: FileSystem, dataDir: string, log: (level: "warn", message: string) => void) {
    this.#fs = fs;
    this.#dir = join(dataDir, "traces");
    this.#log = log;
  }

  /** The trace of a version of an image. Never rejects. */
  of(meta: BlobMeta): Promise<BootTrace | undefined> {
    const name = nameOf(meta);
    let loading = this.#loaded.get(name);
    if (loading === undefined) {
      loading = this.#load(name, meta);
      this.#loaded.set(name, loading);
      if (this.#loaded.size > KEPT) this.#loaded.delete(this.#loaded.keys().next().value!);
    }
    return loading;
  }

  async #load(name: string, meta: BlobMeta): Promise<BootTrace | undefined> {
    const path = join(this.#dir, name);
    try {
      if (!(await this.#fs.exists(path))) return undefined;
      const raw = JSON.parse((await this.#fs.readFile(path)).toString("utf8")) as { format: string; version: number };
      if (raw.format !== FORMAT || raw.version !== VERSION) return undefined;
      return checkTrace(raw, meta.size);
    } catch (error) {
      this.#log("warn", `${path} is not used: ${describeError(error)}`);
      return undefined;
    }
  }

  /** Durable when it resolves. Takes the place of the one before. @throws IoError */
  async save(meta: BlobMeta, trace: BootTrace): Promise<void> {
    const name = nameOf(meta);
    await this.#fs.mkdir(this.#dir);
    const text = JSON.stringify({ format: FORMAT, version: VERSION, ...trace });
    await replaceFile(this.#fs, this.#dir, name, Buffer.from(text));
    this.#loaded.set(name, Promise.resolve(trace));
    await this.#forgetOldest();
  }

  async #forgetOldest(): Promise<void> {
    const names = (await this.#fs.readdir(this.#dir)).filter((name) => name.endsWith(".json"));
    if (names.length <= KEPT) return;
    const dated = await Promise.all(
      names.map(async (name) => {
        const text = (await this.#fs.readFile(join(this.#dir, name))).toString("utf8");
        return { name, recordedAt: /"recordedAt":"([^"]*)"/.exec(text)?.[1] ?? "" };
      }),
    );
    dated.sort((a, b) => (a.recordedAt < b.recordedAt ? -1 : 1));
    for (const { name } of dated.slice(0, names.length - KEPT)) {
      await this.#fs.unlink(join(this.#dir, name));
      this.#loaded.delete(name);
    }
  }
}

const nameOf = (meta: BlobMeta): string => `${identityHash(meta).toString("hex").slice(0, 32)}.json`;
