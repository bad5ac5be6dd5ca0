import type { IoBuffer } from "./io-buffer.ts";

/** A file as far as its readers see it. */
export interface ReadableFile {
  readonly path: string;

  /**
   * Reads on the calling thread what needs no wait for a disk.
   * @returns how many leading bytes of the range were filled, 0 … length; fewer than asked means: finish with `read`
   */
  tryRead(buffer: IoBuffer, at: number, length: number, offset: number): number;

  /** Reads in the thread pool. @returns bytes read; fewer than asked only at the end of the file */
  read(buffer: IoBuffer, at: number, length: number, offset: number): Promise<number>;
}

/**
 * The file system as the engine sees it: what production does with system calls (real-file-system.ts) and the crash
 * model does in memory (test/sim). All offsets and lengths are bytes. Failures are `IoError`s.
 */
export interface File extends ReadableFile {
  /** Writes all bytes on the calling thread (into the page cache), or throws; then any prefix may have been written. */
  writeNow(buffer: IoBuffer, at: number, length: number, offset: number): void;

  /** The same in the thread pool. */
  write(buffer: IoBuffer, at: number, length: number, offset: number): Promise<void>;

  /** fdatasync: when it resolves, all bytes written before the call, and the file's size, are durable. */
  datasync(): Promise<void>;

  /** Starts write-back of the range without waiting for it (sync_file_range); gives no durability. */
  startWriteback(offset: number, length: number): void;

  /** Frees the range (it then reads as zeros). @returns false when the file system cannot; the bytes then stay */
  punch(offset: number, length: number): Promise<boolean>;

  /** The same on the calling thread, for small ranges. */
  punchNow(offset: number, length: number): boolean;

  /** Takes space for the first `length` bytes, which read as zeros. @returns false when the file system cannot */
  allocate(length: number): Promise<boolean>;

  truncate(length: number): Promise<void>;
  truncateNow(length: number): void;
  size(): number;

  /** First offset >= `offset` that holds data, or -1 when there is none up to the end (SEEK_DATA). */
  seekData(offset: number): number;
  /** First offset >= `offset` that is a hole; the end of the file counts as one (SEEK_HOLE). */
  seekHole(offset: number): number;

  /** Drops the clean pages of the file from the page cache. @returns false when some stayed */
  dropCache(): Promise<boolean>;

  /** Bytes allocated on disk (st_blocks x 512). */
  allocated(): number;

  /** What ties a log to one life of the page cache: durability rule 7. */
  binding(): FileBinding;

  /** Makes the file read-only, for its owner alone (chmod 0400). */
  seal(): Promise<void>;
  /** Takes that back (chmod 0600): the file can be opened for writing again. */
  unseal(): Promise<void>;

  close(): Promise<void>;
}

/** Where a file lives. Equal in all fields, on a known file system, at two opens: the page cache survived in between. */
export interface FileBinding {
  /** /proc/sys/kernel/random/boot_id, or "" when it can't be read; "" never equals "" */
  bootId: string;
  device: number;
  inode: number;
  /** STATX_MNT_ID_UNIQUE as a decimal string, "" when the kernel has none */
  mountId: string;
  /** `ext4`, `xfs`, `btrfs`, `tmpfs`, `overlay`, … or the magic number in hex */
  fileSystem: string;
}

/** The file system, replaced in tests that inject faults. */
export interface FileSystem {
  /** `create`: exclusive, read-write, fails with EEXIST; `write`: existing, read-write; `read`: existing, read-only. */
  open(path: string, mode: "create" | "write" | "read"): Promise<File>;
  /** The same on the calling thread, read-only: for what is found missing in the middle of a read. */
  openNow(path: string): File;
  readFile(path: string): Promise<Buffer>;
  rename(from: string, to: string): Promise<void>;
  /** Missing is not an error. */
  unlink(path: string): Promise<void>;
  /** One level; existing is not an error. The parent is not synced. */
  mkdir(path: string): Promise<void>;
  rmdir(path: string): Promise<void>;
  /** Names in the directory; [] when it does not exist. */
  readdir(path: string): Promise<string[]>;
  exists(path: string): Promise<boolean>;
  /** fsync of a directory: entries created, renamed and removed in it before the call are durable. */
  syncDirectory(path: string): Promise<void>;
  /** Bytes that can still be written, and the size of the file system. */
  space(path: string): Promise<{ free: number; total: number }>;
  /** Exclusive advisory lock (flock on the directory's descriptor), held until released. Throws `locked` when taken. */
  lockDirectory(path: string): Promise<DirectoryLock>;
}

export interface DirectoryLock {
  release(): Promise<void>;
}
