import { randomBytes } from "node:crypto";
import { lstat, open, rename, unlink, type FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { describeError, UllageError } from "../base/errors.ts";
import type { Piece } from "../image/sparse-stream.ts";

/** Where a file's content goes; its pieces come in ascending order. */
export interface ContentOutput {
  /** @param size bytes of the whole */
  begin(size: number): Promise<void>;
  write(piece: Piece): Promise<void>;
  /** All of it is there, durably. */
  end(): Promise<void>;
  /** It did not work out: nothing is left. */
  abandon(): Promise<void>;
}

/**
 * A file that is there only when it is complete: written, with holes for zeros, under a temporary name beside its own
 * (`.NAME.XXXXXXXX.part`, which only a kill leaves behind), synced, and renamed.
 */
export class PartialFile implements ContentOutput {
  readonly #path: string;
  readonly #partial: string;
  readonly #force: boolean;
  #file: FileHandle | undefined;

  private constructor(path: string, force: boolean) {
    this.#path = path;
    this.#force = force;
    this.#partial = join(dirname(path), `.${basename(path)}.${randomBytes(4).toString("hex")}.part`);
  }

  /** @param force replace a file that is there already @throws UllageError `output-exists`, `output` */
  static async create(path: string, force: boolean): Promise<PartialFile> {
    const file = new PartialFile(path, force);
    await file.#demandFree();
    await file.#try(async () => {
      file.#file = await open(file.#partial, "wx");
    });
    return file;
  }

  async #demandFree(): Promise<void> {
    const found = await lstat(this.#path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return undefined;
      throw this.#failed(error);
    });
    if (found === undefined || (this.#force && found.isFile())) return;
    const what = found.isFile() ? "is there already" : "is there already, and is no file";
    throw new UllageError("output-exists", `${this.#path} ${what}`, {
      hint: found.isFile() ? "--force replaces it" : "give the name of a file; `-` writes to a pipe or a device",
    });
  }

  begin(size: number): Promise<void> {
    return this.#try(() => this.#file!.truncate(size));
  }

  write({ offset, bytes }: Piece): Promise<void> {
    return this.#try(async () => {
      for (let done = 0; done < bytes.length;) {
        done += (await this.#file!.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
      }
    });
  }

  async end(): Promise<void> {
    await this.#try(() => this.#file!.sync());
    await this.#demandFree();
    await this.#try(async () => {
      await this.#file!.close();
      await rename(this.#partial, this.#path);
      const directory = await open(dirname(this.#path), "r");
      try {
        await directory.sync();
      } finally {
        await directory.close();
      }
    });
  }

  async abandon(): Promise<void> {
    await this.#file?.close().catch(() => undefined); // it may be closed already
    await unlink(this.#partial).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "ENOENT") throw this.#failed(error);
    });
  }

  async #try(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      throw this.#failed(error);
    }
  }

  #failed(cause: unknown): UllageError {
    const { code } = cause as NodeJS.ErrnoException;
    if (code === "ENOENT") {
      const directory = dirname(this.#path);
      return new UllageError("output", `can't write ${this.#path}: there is no directory ${directory}`, {
        hint: `mkdir -p ${directory}`,
      });
    }
    const hint = code === "ENOSPC" ? "free some space, or write to another place; nothing was left" : undefined;
    const why = `can't write ${this.#path}: ${describeError(cause)}`;
    return new UllageError("output", why, hint === undefined ? {} : { hint });
  }
}

const zeros = Buffer.alloc(256 * 1024);

/** Standard output, where zeros can't be left out. */
export class StandardOutput implements ContentOutput {
  #size = 0;
  #position = 0;

  begin(size: number): Promise<void> {
    this.#size = size;
    return Promise.resolve();
  }

  async write({ offset, bytes }: Piece): Promise<void> {
    await this.#fillTo(offset);
    if (bytes.length > 0) await this.#put(bytes);
  }

  async end(): Promise<void> {
    await this.#fillTo(this.#size);
  }

  abandon(): Promise<void> {
    return Promise.resolve();
  }

  async #fillTo(offset: number): Promise<void> {
    while (this.#position < offset) await this.#put(zeros.subarray(0, offset - this.#position));
  }

  #put(bytes: Buffer): Promise<void> {
    this.#position += bytes.length;
    return new Promise((resolve, reject) => {
      process.stdout.write(bytes, (error) => {
        if (error == null) resolve();
        else reject(new UllageError("output", `can't write to standard output: ${error.message}`));
      });
    });
  }
}
