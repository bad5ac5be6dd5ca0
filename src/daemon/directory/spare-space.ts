import { join } from "node:path";
import { describeError } from "../../base/errors.ts";
import type { FileSystem } from "../../base/file-system.ts";
import type { Log } from "../log.ts";
import { Turns } from "../turns.ts";

/*
 * Space that is kept for a full disk: a file of zeros that are not written. To start, to open a volume and to remove one
 * takes some space itself (a log, the catalog), so that on a disk without a free block nothing could make room any more.
 * Whatever is about to do that borrows here first: on a full disk the file goes, and it is made again when there is room.
 *
 * Nothing depends on the file, nor on its being durable: a crash leaves it, a part of it, or none.
 */

const NAME = "spare";
/** It is this share of the file system, */
const SHARE = 1 / 128;
/** and so large at least and at most, bytes. */
const LEAST = 2 * 1024 * 1024;
const MOST = 32 * 1024 * 1024;
/** It is made where so many times its size is free. */
const ROOM = 4;
/** With less than this, bytes, a disk counts as full; a small one with less than the share. */
const FULL = 4 * 1024 * 1024;

export class SpareSpace {
  readonly #fs: FileSystem;
  readonly #dir: string;
  readonly #log: Log;
  readonly #turns = new Turns();
  #closed = false;

  /** @param dir a data directory that the caller has locked */
  constructor(fs: FileSystem, dir: string, log: Log) {
    this.#fs = fs;
    this.#dir = dir;
    this.#log = log;
  }

  /** Before something that makes room, or has to go on without any: on a full disk the file goes. Never rejects. */
  borrow(): Promise<void> {
    return this.#inTurn(async (path, { free, total }) => {
      if (free >= Math.min(FULL, total * SHARE) || !(await this.#fs.exists(path))) return;
      await this.#fs.unlink(path);
      this.#log("warn", `the disk of ${this.#dir} is full: the space that was kept for this is used now`);
    });
  }

  /** Makes the file when it is not there and the disk has room. Never rejects. */
  refill(): Promise<void> {
    return this.#inTurn(async (path, { free, total }) => {
      const bytes = Math.min(MOST, Math.max(LEAST, Math.ceil(total * SHARE)));
      if (this.#closed || free < bytes * ROOM || (await this.#fs.exists(path))) return;
      const file = await this.#fs.open(path, "create");
      try {
        if (!(await file.allocate(bytes))) await this.#fs.unlink(path); // no space can be kept here
      } finally {
        await file.close();
      }
    });
  }

  /** Resolves when nothing of it is under way; nothing is made afterwards. */
  close(): Promise<void> {
    this.#closed = true;
    return this.#turns.run(() => Promise.resolve());
  }

  #inTurn(work: (path: string, space: { free: number; total: number }) => Promise<void>): Promise<void> {
    return this.#turns.run(async () => {
      try {
        await work(join(this.#dir, NAME), await this.#fs.space(this.#dir));
      } catch (error) {
        this.#log("warn", `the space for a full disk could not be looked after: ${describeError(error)}`);
      }
    });
  }
}
