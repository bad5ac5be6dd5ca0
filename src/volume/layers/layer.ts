import { CorruptionError, IoError } from "../../base/errors.ts";
import type { File } from "../../base/file-system.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { headerBytes, openHeader, sealHeader } from "../header.ts";
import { blockBytes } from "../map/owner-map.ts";
import { layerPath } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";
import { writeWhole } from "../whole-file.ts";

/*
 * A layer: a sparse file of a 4096-byte header and the blocks of one volume, block n at 4096 + 4096 n, that were written
 * while it was the head. Blocks that no map gives to the layer are garbage or holes and are never read.
 */

const magic = "ULLAGELY";

export class Layer {
  readonly id: string;
  readonly file: File;
  /** Written since the last completed sync began. The descriptor that wrote is the one that syncs. */
  dirty = false;
  /** Bytes written since then. */
  unsyncedBytes = 0;

  constructor(id: string, file: File) {
    this.id = id;
    this.file = file;
  }

  /**
   * Creates a layer's file; durable, with its directory entries, when the promise resolves (durability rule 27). Until its
   * header is, it has another name, so that every layer tells whom it was made for.
   */
  static async create(env: VolumeEnvironment, id: string, volumeId: string, blocks: number): Promise<Layer> {
    const header = new IoBuffer(headerBytes);
    header.bytes.fill(0);
    header.bytes.write(id, 16, "hex");
    header.bytes.write(volumeId, 32, "hex");
    env.randomBytes(16).copy(header.bytes, 48);
    sealHeader(header.bytes, magic);
    await writeWhole(env, layerPath(env.dataDir, id), async (file) => {
      await file.truncate(headerBytes + blocks * blockBytes);
      await file.write(header, 0, headerBytes, 0);
    });
    return Layer.open(env, id);
  }

  /** Opens an existing layer. Reads nothing of it: that is `verify`'s. @throws CorruptionError when there is none */
  static async open(env: VolumeEnvironment, id: string, mode: "read" | "write" = "write"): Promise<Layer> {
    const path = layerPath(env.dataDir, id);
    try {
      return new Layer(id, await env.fs.open(path, mode));
    } catch (error) {
      if (error instanceof IoError && error.errno === "ENOENT") throw new CorruptionError(`${path} is missing`);
      throw error;
    }
  }

  /**
   * Opens a sealed layer for punching. Only its file's mode stands in the way, for a moment: the mode is a guard against
   * mistakes, and nothing goes by it, so a crash in between leaves nothing to be put right.
   */
  static async openSealed(env: VolumeEnvironment, id: string): Promise<Layer> {
    const path = layerPath(env.dataDir, id);
    const guard = await env.fs.open(path, "read");
    try {
      await guard.unseal();
      try {
        return new Layer(id, await env.fs.open(path, "write"));
      } finally {
        await guard.seal();
      }
    } finally {
      await guard.close();
    }
  }

  /** @throws CorruptionError when the file has no place for so many blocks */
  demandBlocks(blocks: number): void {
    const wanted = headerBytes + blocks * blockBytes;
    const size = this.file.size();
    if (size < wanted) throw new CorruptionError(`${this.file.path} has ${size} bytes instead of ${wanted}`);
  }

  /** Makes room for a larger volume; durable after the next sync. */
  async grow(blocks: number): Promise<void> {
    await this.file.truncate(headerBytes + blocks * blockBytes);
    this.dirty = true;
  }

  /** Checks the header: that this is the layer the map means. @throws CorruptionError */
  async verify(): Promise<void> {
    const header = new IoBuffer(headerBytes);
    const got = await this.file.read(header, 0, headerBytes, 0);
    openHeader(header.bytes.subarray(0, got), magic, this.file.path);
    if (header.bytes.toString("hex", 16, 32) === this.id) return;
    throw new CorruptionError(`${this.file.path} holds another layer`);
  }

  /**
   * What a layer's file says of itself.
   * @returns the id of the volume that it was made for; undefined when its header was never written
   */
  static async creator(file: File): Promise<string | undefined> {
    const header = new IoBuffer(headerBytes);
    const got = await file.read(header, 0, headerBytes, 0);
    const written = got === headerBytes && header.bytes.toString("latin1", 0, 8) === magic;
    return written ? header.bytes.toString("hex", 32, 48) : undefined;
  }

  /** Where a disk offset is in the file. */
  position(offset: number): number {
    return headerBytes + offset;
  }

  noteWrite(length: number): void {
    this.dirty = true;
    this.unsyncedBytes += length;
  }

  /** Frees blocks; like a write, it is durable only after the next sync. @returns false when the file system can't */
  async punch(block: number, count: number): Promise<boolean> {
    this.dirty = true;
    const punched = await this.file.punch(headerBytes + block * blockBytes, count * blockBytes);
    this.dirty = true; // a sync that ran meanwhile need not have covered it
    return punched;
  }

  /** Whether the file system can free blocks; asked behind the end of the file, where nothing is. */
  canPunch(): Promise<boolean> {
    return this.file.punch(Math.ceil(this.file.size() / blockBytes) * blockBytes, blockBytes);
  }

  /** fdatasync. A failure leaves it dirty for ever: the caller poisons the volume. */
  async sync(): Promise<void> {
    const covered = this.unsyncedBytes;
    this.dirty = false;
    try {
      await this.file.datasync();
    } catch (error) {
      this.dirty = true;
      throw error;
    }
    this.unsyncedBytes -= covered;
  }

  /** Whether every block of the range has data allocated in the file (SEEK_DATA); must precede reads (rule 7). */
  allocatedBlocks(block: number, count: number): boolean {
    const start = headerBytes + block * blockBytes;
    return this.file.seekData(start) === start && this.file.seekHole(start) >= start + count * blockBytes;
  }

  /** First run of blocks with data at or behind `block`, or undefined. */
  nextData(block: number): { block: number; count: number } | undefined {
    const data = this.file.seekData(headerBytes + block * blockBytes);
    if (data < 0) return undefined;
    const end = this.file.seekHole(data);
    const first = Math.floor((data - headerBytes) / blockBytes);
    return { block: first, count: Math.ceil((end - headerBytes) / blockBytes) - first };
  }
}
