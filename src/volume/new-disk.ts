import type { IoBuffer } from "../base/io-buffer.ts";
import { Layer } from "./layers/layer.ts";
import { blockBytes, OwnerMap } from "./map/owner-map.ts";
import type { VolumeEnvironment } from "./types.ts";

/** Written bytes after which they are synced: neither memory nor the sync at the end may have to take all of them. */
const syncBytes = 64 * 1024 * 1024;

/**
 * The disk of a volume that is being made: a layer that nobody refers to yet, so that no log is needed. Until the first
 * checkpoint, which comes after `end`, there is no volume, whatever has been written (durability rule 17).
 */
export class NewDisk {
  readonly #layer: Layer;
  readonly #owner: number;
  #map = new OwnerMap(0);

  private constructor(layer: Layer, owner: number) {
    this.#layer = layer;
    this.#owner = owner;
  }

  /** @param owner of what will be written, in the volume's owner table */
  static async create(env: VolumeEnvironment, volumeId: string, owner: number): Promise<NewDisk> {
    return new NewDisk(await Layer.create(env, env.randomBytes(16).toString("hex"), volumeId, 0), owner);
  }

  get layerId(): string {
    return this.#layer.id;
  }

  /** What is in no block that was written reads as zeros. */
  get map(): OwnerMap {
    return this.#map;
  }

  /** Whole blocks: offset and length are multiples of 4096. */
  async write(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    const block = offset / blockBytes;
    const count = length / blockBytes;
    if (block + count > this.#map.blocks) this.#map.grow(Math.max(block + count, this.#map.blocks * 2));
    this.#layer.noteWrite(length);
    await this.#layer.file.write(buffer, at, length, this.#layer.position(offset));
    this.#map.set(block, count, this.#owner);
    if (this.#layer.unsyncedBytes >= syncBytes) await this.#layer.sync();
  }

  /** The disk has its size, and what was written is durable. @param size bytes, behind everything that was written */
  async end(size: number): Promise<void> {
    const blocks = Math.ceil(size / blockBytes);
    await this.#layer.grow(blocks);
    await this.#layer.sync();
    if (this.#map.blocks > blocks) this.#map = beginning(this.#map, blocks);
    this.#map.grow(blocks);
  }

  close(): Promise<void> {
    return this.#layer.file.close();
  }
}

function beginning(map: OwnerMap, blocks: number): OwnerMap {
  const smaller = new OwnerMap(blocks);
  for (let at = 0; at < blocks;) {
    const count = map.runLength(at, blocks - at);
    smaller.set(at, count, map.ownerOf(at));
    at += count;
  }
  map.release();
  return smaller;
}
