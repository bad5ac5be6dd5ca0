import type { File, ReadableFile } from "../../base/file-system.ts";
import type { IoBuffer } from "../../base/io-buffer.ts";

interface Passed {
  file: File;
  /** where the blob begins in it, bytes */
  base: number;
  reads: number;
  retired: boolean;
}

/**
 * The cache file of a remote blob: what the manager passed last. A read that began with an earlier one ends with it; that
 * one is closed when its last read has ended.
 */
export class PassedFile implements ReadableFile {
  readonly path: string;
  #current: Passed;

  constructor(path: string, file: File, base: number) {
    this.path = path;
    this.#current = { file, base, reads: 0, retired: false };
  }

  tryRead(buffer: IoBuffer, at: number, length: number, offset: number): number {
    const { file, base } = this.#current;
    return file.tryRead(buffer, at, length, base + offset);
  }

  async read(buffer: IoBuffer, at: number, length: number, offset: number): Promise<number> {
    const passed = this.#current;
    passed.reads++;
    try {
      return await passed.file.read(buffer, at, length, passed.base + offset);
    } finally {
      passed.reads--;
      await closeUnused(passed);
    }
  }

  /** Reads go to another file from now on. */
  async replace(file: File, base: number): Promise<void> {
    const before = this.#current;
    this.#current = { file, base, reads: 0, retired: false };
    before.retired = true;
    await closeUnused(before);
  }

  /** Nothing may be read afterwards. */
  async close(): Promise<void> {
    this.#current.retired = true;
    await closeUnused(this.#current);
  }
}

async function closeUnused(passed: Passed): Promise<void> {
  if (passed.retired && passed.reads === 0) await passed.file.close();
}
