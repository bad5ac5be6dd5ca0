import { errnoOf, IoError } from "../base/errors.ts";
import type { ReadableFile } from "../base/file-system.ts";
import type { IoBuffer } from "../base/io-buffer.ts";
import type { Blob, FetchOptions } from "../blob/blob.ts";
import type { TraceRecorder } from "../blob/boot-trace.ts";
import type { Head } from "./layers/head.ts";
import type { Layer } from "./layers/layer.ts";
import { blockBytes, type OwnerMap, zeroOwner } from "./map/owner-map.ts";
import { ReadEpochs } from "./read-epochs.ts";
import type { SealedLayers } from "./layers/sealed-layers.ts";

/*
 * Reads disk ranges from whoever owns them: run by run, zeros from nowhere, written blocks from a layer, the rest from a
 * blob's cache file once it is ready there.
 */

/** How often a range may turn out not to be ready after all before the read gives up. */
const maxAttempts = 5;

export class OwnerReader {
  /** Notes what is read of the image. */
  recorder: TraceRecorder | undefined;
  readonly #map: OwnerMap;
  readonly #head: Head | undefined;
  readonly #layers: SealedLayers;
  readonly #blobs: ReadonlyMap<number, Blob>;
  readonly #epochs = new ReadEpochs();

  /** @param head undefined: all layers are sealed, as in a snapshot */
  constructor(map: OwnerMap, head: Head | undefined, layers: SealedLayers, blobs: ReadonlyMap<number, Blob>) {
    this.#map = map;
    this.#head = head;
    this.#layers = layers;
    this.#blobs = blobs;
  }

  /** Resolves when every read of a layer that has begun has ended; those on the calling thread end in their turn. */
  readsEnded(): Promise<void> {
    return this.#epochs.ended();
  }

  #layerOf(owner: number): Layer {
    return owner === this.#head?.owner ? this.#head.layer : this.#layers.get(owner);
  }

  /** Reads all of the range without waiting, or returns false. */
  tryRead(offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    const end = offset + length;
    for (let position = offset; position < end;) {
      const block = Math.floor(position / blockBytes);
      const stop = this.#runEnd(block, end);
      if (!this.#tryRun(this.#map.ownerOf(block), position, stop - position, buffer, at + position - offset)) {
        return false;
      }
      position = stop;
    }
    return true;
  }

  /** Where the run of blocks with one owner that begins at `block` ends, `end` at most; bytes. */
  #runEnd(block: number, end: number): number {
    if ((block + 1) * blockBytes >= end) return end;
    const run = this.#map.runLength(block, Math.ceil(end / blockBytes) - block);
    return Math.min((block + run) * blockBytes, end);
  }

  #tryRun(owner: number, offset: number, length: number, buffer: IoBuffer, at: number): boolean {
    if (owner === zeroOwner) {
      buffer.bytes.fill(0, at, at + length);
      return true;
    }
    const blob = this.#blobs.get(owner);
    if (blob === undefined) {
      const layer = this.#layerOf(owner);
      return layer.file.tryRead(buffer, at, length, layer.position(offset)) === length;
    }
    const inside = Math.max(0, Math.min(length, blob.size - offset));
    if (inside > 0) {
      const { losses } = blob;
      if (!blob.isReady(offset, inside)) return false;
      blob.noteRead(offset, inside);
      this.recorder?.note(offset, inside);
      if (blob.file.tryRead(buffer, at, inside, offset) !== inside || blob.losses !== losses) return false;
    }
    if (inside < length) buffer.bytes.fill(0, at + inside, at + length);
    return true;
  }

  /** Reads the range, fetching what is missing; what the cache has no room for is not kept. @throws SourceError, IoError */
  async read(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    for (let attempt = 0; attempt < maxAttempts; attempt++) {
      try {
        await this.fetch(offset, length, { optional: true });
      } catch (error) {
        if (errnoOf(error) === "ENOSPC" && (await this.#readAll(offset, length, buffer, at, true))) return;
        throw error;
      }
      if (await this.#readAll(offset, length, buffer, at, false)) return;
    }
    throw new IoError("EIO", `the range ${offset}+${length} was fetched ${maxAttempts} times and lost again`);
  }

  /** Reads a range that is local already; the caller holds its range lock, so nothing may be fetched here. */
  async readLocal(offset: number, length: number, buffer: IoBuffer, at: number): Promise<void> {
    if (await this.#readAll(offset, length, buffer, at, false)) return;
    throw new IoError("EIO", `the range ${offset}+${length} is no longer in the cache; try again`);
  }

  /**
   * @param through what is not ready is asked of its source
   * @returns false when something is not (or no longer) ready, and its source out of reach
   */
  async #readAll(offset: number, length: number, buffer: IoBuffer, at: number, through: boolean): Promise<boolean> {
    const end = offset + length;
    for (let position = offset; position < end;) {
      const block = Math.floor(position / blockBytes);
      const stop = this.#runEnd(block, end);
      const owner = this.#map.ownerOf(block);
      const run = stop - position;
      if (!(await this.#readRun(owner, position, run, buffer, at + position - offset, through))) return false;
      position = stop;
    }
    return true;
  }

  async #readRun(
    owner: number,
    offset: number,
    length: number,
    buffer: IoBuffer,
    at: number,
    through: boolean,
  ): Promise<boolean> {
    if (owner === zeroOwner) {
      buffer.bytes.fill(0, at, at + length);
      return true;
    }
    const blob = this.#blobs.get(owner);
    if (blob === undefined) {
      const layer = this.#layerOf(owner);
      const epoch = this.#epochs.enter();
      try {
        await readFully(layer.file, buffer, at, length, layer.position(offset));
      } finally {
        this.#epochs.leave(epoch);
      }
      return true;
    }
    const inside = Math.max(0, Math.min(length, blob.size - offset));
    for (let done = 0; done < inside;) {
      const piece = through ? blob.readyRun(offset + done, inside - done) : inside;
      if (!(await readReady(blob, offset + done, piece, buffer, at + done))) {
        if (!through || blob.readThrough === undefined) return false;
        await blob.readThrough(offset + done, piece, buffer, at + done);
      }
      done += piece;
    }
    if (inside < length) buffer.bytes.fill(0, at + inside, at + length);
    return true;
  }

  /** Makes every blob-owned part of the range ready. Resolves at once when all of it is. */
  async fetch(offset: number, length: number, options?: FetchOptions): Promise<void> {
    const end = offset + length;
    let fetches: Promise<void>[] | undefined;
    for (let position = offset; position < end;) {
      const block = Math.floor(position / blockBytes);
      const stop = this.#runEnd(block, end);
      const blob = this.#blobs.get(this.#map.ownerOf(block));
      if (blob) {
        const inside = Math.max(0, Math.min(stop - position, blob.size - position));
        if (inside > 0) {
          blob.noteRead(position, inside);
          this.recorder?.note(position, inside);
          if (!blob.isReady(position, inside)) (fetches ??= []).push(blob.fetch(position, inside, options));
        }
      }
      position = stop;
    }
    if (fetches) await Promise.all(fetches);
  }

  /** Whether the range can be read without a fetch. */
  ready(offset: number, length: number): boolean {
    const end = offset + length;
    for (let position = offset; position < end;) {
      const block = Math.floor(position / blockBytes);
      const stop = this.#runEnd(block, end);
      const blob = this.#blobs.get(this.#map.ownerOf(block));
      const inside = blob ? Math.min(stop - position, blob.size - position) : 0;
      if (inside > 0 && !blob!.isReady(position, inside)) return false;
      position = stop;
    }
    return true;
  }
}

/** @returns false when the range is not (or no longer) ready */
async function readReady(blob: Blob, offset: number, length: number, buffer: IoBuffer, at: number): Promise<boolean> {
  const { losses } = blob;
  if (!blob.isReady(offset, length)) return false;
  await readFully(blob.file, buffer, at, length, offset);
  // A failed sync of the cache may have taken the unit back while this read waited, and it may have been fetched
  // again since: that it is ready now says nothing of what was read (rules 12, 13).
  return blob.losses === losses;
}

/** Layers and cache files have their full size from the start: a short read is damage, never zeros (rule 19). */
async function readFully(
  file: ReadableFile,
  buffer: IoBuffer,
  at: number,
  length: number,
  offset: number,
): Promise<void> {
  const got = file.tryRead(buffer, at, length, offset);
  if (got === length) return;
  const rest = await file.read(buffer, at + got, length - got, offset + got);
  if (rest === length - got) return;
  throw new IoError("EIO", `${file.path} ends at ${offset + got + rest}, inside the range ${offset}+${length}`);
}
