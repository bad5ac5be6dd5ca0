import fs from "node:fs";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { IoError, UllageError } from "./errors.ts";
import type { DirectoryLock, File, FileBinding, FileSystem } from "./file-system.ts";
import type { IoBuffer } from "./io-buffer.ts";
import * as posix from "./posix.ts";
import { syncSlots } from "./pool-slots.ts";

/*
 * Files by system calls. Reads that the page cache can answer and writes into it run on the calling thread; the rest in
 * libuv's pool. A file whose file system has no RWF_NOWAIT (tmpfs: cannot wait for a disk, so plain pread; overlayfs
 * and others: pool only) is found out at its first read (durability rule 23).
 */

const fsRead = promisify(fs.read) as (
  fd: number,
  buffer: Buffer,
  at: number,
  length: number,
  offset: number,
) => Promise<{ bytesRead: number }>;
const fsWrite = promisify(fs.write) as (
  fd: number,
  buffer: Buffer,
  at: number,
  length: number,
  offset: number,
) => Promise<{ bytesWritten: number }>;
const fsFdatasync = promisify(fs.fdatasync);
const fsFtruncate = promisify(fs.ftruncate);
const fsClose = promisify(fs.close);
const fsFchmod = promisify(fs.fchmod);

const NOWAIT = 0;
const PLAIN = 1;
const POOL = 2;

const bootId = readBootId();

class RealFile implements File {
  readonly path: string;
  readonly #fd: number;
  #readMode: number = NOWAIT;

  constructor(path: string, fd: number) {
    this.path = path;
    this.#fd = fd;
  }

  tryRead(buffer: IoBuffer, at: number, length: number, offset: number): number {
    assertRange(buffer, at, length);
    if (this.#readMode === NOWAIT) {
      const got = posix.preadNowait(this.#fd, buffer.address + at, length, offset);
      return got >= 0 ? got : this.#nowaitFailed(buffer, at, length, offset, posix.errno());
    }
    if (this.#readMode === POOL) return 0;
    const got = posix.pread(this.#fd, buffer.address + at, length, offset);
    if (got < 0) throw this.#failed("read", posix.errnoName(posix.errno()), offset);
    return got;
  }

  #nowaitFailed(buffer: IoBuffer, at: number, length: number, offset: number, code: number): number {
    if (code === posix.EAGAIN || code === posix.EINTR) return 0;
    const name = posix.errnoName(code);
    if (name !== "EOPNOTSUPP" && name !== "ENOSYS" && name !== "EINVAL") throw this.#failed("read", name, offset);
    this.#readMode = posix.fileSystemName(this.#fd) === "tmpfs" ? PLAIN : POOL;
    return this.tryRead(buffer, at, length, offset);
  }

  async read(buffer: IoBuffer, at: number, length: number, offset: number): Promise<number> {
    assertRange(buffer, at, length);
    let done = 0;
    while (done < length) {
      const { bytesRead } = await fsRead(this.#fd, buffer.bytes, at + done, length - done, offset + done).catch(
        (error: NodeJS.ErrnoException) => {
          throw this.#failed("read", error.code, offset, error);
        },
      );
      if (bytesRead === 0) break;
      done += bytesRead;
    }
    return done;
  }

  writeNow(buffer: IoBuffer, at: number, length: number, offset: number): void {
    assertRange(buffer, at, length);
    let done = 0;
    while (done < length) {
      const wrote = posix.pwrite(this.#fd, buffer.address + at + done, length - done, offset + done);
      if (wrote < 0) {
        const code = posix.errno();
        if (code === posix.EINTR) continue;
        throw this.#failed("write", posix.errnoName(code), offset);
      }
      if (wrote === 0) throw this.#failed("write", "EIO", offset);
      done += wrote;
    }
  }

  async write(buffer: IoBuffer, at: number, length: number, offset: number): Promise<void> {
    assertRange(buffer, at, length);
    let done = 0;
    while (done < length) {
      const { bytesWritten } = await fsWrite(this.#fd, buffer.bytes, at + done, length - done, offset + done).catch(
        (error: NodeJS.ErrnoException) => {
          throw this.#failed("write", error.code, offset, error);
        },
      );
      if (bytesWritten === 0) throw this.#failed("write", "EIO", offset);
      done += bytesWritten;
    }
  }

  async datasync(): Promise<void> {
    await syncSlots.run(async () => {
      try {
        await fsFdatasync(this.#fd);
      } catch (error) {
        throw this.#failed("fdatasync", (error as NodeJS.ErrnoException).code, 0, error);
      }
    });
  }

  startWriteback(offset: number, length: number): void {
    posix.startWriteback(this.#fd, offset, length);
  }

  async punch(offset: number, length: number): Promise<boolean> {
    return this.#supported("punch", await posix.punchHoleInPool(this.#fd, offset, length), offset);
  }

  punchNow(offset: number, length: number): boolean {
    return this.#supported("punch", posix.punchHole(this.#fd, offset, length) === 0 ? 0 : posix.errno(), offset);
  }

  async allocate(length: number): Promise<boolean> {
    return this.#supported("allocate", await posix.allocateInPool(this.#fd, length), 0);
  }

  /** @param code what fallocate(2) said @returns false when the file system has no such thing */
  #supported(what: string, code: number, offset: number): boolean {
    if (code === 0) return true;
    const name = posix.errnoName(code);
    if (name === "EOPNOTSUPP" || name === "ENOSYS") return false;
    throw this.#failed(what, name, offset);
  }

  async truncate(length: number): Promise<void> {
    await fsFtruncate(this.#fd, length).catch((error: NodeJS.ErrnoException) => {
      throw this.#failed("truncate", error.code, length, error);
    });
  }

  truncateNow(length: number): void {
    try {
      fs.ftruncateSync(this.#fd, length);
    } catch (error) {
      throw this.#failed("truncate", (error as NodeJS.ErrnoException).code, length, error);
    }
  }

  size(): number {
    return fs.fstatSync(this.#fd).size;
  }

  seekData(offset: number): number {
    return posix.seekData(this.#fd, offset);
  }

  seekHole(offset: number): number {
    return posix.seekHole(this.#fd, offset);
  }

  async dropCache(): Promise<boolean> {
    posix.dropPageCache(this.#fd);
    const windowBytes = 256 * 1024 * 1024;
    const size = this.size();
    for (let offset = 0; offset < size; offset += windowBytes) {
      const data = posix.seekData(this.#fd, offset);
      if (data < 0) break;
      const start = data - (data % windowBytes);
      if (posix.anyPageCached(this.#fd, start, Math.min(windowBytes, size - start))) return false;
      offset = start;
      await new Promise(setImmediate);
    }
    return true;
  }

  allocated(): number {
    return fs.fstatSync(this.#fd).blocks * 512;
  }

  binding(): FileBinding {
    const stat = fs.fstatSync(this.#fd);
    return {
      bootId,
      device: stat.dev,
      inode: stat.ino,
      mountId: posix.uniqueMountId(this.#fd),
      fileSystem: posix.fileSystemName(this.#fd),
    };
  }

  async seal(): Promise<void> {
    await fsFchmod(this.#fd, 0o400);
  }

  async unseal(): Promise<void> {
    await fsFchmod(this.#fd, 0o600);
  }

  async close(): Promise<void> {
    await fsClose(this.#fd);
  }

  #failed(what: string, errno: string | undefined, offset: number, cause?: unknown): IoError {
    const name = errno ?? "EIO";
    return new IoError(name, `${what} of ${this.path} at ${offset} failed: ${name}`, cause);
  }
}

/** An open file that came from elsewhere; its descriptor is the file's from now on. @param path for messages */
export function fileOfDescriptor(path: string, fd: number): File {
  return new RealFile(path, fd);
}

function assertRange(buffer: IoBuffer, at: number, length: number): void {
  if (!(at >= 0 && length > 0 && at + length <= buffer.length)) {
    throw new RangeError(`range ${at}+${length} is outside a buffer of ${buffer.length} bytes`);
  }
}

function readBootId(): string {
  try {
    return fs.readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return ""; // never equal to anything: recovery then takes the power-loss rule
  }
}

/** Rewrites Node's errors as `IoError`s that name the path. */
async function io<T>(what: string, path: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? "EIO";
    throw new IoError(code, `${what} ${path} failed: ${code}`, error);
  }
}

/** Nothing there is fine. */
async function removeFile(path: string): Promise<void> {
  await fs.promises.rm(path, { force: true }).catch((error: NodeJS.ErrnoException) => {
    throw error.code === "ERR_FS_EISDIR" ? Object.assign(error, { code: "EISDIR" }) : error;
  });
}

const openFlags = {
  create: fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_EXCL,
  write: fs.constants.O_RDWR,
  read: fs.constants.O_RDONLY,
};

export const realFileSystem: FileSystem = {
  async open(path, mode) {
    const fd = await io(
      "open",
      path,
      new Promise<number>((resolve, reject) => {
        fs.open(path, openFlags[mode], 0o600, (error, descriptor) => (error ? reject(error) : resolve(descriptor)));
      }),
    );
    return new RealFile(path, fd);
  },
  openNow(path) {
    try {
      return new RealFile(path, fs.openSync(path, openFlags.read));
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? "EIO";
      throw new IoError(code, `open ${path} failed: ${code}`, error);
    }
  },
  readFile: (path) => io("read", path, fs.promises.readFile(path)),
  rename: (from, to) => io("rename", from, fs.promises.rename(from, to)),
  unlink: (path) => io("remove", path, removeFile(path)),
  async mkdir(path) {
    await io("create directory", path, fs.promises.mkdir(path, { mode: 0o700 })).catch((error: IoError) => {
      if (error.errno !== "EEXIST") throw error;
    });
  },
  rmdir: (path) => io("remove directory", path, fs.promises.rmdir(path)),
  async readdir(path) {
    try {
      return await io("list", path, fs.promises.readdir(path));
    } catch (error) {
      if (error instanceof IoError && error.errno === "ENOENT") return [];
      throw error;
    }
  },
  exists: (path) =>
    fs.promises
      .stat(path)
      .then(() => true)
      .catch(() => false),
  async syncDirectory(path) {
    await syncSlots.run(() =>
      io(
        "sync directory",
        path,
        (async () => {
          const handle = await fs.promises.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
          try {
            await handle.sync();
          } finally {
            await handle.close();
          }
        })(),
      ),
    );
  },
  async space(path) {
    const stat = await io("statfs", path, fs.promises.statfs(path));
    return { free: stat.bavail * stat.bsize, total: stat.blocks * stat.bsize };
  },
  lockDirectory(path): Promise<DirectoryLock> {
    return lockDirectory(path);
  },
};

async function lockDirectory(path: string): Promise<DirectoryLock> {
  const fd = await io(
    "open",
    path,
    new Promise<number>((resolve, reject) => {
      fs.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY, (error, descriptor) =>
        error ? reject(error) : resolve(descriptor),
      );
    }),
  );
  if (!posix.tryLock(fd)) {
    fs.closeSync(fd);
    throw new UllageError("locked", `${path} is in use by another process`, {
      hint: `see ${dirname(path)}/lock or ${path}/lock for its pid, and stop it first`,
    });
  }
  return {
    async release() {
      posix.unlock(fd);
      await fsClose(fd);
    },
  };
}
