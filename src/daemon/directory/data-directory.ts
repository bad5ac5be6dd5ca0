import { existsSync } from "node:fs";
import { hostname } from "node:os";
import { dirname, join, resolve } from "node:path";
import { readFile, stat, writeFile } from "node:fs/promises";
import { IoError, UllageError } from "../../base/errors.ts";
import type { DirectoryLock, FileSystem } from "../../base/file-system.ts";
import type { Warning } from "../health/health.ts";
import type { Log } from "../log.ts";
import { flushWarnings, lockWeakness, mountPointOf } from "./mount-point.ts";
import { SpareSpace } from "./spare-space.ts";

/*
 * The data directory: its layout, and who may write in it.
 *
 *   catalog.db   blobs/   volumes/   maps/   layers/   orphans/   lock   spare   api.sock   nbd.sock   blobd.sock
 *
 * Whoever writes here holds flocks on the descriptors of the directory itself and of volumes/, taken before anything in
 * them is read (durability rule 20); the blob cache locks blobs/. The file `lock` only says who; removing it unlocks
 * nothing.
 */

const subdirectories = ["blobs", "volumes", "maps", "layers", "orphans"] as const;
/** What a directory must hold, at least one of them, to be taken for ours when it is not empty. */
const marks = ["catalog.db", "volumes"];
/** May lie in a directory that counts as empty; a service manager makes sockets before the first start. */
const ignored = new Set(["lost+found", "lock", "api.sock", "nbd.sock", "blobd.sock"]);

export interface OpenDataDirectoryOptions {
  /** For the `lock` file: what the process is, `serve`, `run`, `repair`. */
  command: string;
  /** Make the directory when it is missing; otherwise that is an error. */
  create: boolean;
  /** Use a file system whose locks can't keep a second writer out. */
  unsafeFileSystem?: boolean;
  /** Default: nothing is logged. */
  log?: Log;
}

export class DataDirectory {
  /** absolute */
  readonly path: string;
  /** What makes flushes meaningless here. */
  readonly warnings: readonly Warning[];
  readonly spare: SpareSpace;
  readonly #fs: FileSystem;
  readonly #locks: DirectoryLock[];

  private constructor(fs: FileSystem, spare: SpareSpace, path: string, locks: DirectoryLock[], warnings: Warning[]) {
    this.path = path;
    this.spare = spare;
    this.warnings = warnings;
    this.#fs = fs;
    this.#locks = locks;
  }

  /**
   * Locks the directory and makes what is missing in it, durably.
   * @throws UllageError `data-in-use`, `data-missing`, `data-foreign`, `data-unwritable`, `data-file-system`
   */
  static async open(fs: FileSystem, path: string, options: OpenDataDirectoryOptions): Promise<DataDirectory> {
    const root = resolve(path);
    const locks: DirectoryLock[] = [];
    try {
      await makeRoot(fs, root, options.create);
      locks.push(await lock(fs, root, root));
      await refuseForeign(fs, root, options.create);
      const spare = new SpareSpace(fs, root, options.log ?? (() => undefined));
      await spare.borrow();
      const mount = await mountPointOf(root);
      const weakness = mount === undefined ? undefined : lockWeakness(mount);
      if (weakness !== undefined && options.unsafeFileSystem !== true) {
        throw new UllageError("data-file-system", `${root} is no safe place for volumes: ${weakness}`, {
          hint: "use a local file system, or --unsafe-file-system when certainly nobody else uses this directory",
        });
      }
      for (const name of subdirectories) await fs.mkdir(join(root, name));
      await fs.syncDirectory(root);
      locks.push(await lock(fs, root, join(root, "volumes")));
      await writeFile(join(root, "lock"), describeSelf(options.command), { mode: 0o600 });
      return new DataDirectory(fs, spare, root, locks, flushWarnings(mount, process.env["LD_PRELOAD"]));
    } catch (error) {
      await releaseAll(locks);
      throw explain(error, root);
    }
  }

  /** @returns the absolute path of something below the directory */
  below(...names: string[]): string {
    return join(this.path, ...names);
  }

  async close(): Promise<void> {
    await this.spare.close();
    await this.#fs.unlink(this.below("lock"));
    await releaseAll(this.#locks);
  }
}

const startedWith = "name the directory that `ullage serve` or `ullage run` was given with --data";

async function makeRoot(fs: FileSystem, root: string, create: boolean): Promise<void> {
  const found = await stat(root).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw new IoError(error.code ?? "EIO", `stat ${root} failed: ${error.code}`, error);
  });
  if (found?.isDirectory() === true) return;
  if (found !== undefined)
    throw new UllageError("data-foreign", `${root} is not a directory`, {
      hint: "name the directory that the data is to be in",
    });
  if (!create) {
    throw new UllageError("data-missing", `there is no data directory ${root}`, {
      hint: startedWith,
    });
  }
  await makeRoot(fs, dirname(root), true);
  await fs.mkdir(root);
  await fs.syncDirectory(dirname(root));
}

async function refuseForeign(fs: FileSystem, root: string, create: boolean): Promise<void> {
  const names = (await fs.readdir(root)).filter((name) => !ignored.has(name));
  if (names.length === 0 || marks.some((mark) => names.includes(mark))) return;
  const some = names.sort().slice(0, 3).join(", ");
  throw new UllageError("data-foreign", `${root} is not a data directory of Ullage: it holds ${some}`, {
    hint: create ? "name an empty or a new directory" : startedWith,
  });
}

async function lock(fs: FileSystem, root: string, directory: string): Promise<DirectoryLock> {
  try {
    return await fs.lockDirectory(directory);
  } catch (error) {
    if (!(error instanceof UllageError) || error.code !== "locked") throw error;
    const holder = await readFile(join(root, "lock"), "utf8").catch(() => "");
    throw new UllageError("data-in-use", `${root} is in use by ${describeHolder(holder)}`, {
      hint: "stop that process first, or use another directory",
    });
  }
}

interface Holder {
  pid: number;
  command: string;
  host: string;
  since: string;
}

function describeSelf(command: string): string {
  const self: Holder = { pid: process.pid, command, host: hostname(), since: new Date().toISOString() };
  return `${JSON.stringify(self)}\n`;
}

function describeHolder(text: string): string {
  try {
    const { pid, command, host, since } = JSON.parse(text) as Holder;
    return `process ${pid} (ullage ${command} on ${host} since ${since})`;
  } catch {
    return "another process"; // it has locked the directory and not yet written the file
  }
}

async function releaseAll(locks: DirectoryLock[]): Promise<void> {
  for (const held of locks.splice(0).toReversed()) await held.release();
}

/** Turns what the system says about a directory that can't be used into what to do about it. */
function explain(error: unknown, root: string): unknown {
  const errno = (error instanceof IoError ? error.errno : (error as NodeJS.ErrnoException).code) ?? "";
  if (error instanceof UllageError && !(error instanceof IoError)) return error;
  const options = { cause: error };
  switch (errno) {
    case "EROFS":
      return new UllageError("data-unwritable", `${root} lies on a file system that is mounted read-only`, {
        ...options,
        hint: "mount it read-write, or name another directory with --data",
      });
    case "EACCES":
    case "EPERM":
      return new UllageError("data-unwritable", `${root} can't be written by user ${process.getuid?.()}`, {
        ...options,
        hint: existsSync(root)
          ? `run as its owner, or give it away: chown -R ${process.getuid?.()} ${root}`
          : "name a directory that this user may make, with --data",
      });
    case "ENOENT":
      return new UllageError("data-unwritable", `${root} can't be made`, {
        ...options,
        hint: "name another directory with --data",
      });
    case "ENOSPC":
    case "EDQUOT":
      return new UllageError("data-unwritable", `there is no space left for ${root}`, {
        ...options,
        hint: "free some space, or name another directory with --data",
      });
    default:
      return error;
  }
}
