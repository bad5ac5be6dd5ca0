import { UllageError } from "../../base/errors.ts";
import { IoBuffer } from "../../base/io-buffer.ts";
import { dataRuns, zeroBlockBytes } from "../../base/zero-blocks.ts";
import { detectFormat, detectHeadBytes } from "../../image/detect.ts";
import type { Piece } from "../../image/sparse-stream.ts";
import type { NewDisk } from "../../volume/new-disk.ts";

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

/** Written at a time; whole blocks. */
const windowBytes = 256 * 1024;

/**
 * Writes a content to a new disk, without its zeros. One window is in memory, and the sender waits while it is written.
 * @param onProgress hears how far it has come, in bytes of the content
 * @returns bytes of the content, and how many of them were written
 * @throws UllageError `format-unsupported`, `transfer-cut`, `transfer-damaged`; IoError
 */
export async function fillDisk(
  content: ImportContent,
  signal: AbortSignal,
  disk: NewDisk,
  onProgress: (bytes: number) => void,
): Promise<{ size: number; dataBytes: number }> {
  const window = new Window(content.format, disk);
  let size = 0;
  for await (const { offset, bytes } of content.pieces(signal)) {
    signal.throwIfAborted();
    if (offset < size) throw new UllageError("transfer-damaged", `${offset} comes behind ${size}`);
    size = offset + bytes.length;
    if (content.size !== undefined && size > content.size) break;
    await window.put(offset, bytes);
    onProgress(size);
  }
  signal.throwIfAborted();
  if (content.size !== undefined && size !== content.size) {
    throw new UllageError("transfer-cut", `${size} bytes came of ${content.size}`);
  }
  await window.write();
  return { size, dataBytes: window.dataBytes };
}

/** Gathers pieces until a window of the disk is complete. */
class Window {
  dataBytes = 0;
  readonly #buffer = new IoBuffer(windowBytes);
  readonly #format: string;
  readonly #disk: NewDisk;
  #offset = 0;
  /** Bytes that were put in, counted from the window's beginning; behind them are zeros. */
  #filled = 0;

  constructor(format: string, disk: NewDisk) {
    this.#format = format;
    this.#disk = disk;
    this.#buffer.bytes.fill(0);
  }

  async put(offset: number, bytes: Buffer): Promise<void> {
    for (let at = 0; at < bytes.length;) {
      const position = offset + at;
      if (position >= this.#offset + windowBytes) {
        await this.write();
        this.#offset = position - (position % windowBytes);
      }
      const inside = position - this.#offset;
      const size = Math.min(bytes.length - at, windowBytes - inside);
      bytes.copy(this.#buffer.bytes, inside, at, at + size);
      this.#filled = inside + size;
      at += size;
    }
  }

  async write(): Promise<void> {
    const { bytes } = this.#buffer;
    if (this.#offset === 0 && this.#format === "auto") demandRaw(bytes.subarray(0, detectHeadBytes));
    const length = Math.ceil(this.#filled / zeroBlockBytes) * zeroBlockBytes;
    for (const run of dataRuns(bytes, 0, length)) {
      await this.#disk.write(this.#offset + run.offset, run.length, this.#buffer, run.offset);
      this.dataBytes += run.length;
    }
    bytes.fill(0, 0, length);
    this.#filled = 0;
  }
}

/** @throws UllageError `format-unsupported` */
function demandRaw(head: Buffer): void {
  const { name } = detectFormat(head, Infinity);
  if (name === "raw") return;
  throw new UllageError("format-unsupported", `this is a ${name} image, and only raw disks can be imported`, {
    hint:
      "make it raw first (qemu-img convert -O raw; gzip -dc, xz -dc, zstd -dc in a pipe to `import -`), make the volume from a file on the daemon's machine " +
      "(volume create --from), or take its bytes as they are with --format raw",
  });
}
