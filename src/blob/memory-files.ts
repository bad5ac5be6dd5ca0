import { IoError } from "../base/errors.ts";
import type { FileSystem } from "../base/file-system.ts";
import { memoryFile } from "../base/posix.ts";
import { fileOfDescriptor } from "../base/real-file-system.ts";

const missing = (path: string): IoError => new IoError("ENOENT", `${path} is in memory only, and gone`);
const nothing = (): Promise<void> => Promise.resolve();

/** A file system on which every file is memory, and gone when it is closed: for a blob of which nothing is kept. */
export const memoryFiles: FileSystem = {
  open: (path, mode) =>
    mode === "create"
      ? Promise.resolve(fileOfDescriptor(path, memoryFile("ullage-blob", 0)))
      : Promise.reject(missing(path)),
  openNow: (path) => {
    throw missing(path);
  },
  readFile: (path) => Promise.reject(missing(path)),
  rename: nothing,
  unlink: nothing,
  mkdir: nothing,
  rmdir: nothing,
  readdir: () => Promise.resolve([]),
  exists: () => Promise.resolve(false),
  syncDirectory: nothing,
  space: () => Promise.resolve({ free: Infinity, total: Infinity }),
  lockDirectory: () => Promise.resolve({ release: nothing }),
};
