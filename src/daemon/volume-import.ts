import { UllageError } from "../base/errors.ts";
import { IoBuffer } from "../base/io-buffer.ts";
import { dataRuns } from "../base/zero-blocks.ts";
import { detectFormat, detectHeadBytes } from "../image/detect.ts";
import type { Piece } from "../image/sparse-stream.ts";
import type { Volume } from "../volume/volume.ts";

/** What a new volume is filled with, as it comes. */
export interface ImportContent {
  /** bytes; undefined: known when all of it is there */
  size: number | undefined;
  /** `auto`: what is recognised as a format that can't be read is refused; `raw`: the bytes are the disk's, whatever they are */
  format: string;
  /**
   * In ascending order; what no piece is for reads as zeros. The end of the last one, which may be empty, is the size. Asked
   * for once, when everything else is known to be right. To be ended when the signal is aborted.
   */
  pieces(signal: AbortSignal): AsyncIterable<Piece>;
}

/** How far it came. */
export interface Imported {
  /** bytes of the content */
  size: number;
  /** of them, other than zeros */
  dataBytes: number;
}

/** Size of a volume whose content's size is not known yet; it then doubles, or grows by the step if that is less. */
export const firstImportBytes = 1024 ** 3;
const growStepBytes = 64 * 1024 ** 3;

/** Written at a time; whole blocks. */
const windowBytes = 256 * 1024;

/**
 * Writes a content to a volume that has nothing in it and that nobody else uses; grows it when that is needed. Zeros are not
 * written. One window is in memory, and the sender waits while it is written. Nothing is durable yet when it resolves.
 * @throws UllageError `format-unsupported`, `transfer-cut`, `transfer-damaged`; IoError
 */
export async function fillVolume(
  content: ImportContent,
  signal: AbortSignal,
  volume: { device: Volume; grow(size: number): Promise<void> },
): Promise<Imported> {
  const window = new Window(content.format, volume);
  let size = 0;
  for await (const { offset, bytes } of content.pieces(signal)) {
    signal.throwIfAborted();
    if (offset < size) throw new UllageError("transfer-damaged", `${offset} comes behind ${size}`);
    size = offset + bytes.length;
    if (content.size !== undefined && size > content.size) break;
    await window.put(offset, bytes);
  }
  signal.throwIfAborted();
  if (content.size !== undefined && size !== content.size) {
    throw new UllageError("transfer-cut", `${size} bytes came of ${content.size}`);
  }
  await window.end(size);
  return { size, dataBytes: window.dataBytes };
}

/** Gathers pieces until a window of the disk is complete. */
class Window {
  dataBytes = 0;
  readonly #buffer = new IoBuffer(windowBytes);
  readonly #format: string;
  readonly #volume: { device: Volume; grow(size: number): Promise<void> };
  #offset = 0;
  /** Bytes that were put in, counted from the window's beginning. */
  #filled = 0;

  constructor(format: string, volume: { device: Volume; grow(size: number): Promise<void> }) {
    this.#format = format;
    this.#volume = volume;
    this.#buffer.bytes.fill(0);
  }

  async put(offset: number, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const position = offset + at;
      if (position >= this.#offset + windowBytes) {
        await this.#write();
        this.#offset = position - (position % windowBytes);
      }
      const inside = position - this.#offset;
      const size = Math.min(bytes.length - at, windowBytes - inside);
      bytes.copy(this.#buffer.bytes, inside, at, at + size);
      this.#filled = inside + size;
      at += size;
    }
  }

  /** @param size bytes of the content */
  async end(size: number): Promise<void> {
    await this.#write();
    await this.#demand(size);
  }

  async #write(): Promise<void> {
    const { bytes } = this.#buffer;
    if (this.#offset === 0) detectFormat(bytes.subarray(0, detectHeadBytes), windowBytes, this.#format);
    await this.#demand(this.#offset + this.#filled);
    for (const { offset, length } of dataRuns(bytes, 0, this.#filled)) {
      const { device } = this.#volume;
      if (!device.tryWrite(this.#offset + offset, length, this.#buffer, offset)) {
        await device.write(this.#offset + offset, this.#inVolume(offset, length), this.#buffer, offset);
      }
      this.dataBytes += length;
    }
    bytes.fill(0, 0, this.#filled);
    this.#filled = 0;
  }

  /** The volume ends with a sector: what is behind the content's end in it are zeros. */
  #inVolume(offset: number, length: number): number {
    return Math.min(Math.ceil(length / 512) * 512, this.#volume.device.size - this.#offset - offset);
  }

  async #demand(size: number): Promise<void> {
    for (;;) {
      const now = this.#volume.device.size;
      if (size <= now) return;
      await this.#volume.grow(now + Math.min(now, growStepBytes));
    }
  }
}
