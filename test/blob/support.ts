import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { ReadOptions, Sink } from "../../src/backend/backend.ts";
import { systemClock, type Clock } from "../../src/base/clock.ts";
import type { File, FileSystem } from "../../src/base/file-system.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { BlobCache, type BlobCacheOptions } from "../../src/blob/cache.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import type { ImageReader } from "../../src/image/image-format.ts";

/** A source in memory that writes down what it was asked for, and can be slow, broken or held. */
export class MemoryReader implements ImageReader {
  readonly content: Buffer;
  readonly requests: { offset: number; length: number; background: boolean }[] = [];
  /** How it was asked. */
  readonly options: ReadOptions[] = [];
  /** What the next requests do before they answer. */
  before: (offset: number, length: number, signal?: AbortSignal) => Promise<void> | void = () => undefined;
  chunkBytes = 64 * 1024;

  constructor(content: Buffer) {
    this.content = content;
  }

  get size(): number {
    return this.content.length;
  }

  async read(offset: number, length: number, sink: Sink, options: ReadOptions = {}): Promise<void> {
    this.options.push(options);
    this.requests.push({ offset, length, background: options.background === true });
    await this.before(offset, length, options.signal);
    for (let at = offset; at < offset + length; at += this.chunkBytes) {
      options.signal?.throwIfAborted();
      const chunk = Buffer.from(this.content.subarray(at, Math.min(at + this.chunkBytes, offset + length)));
      await sink(chunk);
      chunk.fill(0xdd); // the sink must not have kept it
    }
  }
}

/** Random bytes: every unit is different from every other. */
export const randomContent = (length: number): Buffer => randomBytes(length);

const cleanups = new WeakMap<TestContext, (() => unknown)[]>();

/** Runs `work` when the test has ended, before what was asked for earlier. */
export function atEnd(t: TestContext, work: () => unknown): void {
  const known = cleanups.get(t);
  if (known !== undefined) {
    known.unshift(work);
    return;
  }
  const list = [work];
  cleanups.set(t, list);
  t.after(async () => {
    for (const each of list) await each();
  });
}

export function temporaryDirectory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "ullage-blob-"));
  atEnd(t, () => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

export interface TestCache {
  cache: BlobCache;
  dataDir: string;
  log: string[];
}

/** A cache in a directory of its own, or in `overrides.dataDir`. Its sources are unreachable unless overridden. */
export async function openCache(t: TestContext, overrides: Partial<BlobCacheOptions> = {}): Promise<TestCache> {
  const dataDir = overrides.dataDir ?? temporaryDirectory(t);
  const log: string[] = [];
  const cache = await BlobCache.open({
    fs: realFileSystem,
    clock: systemClock,
    dataDir,
    randomBytes,
    log: (level, message) => log.push(`${level} ${message}`),
    openSource: () => Promise.reject(new Error("the source is unreachable")),
    missBytes: 0, // what is fetched is what a test asks for
    ...overrides,
  });
  atEnd(t, () => cache.close());
  return { cache, dataDir, log };
}

/** A blob of a new cache, filled from `reader`. */
export async function openBlob(
  t: TestContext,
  reader: MemoryReader,
  overrides: Partial<BlobCacheOptions> & { unitBytes?: number } = {},
): Promise<TestCache & { blob: CachedBlob }> {
  const { unitBytes = 64 * 1024, ...cacheOverrides } = overrides;
  const opened = await openCache(t, { openSource: () => Promise.resolve(reader), ...cacheOverrides });
  const blob = await opened.cache.create({ ...testObject(reader.size), unitBytes });
  return { ...opened, blob };
}

export function testObject(size: number) {
  return {
    url: "http://example.test/image.raw",
    imageFormat: "raw",
    identity: { size, version: 'etag:"1"', strong: true },
    size,
  };
}

/** The bytes that the cache file has, ready or not. */
export async function readCacheFile(blob: Blob, offset: number, length: number): Promise<Buffer> {
  const buffer = new IoBuffer(length);
  const got = await blob.file.read(buffer, 0, length, offset);
  return buffer.bytes.subarray(0, got);
}

/** A promise and its handles, for tests that hold things. */
export function gate(): { opened: Promise<void>; open(): void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { opened: promise, open: resolve };
}

/** Waits, turn by turn of the event loop, until `condition` holds; a test that waits for ever is ended by the runner. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate);
}

/** The real file system with some calls replaced. */
export const withCalls = (calls: Partial<FileSystem>): FileSystem => ({ ...realFileSystem, ...calls });

/** Time that stands still until it is moved. */
export class ManualClock implements Clock {
  #now = 0;
  readonly #sleepers = new Set<{ due: number; wake(): void }>();

  now(): number {
    return this.#now;
  }

  wallTime(): string {
    return new Date(this.#now).toISOString();
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const onAbort = (): void => {
        this.#sleepers.delete(sleeper);
        reject(signal!.reason as Error);
      };
      const sleeper = {
        due: this.#now + ms,
        wake: () => {
          this.#sleepers.delete(sleeper);
          signal?.removeEventListener("abort", onAbort);
          resolve();
        },
      };
      this.#sleepers.add(sleeper);
      signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  get sleeping(): number {
    return this.#sleepers.size;
  }

  /** Moves on by `ms`, and wakes who slept until then. */
  advance(ms: number): void {
    this.#now += ms;
    for (const sleeper of this.#sleepers) if (sleeper.due <= this.#now) sleeper.wake();
  }
}

/** The real file system; files whose path matches have the methods replaced that `replace` returns. */
export function withFile(path: RegExp, replace: (file: File) => Partial<File>): FileSystem {
  return withCalls({
    async open(name, mode) {
      const file = await realFileSystem.open(name, mode);
      if (!path.test(name)) return file;
      const replaced = replace(file);
      return new Proxy(file, {
        get(target, key) {
          const own = (replaced as Record<string | symbol, unknown>)[key];
          if (own !== undefined) return own;
          const value: unknown = Reflect.get(target, key, target);
          return typeof value === "function" ? (value.bind(target) as unknown) : value;
        },
      });
    },
  });
}
