import type { DirectoryLock, File, FileSystem } from "../../src/base/file-system.ts";
import { IoError } from "../../src/base/errors.ts";
import type { SimDisk } from "./sim-disk.ts";
import { SimFile } from "./sim-file.ts";
import { SimDirectory } from "./sim-namespace.ts";
import { pageBytes, SimInode } from "./sim-inode.ts";

/** A call that waits in the thread pool. */
export interface PoolCall {
  label: string;
  /** The process was killed before the call took effect: it may do so all the same, or in part. */
  land(): void;
}

/**
 * The file system as one process sees it. Calls in the thread pool take effect at a moment that the seed picks between
 * the call and its answer. Once the process is dead, no call has an effect and no promise settles.
 */
export class SimFileSystem implements FileSystem {
  readonly disk: SimDisk;
  readonly inFlight = new Set<PoolCall>();
  readonly files = new Set<SimFile>();
  dead = false;
  /** Failed syncs that this process was told of: the file, and the number of the call. */
  readonly syncErrorsTold: { path: string; call: number }[] = [];

  constructor(disk: SimDisk) {
    this.disk = disk;
  }

  open(path: string, mode: "create" | "write" | "read"): Promise<File> {
    return this.inPool(`open ${path}`, () => {
      let inode = this.disk.namespace.lookup(path);
      if (mode === "create") {
        this.failMetadata(path, "create");
        if (inode) throw new IoError("EEXIST", `create ${path}: file exists`);
        inode = this.disk.newInode();
        this.disk.namespace.link(this.disk.tick(), path, inode);
      }
      if (!inode) throw new IoError("ENOENT", `open ${path}: no such file or directory`);
      if (inode instanceof SimDirectory) throw new IoError("EISDIR", `open ${path}: is a directory`);
      if (mode !== "read" && inode.sealed) throw new IoError("EACCES", `open ${path}: permission denied`);
      return new SimFile(this, path, inode, mode !== "read");
    });
  }

  openNow(path: string): File {
    if (this.dead) throw new IoError("EIO", "the process is dead");
    const inode = this.disk.namespace.lookup(path);
    if (!inode) throw new IoError("ENOENT", `open ${path}: no such file or directory`);
    if (inode instanceof SimDirectory) throw new IoError("EISDIR", `open ${path}: is a directory`);
    return new SimFile(this, path, inode, false);
  }

  readFile(path: string): Promise<Buffer> {
    return this.inPool(`readFile ${path}`, () => {
      const inode = this.disk.namespace.lookup(path);
      if (!(inode instanceof SimInode)) throw new IoError("ENOENT", `open ${path}: no such file or directory`);
      const bytes = Buffer.alloc(inode.size);
      inode.read(bytes, 0, bytes.length, 0);
      return bytes;
    });
  }

  rename(from: string, to: string): Promise<void> {
    return this.inPool(`rename ${from} ${to}`, () => {
      this.failMetadata(from, "rename");
      this.disk.namespace.rename(this.disk.tick(), from, to);
    });
  }

  unlink(path: string): Promise<void> {
    return this.inPool(`unlink ${path}`, () => {
      const node = this.disk.namespace.lookup(path);
      if (!node) return;
      this.failMetadata(path, "unlink");
      if (node instanceof SimDirectory) throw new IoError("EISDIR", `unlink ${path}: is a directory`);
      this.disk.namespace.unlink(this.disk.tick(), path);
    });
  }

  mkdir(path: string): Promise<void> {
    return this.inPool(`mkdir ${path}`, () => {
      if (this.disk.namespace.lookup(path) instanceof SimDirectory) return;
      this.failMetadata(path, "mkdir");
      if (this.disk.namespace.lookup(path)) throw new IoError("EEXIST", `mkdir ${path}: file exists`);
      this.disk.namespace.link(this.disk.tick(), path, new SimDirectory());
    });
  }

  rmdir(path: string): Promise<void> {
    return this.inPool(`rmdir ${path}`, () => {
      this.failMetadata(path, "rmdir");
      if (this.disk.namespace.directory(path).entries.size > 0) {
        throw new IoError("ENOTEMPTY", `rmdir ${path}: directory not empty`);
      }
      this.disk.namespace.unlink(this.disk.tick(), path);
    });
  }

  readdir(path: string): Promise<string[]> {
    return this.inPool(`readdir ${path}`, () => {
      const node = this.disk.namespace.lookup(path);
      return node instanceof SimDirectory ? [...node.entries.keys()] : [];
    });
  }

  exists(path: string): Promise<boolean> {
    return this.inPool(`exists ${path}`, () => this.disk.namespace.lookup(path) !== undefined);
  }

  async syncDirectory(path: string): Promise<void> {
    const { directory, seq } = await this.inPool(`syncDirectory ${path}`, () => {
      this.failMetadata(path, "fsync");
      return { directory: this.disk.namespace.directory(path), seq: this.disk.now };
    });
    await this.inPool(`syncDirectory ${path} ends`, () => this.disk.namespace.makeDurable(seq, directory));
  }

  space(path: string): Promise<{ free: number; total: number }> {
    return this.inPool(`space ${path}`, () => ({
      free: this.disk.freePages * pageBytes,
      total: this.disk.options.capacityPages * pageBytes,
    }));
  }

  async lockDirectory(path: string): Promise<DirectoryLock> {
    const directory = await this.inPool(`lock ${path}`, () => this.disk.lock(this, path));
    return {
      release: () =>
        this.inPool(`unlock ${path}`, () => {
          if (this.disk.locks.get(directory) === this) this.disk.locks.delete(directory);
        }),
    };
  }

  /**
   * Runs a call in the simulated thread pool: `apply` at one moment, the answer at a later one.
   * @param part what the call may leave behind when the process dies in it; default: all of it
   */
  inPool<T>(label: string, apply: () => T, part: () => void = () => void apply()): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.dead) return;
      const call: PoolCall = { label, land: () => attempt(part) };
      this.inFlight.add(call);
      this.disk.scheduler.add(label, () => {
        if (this.disk.enter(this) !== "alive") return;
        this.inFlight.delete(call);
        let answer: () => void;
        try {
          const result = apply();
          answer = () => resolve(result);
        } catch (error) {
          answer = () => reject(error);
        }
        this.disk.scheduler.add(`${label}: answer`, answer);
      });
    });
  }

  /** @throws IoError when a fault is due in a call on names or extents */
  failMetadata(path: string, call: string): void {
    const { metadataErrors, faulty } = this.disk.options;
    if (metadataErrors === 0 || !faulty(path) || !this.disk.random.chance(metadataErrors)) return;
    const errno = this.disk.random.chance(0.5) ? "ENOSPC" : "EIO";
    throw new IoError(errno, `${call} ${path}: injected ${errno}`);
  }

  closeAll(): void {
    for (const file of this.files) this.disk.closed(file.inode);
    this.files.clear();
    this.inFlight.clear();
  }
}

/** A call whose process is dead answers nobody. */
function attempt(part: () => void): void {
  try {
    part();
  } catch (error) {
    if (!(error instanceof IoError)) throw error;
  }
}
