import { execFileSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import type { ReadOptions, Sink } from "../../src/backend/backend.ts";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import type { ImageReader, OpenContext } from "../../src/image/image-format.ts";
import { objectReader } from "../../src/image/object-reader.ts";
import { openImage, type OpenedImage } from "../../src/image/open-image.ts";
import { readBytes } from "../../src/image/read-bytes.ts";

export function temporaryDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), "ullage-image-"));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { stdio: ["ignore", "pipe", "pipe"], encoding: "utf8", timeout: 120_000 });
}

/** A raw disk with everything in it that formats treat differently: text, noise, zeros, holes, an odd end. */
export function makeDisk(path: string, size = 9 * 1024 * 1024 + 512): void {
  const file = openSync(path, "w");
  const put = (offset: number, bytes: Buffer): void => void writeSync(file, bytes, 0, bytes.length, offset);
  put(0, Buffer.from("a disk, not an image\n".repeat(40_000)));
  put(1_500_000, randomBytes(700_000));
  put(3_000_000, Buffer.alloc(300_000)); // zeros that were written
  for (let n = 0; n < 40; n++) put(4_000_000 + n * 50_000, randomBytes(n * 100 + 1)); // small islands
  put(7_000_000, Buffer.from(randomBytes(1000).toString("hex").repeat(300)));
  put(size - 1000, randomBytes(1000));
  closeSync(file);
  truncateSync(path, size);
}

/** A reader that writes down which ranges were read. */
export class WatchedReader implements ImageReader {
  readonly reads: { offset: number; length: number }[] = [];
  /** What happens before the next ones. */
  before: () => Promise<void> | void = () => undefined;
  readonly #inner: ImageReader;

  constructor(inner: ImageReader) {
    this.#inner = inner;
  }

  get size(): number {
    return this.#inner.size;
  }

  /** bytes */
  get total(): number {
    return this.reads.reduce((sum, { length }) => sum + length, 0);
  }

  async read(offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    this.reads.push({ offset, length });
    await this.before();
    await this.#inner.read(offset, length, sink, options);
  }
}

export async function fileReader(path: string): Promise<WatchedReader> {
  const backend = new LocalFileBackend(path);
  const { identity } = await backend.probe(0);
  return new WatchedReader(objectReader(backend, identity));
}

/** The image in a file, as it would be at import. */
export async function openFile(
  path: string,
  requested = "auto",
  context: OpenContext = {},
): Promise<OpenedImage & { watched: WatchedReader }> {
  const watched = await fileReader(path);
  return { ...(await openImage(watched, requested, context)), watched };
}

/** The whole disk, read in steps of odd and changing length, at the boundaries of nothing. */
export async function readDisk(reader: ImageReader, step = 1_234_567): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (let at = 0; at < reader.size; at += step) {
    parts.push(await readBytes(reader, at, Math.min(step, reader.size - at)));
  }
  return Buffer.concat(parts);
}

/** Reads everything in several ways; each must give the bytes of the raw file, and zeros where zeros are promised. */
export async function differs(reader: ImageReader, raw: string): Promise<string | undefined> {
  const expected = readFileSync(raw);
  const size = Math.min(reader.size, expected.length);
  if (Math.ceil(reader.size / 512) !== Math.ceil(expected.length / 512)) return `${reader.size} bytes`;
  for (const step of [1_234_567, 8 * 1024 * 1024, 70_001]) {
    const found = (await readDisk(reader, step)).subarray(0, size);
    if (!found.equals(expected.subarray(0, size))) {
      return `step ${step}: byte ${found.findIndex((byte, at) => byte !== expected[at])} of ${sha(found)}`;
    }
  }
  const step = Math.max(65_536, Math.floor(size / 200));
  for (let at = 0; reader.zeroRun !== undefined && at < size; at += step) {
    const zeros = await reader.zeroRun(at, reader.size - at);
    if (zeros < 0 || zeros > reader.size - at) return `${zeros} zeros at ${at}`;
    if (firstData(expected, at) < Math.min(at + zeros, size)) return `no zeros: ${zeros} at ${at}`;
  }
  let told = 0;
  let wrong: string | undefined;
  await reader.tellZeros?.(0, reader.size, (length, zero) => {
    if (zero && firstData(expected, told) < Math.min(told + length, size))
      wrong = `told as zeros: ${length} at ${told}`;
    told += length;
  });
  if (reader.tellZeros !== undefined && told !== reader.size) return `${told} bytes were told of`;
  return wrong;
}

const zeros = Buffer.alloc(65_536);

/** Where the first byte at or behind `at` is that is not zero. */
function firstData(bytes: Buffer, at: number): number {
  let end = at;
  while (
    end < bytes.length &&
    bytes.compare(
      zeros,
      0,
      Math.min(zeros.length, bytes.length - end),
      end,
      Math.min(end + zeros.length, bytes.length),
    ) === 0
  ) {
    end = Math.min(end + zeros.length, bytes.length);
  }
  while (end < bytes.length && bytes[end] === 0) end++;
  return end;
}

const sha = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex").slice(0, 12);
