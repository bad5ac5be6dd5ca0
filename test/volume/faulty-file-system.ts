import { IoError } from "../../src/base/errors.ts";
import type { DirectoryLock, File, FileSystem } from "../../src/base/file-system.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";

/** A call of the engine on its file system. */
export interface Call {
  name: "open" | "rename" | "unlink" | "mkdir" | "syncDirectory" | "datasync" | "write" | "truncate" | "punch" | "read";
  path: string;
  offset: number;
  length: number;
  /** It runs on the calling thread and can't be held. */
  now: boolean;
}

/**
 * The real file system behind a gate: tests see every call before it happens, can let it fail, hold it, or kill the
 * "process" in front of it. `kill` is what kill -9 is for the engine: no call begins any more, what the calls before it
 * did stays, locks and descriptors go.
 */
export class FaultyFileSystem {
  /** Called before each call: throws to let it fail, returns a promise to hold it (if it isn't `now`). */
  before: (call: Call) => Promise<void> | undefined = () => undefined;
  /** Called after each call that succeeded. */
  after: (call: Call) => void = () => undefined;
  /** Called when cached pages were dropped. @returns false to claim that some stayed */
  onDrop: (path: string) => boolean = () => true;
  /** true: nothing is in the page cache. */
  cold = false;
  /** false: as on a file system that has no holes. */
  punches = true;
  #dead = false;
  readonly #files = new Set<File>();
  readonly #locks = new Set<DirectoryLock>();

  readonly #running = new Set<Promise<unknown>>();

  /** Ends the life of whoever uses this: its pending and later calls never return. */
  kill(): Promise<void> {
    this.#dead = true;
    this.#killed ??= this.#end();
    return this.#killed;
  }
  #killed: Promise<void> | undefined;

  async #end(): Promise<void> {
    await Promise.allSettled(this.#running); // a process ends when its last system call has returned
    for (const lock of this.#locks) await lock.release();
    for (const file of this.#files) await file.close();
  }

  get dead(): boolean {
    return this.#dead;
  }

  async #call<T>(call: Omit<Call, "now">, work: () => Promise<T>): Promise<T> {
    if (this.#dead) return hang();
    await this.before({ ...call, now: false });
    if (this.#dead) return hang();
    const result = await this.#run(work());
    if (this.#dead) return hang();
    this.after({ ...call, now: false });
    return result;
  }

  /** A system call that a kill waits for. */
  async #run<T>(working: Promise<T>): Promise<T> {
    this.#running.add(working);
    return working.finally(() => this.#running.delete(working));
  }

  #callNow<T>(call: Omit<Call, "now">, work: () => T): T {
    if (this.#dead) throw new IoError("EIO", "the process is dead");
    const held = this.before({ ...call, now: true });
    if (held !== undefined)
      throw new Error(`${call.name} of ${call.path} runs on the calling thread: it can't be held`);
    // oxlint-disable-next-line typescript/no-unnecessary-condition -- `before` may have killed
    if (this.#dead) throw new IoError("EIO", "the process is dead");
    const result = work();
    this.after({ ...call, now: true });
    return result;
  }

  #wrap(file: File): File {
    const { path } = file;
    this.#files.add(file);
    const call = (name: Call["name"], offset = 0, length = 0): Omit<Call, "now"> => ({ name, path, offset, length });
    return {
      path,
      tryRead: (buffer, at, length, offset) =>
        this.cold ? 0 : this.#callNow(call("read", offset, length), () => file.tryRead(buffer, at, length, offset)),
      read: (buffer, at, length, offset) =>
        this.#call(call("read", offset, length), () => file.read(buffer, at, length, offset)),
      writeNow: (buffer, at, length, offset) =>
        this.#callNow(call("write", offset, length), () => file.writeNow(buffer, at, length, offset)),
      write: (buffer, at, length, offset) =>
        this.#call(call("write", offset, length), () => file.write(buffer, at, length, offset)),
      datasync: () => this.#call(call("datasync"), () => file.datasync()),
      startWriteback: (offset, length) => file.startWriteback(offset, length),
      punch: (offset, length) =>
        this.#call(call("punch", offset, length), () =>
          this.punches ? file.punch(offset, length) : Promise.resolve(false),
        ),
      punchNow: (offset, length) =>
        this.#callNow(call("punch", offset, length), () => this.punches && file.punchNow(offset, length)),
      allocate: (length) => file.allocate(length),
      truncate: (length) => this.#call(call("truncate", 0, length), () => file.truncate(length)),
      truncateNow: (length) => this.#callNow(call("truncate", 0, length), () => file.truncateNow(length)),
      size: () => file.size(),
      seekData: (offset) => file.seekData(offset),
      seekHole: (offset) => file.seekHole(offset),
      dropCache: async () => {
        const gone = await file.dropCache();
        return this.onDrop(path) && gone;
      },
      allocated: () => file.allocated(),
      binding: () => file.binding(),
      seal: () => file.seal(),
      unseal: () => file.unseal(),
      close: async () => {
        if (this.#dead) return;
        this.#files.delete(file);
        await this.#run(file.close());
      },
    };
  }

  readonly fs: FileSystem = {
    ...realFileSystem,
    open: (path, mode) =>
      this.#call({ name: "open", path, offset: 0, length: 0 }, async () =>
        this.#wrap(await realFileSystem.open(path, mode)),
      ),
    rename: (from, to) =>
      this.#call({ name: "rename", path: to, offset: 0, length: 0 }, () => realFileSystem.rename(from, to)),
    unlink: (path) => this.#call({ name: "unlink", path, offset: 0, length: 0 }, () => realFileSystem.unlink(path)),
    mkdir: (path) => this.#call({ name: "mkdir", path, offset: 0, length: 0 }, () => realFileSystem.mkdir(path)),
    syncDirectory: (path) =>
      this.#call({ name: "syncDirectory", path, offset: 0, length: 0 }, () => realFileSystem.syncDirectory(path)),
    lockDirectory: async (path) => {
      if (this.#dead) return hang();
      const lock = await realFileSystem.lockDirectory(path);
      this.#locks.add(lock);
      return {
        release: async () => {
          if (this.#dead) return;
          this.#locks.delete(lock);
          await lock.release();
        },
      };
    },
  };
}

const hang = <T>(): Promise<T> => new Promise<T>(() => undefined);

/** Fails the calls that match, so many times, with an errno. */
export function failing(errno: string, matches: (call: Call) => boolean, times = Infinity): (call: Call) => undefined {
  let left = times;
  return (call) => {
    if (left === 0 || !matches(call)) return undefined;
    left--;
    throw new IoError(errno, `injected ${errno} at ${call.name} of ${call.path}`);
  };
}

export const ofLog = (call: Call): boolean => /\/intent\.\d+$/.test(call.path);
export const ofHead = (call: Call): boolean => /\/layers\/[0-9a-f]{32}$/.test(call.path);
export const ofMap = (call: Call): boolean => /\/map\.\d+(\.tmp)?$/.test(call.path);

/** A promise and its handle, for tests that hold calls. */
export function gate(): { opened: Promise<void>; open: () => void } {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { opened: promise, open: resolve };
}

/** Holds the first call that matches; `reached` resolves when it has come. */
export function holdOnce(
  faulty: FaultyFileSystem,
  matches: (call: Call) => boolean,
): { reached: Promise<void>; open: () => void } {
  const reached = gate();
  const held = gate();
  let armed = true;
  faulty.before = (call) => {
    if (!armed || call.now || !matches(call)) return undefined;
    armed = false;
    reached.open();
    return held.opened;
  };
  return { reached: reached.opened, open: held.open };
}

/** Waits, turn by turn of the event loop, until `condition` holds; a test that waits for ever is ended by the runner. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise(setImmediate);
}
