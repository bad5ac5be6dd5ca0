import { randomBytes } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { systemClock } from "../../src/base/clock.ts";
import { crc32c } from "../../src/base/crc32c.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { Blob } from "../../src/blob/blob.ts";
import type { BlockDevice } from "../../src/export/block-device.ts";
import { headerBytes } from "../../src/volume/header.ts";
import { logPath, numbered, volumeDir } from "../../src/volume/paths.ts";
import type { CreateVolumeOptions } from "../../src/volume/open-volume.ts";
import type { OpenVolumeOptions, VolumeEnvironment } from "../../src/volume/types.ts";
import { Volume } from "../../src/volume/volume.ts";

/** Volumes on the real file system, for tests: environments, creating and opening, reading and writing whole buffers. */

export const blockBytes = 4096;
export const chunkBytes = 4 * 1024 * 1024;

export interface TestEnvironment extends VolumeEnvironment {
  messages: string[];
  runtimeDir: string;
}

/** A directory that goes when the test ends. */
export function temporaryDirectory(t: TestContext, parent = tmpdir()): string {
  mkdirSync(parent, { recursive: true });
  const dir = mkdtempSync(join(parent, "ullage-volume-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** The same in memory if that is possible, for tests that sync a lot and don't care where. */
export const memoryDirectory = (t: TestContext): string =>
  temporaryDirectory(t, existsSync("/dev/shm") ? "/dev/shm" : tmpdir());

/** An environment with data and runtime directories of its own, unless they are named. */
export function volumeEnvironment(
  t: TestContext,
  changes: Partial<VolumeEnvironment> & { runtimeDir?: string } = {},
): TestEnvironment {
  const messages: string[] = [];
  return {
    fs: realFileSystem,
    clock: systemClock,
    randomBytes,
    dataDir: changes.dataDir ?? temporaryDirectory(t),
    messages,
    log: (level, message) => messages.push(`${level}: ${message}`),
    ...changes,
    runtimeDir: changes.runtimeDir ?? temporaryDirectory(t),
  };
}

export const newId = (): string => randomBytes(16).toString("hex");

/** Creates a volume. @returns its id */
export async function createVolume(
  env: VolumeEnvironment,
  size: number,
  options: Partial<CreateVolumeOptions> = {},
): Promise<string> {
  const id = options.id ?? newId();
  await Volume.create(env, { id, name: "disk", size, ...options });
  return id;
}

export function openVolume(
  env: VolumeEnvironment,
  id: string,
  options: Partial<OpenVolumeOptions> & { blob?: Blob } = {},
): Promise<Volume> {
  const { blob, ...rest } = options;
  return Volume.open(env, {
    id,
    name: "disk",
    settings: { sync: "normal", remoteAfterPowerLoss: "refuse" },
    openBlob: (blobId) =>
      blob?.id === blobId ? Promise.resolve(blob) : Promise.reject(new Error(`no blob ${blobId} in this test`)),
    ...rest,
  });
}

/** `length` bytes of one value. */
export const filled = (value: number, length = blockBytes): Buffer => Buffer.alloc(length, value);

/** Writes by the synchronous form if that is possible, as exports do. */
export async function write(device: BlockDevice, offset: number, bytes: Buffer): Promise<void> {
  const buffer = IoBuffer.from(bytes);
  if (!device.tryWrite(offset, bytes.length, buffer, 0)) await device.write(offset, bytes.length, buffer, 0);
}

/** Writes by the asynchronous form. */
export async function writeAsync(device: BlockDevice, offset: number, bytes: Buffer): Promise<void> {
  await device.write(offset, bytes.length, IoBuffer.from(bytes), 0);
}

/** Reads both ways, if both are possible, and makes sure that they agree. */
export async function read(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const now = new IoBuffer(length);
  now.bytes.fill(0xa5);
  const answered = device.tryRead(offset, length, now, 0);
  const later = new IoBuffer(length);
  later.bytes.fill(0x5a);
  await device.read(offset, length, later, 0);
  if (answered && !now.bytes.equals(later.bytes)) throw new Error(`tryRead and read of ${offset}+${length} differ`);
  return Buffer.from(later.bytes);
}

/** Fails unless every byte of the range is `value`; says where it is not. */
export async function expectFilled(device: BlockDevice, offset: number, length: number, value: number): Promise<void> {
  const bytes = await read(device, offset, length);
  const wrong = bytes.findIndex((byte) => byte !== value);
  if (wrong < 0) return;
  throw new Error(`byte ${offset + wrong} is ${bytes[wrong]} instead of ${value}`);
}

/** The numbers of a volume's logs, ascending. */
export function logNumbers(env: VolumeEnvironment, id: string): number[] {
  return numbered(readdirSync(volumeDir(env.dataDir, id)), "intent");
}

export function mapNumbers(env: VolumeEnvironment, id: string): number[] {
  return numbered(readdirSync(volumeDir(env.dataDir, id)), "map");
}

export function newestLog(env: VolumeEnvironment, id: string): string {
  return logPath(volumeDir(env.dataDir, id), logNumbers(env, id).at(-1)!);
}

/** What a log's header binds it to (durability rule 7), as text at fixed places of the header. */
export interface HeaderChanges {
  bootId?: string;
  mountId?: string;
  fileSystem?: string;
  inode?: number;
}

/** Rewrites the header of every log of the volume, checksum included: as if they came from another life. */
export function changeLogHeaders(env: VolumeEnvironment, id: string, changes: HeaderChanges): void {
  for (const number of logNumbers(env, id)) changeLogHeader(logPath(volumeDir(env.dataDir, id), number), changes);
}

export function changeLogHeader(path: string, changes: HeaderChanges): void {
  const bytes = readFileSync(path);
  if (bytes.length < headerBytes) return; // it was being created
  const text = (value: string, at: number, length: number): void => {
    bytes.fill(0, at, at + length);
    bytes.write(value, at, length, "latin1");
  };
  if (changes.bootId !== undefined) text(changes.bootId, 112, 40);
  if (changes.mountId !== undefined) text(changes.mountId, 152, 24);
  if (changes.fileSystem !== undefined) text(changes.fileSystem, 176, 16);
  if (changes.inode !== undefined) bytes.writeBigUInt64LE(BigInt(changes.inode), 104);
  bytes.writeUInt32LE(0, 12);
  bytes.writeUInt32LE(crc32c(bytes, 0, headerBytes), 12);
  writeFileSync(path, bytes); // keeps the inode
}

/** As if the machine had lost its power: the next start goes by the last commit. The page cache stays, of course. */
export function pretendPowerCut(env: VolumeEnvironment, id: string): void {
  changeLogHeaders(env, id, { bootId: "00000000-0000-4000-8000-000000000000" });
}

/** As if the file system had been unmounted and mounted again: what is recorded counts where there is data. */
export function pretendRemount(env: VolumeEnvironment, id: string): void {
  changeLogHeaders(env, id, { mountId: "1" });
}

/** Descriptors that this process has open below a directory. */
export function openDescriptors(below: string): string[] {
  return readdirSync("/proc/self/fd", { encoding: "utf8" }).flatMap((fd) => {
    try {
      const target = readlinkSync(`/proc/self/fd/${fd}`);
      return target.startsWith(below) ? [target] : [];
    } catch {
      return []; // the descriptor of this very listing
    }
  });
}
