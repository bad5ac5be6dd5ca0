import type { DirectoryLock, File, FileSystem } from "../../src/base/file-system.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import type { MetadataStore } from "../../src/catalog/metadata-store.ts";
import { SqliteMetadataStore } from "../../src/catalog/sqlite-metadata-store.ts";

/** What waits in a dead process stays referenced: Node takes a descriptor that is collected unclosed for an error. */
const graves: Promise<never>[] = [];

/**
 * A file system and a catalog that die at a chosen step, as under kill -9: what was done stays done, the step and all
 * later ones never happen, and whoever waits for them waits for ever. Locks are let go of, as the kernel would.
 */
export class CrashingWorld {
  /** Steps so far. */
  steps = 0;
  /** The step that does not happen, from 1; Infinity: none. */
  crashAt: number;
  /** What the fatal step was. */
  died: string | undefined;
  readonly #locks: DirectoryLock[] = [];
  readonly #running = new Set<Promise<unknown>>();
  #store: MetadataStore | undefined;
  #onCrash: () => void = () => undefined;
  readonly crashed = new Promise<void>((resolve) => (this.#onCrash = resolve));

  constructor(crashAt: number) {
    this.crashAt = crashAt;
  }

  get fs(): FileSystem {
    const inner = realFileSystem;
    return {
      ...inner,
      open: async (path, mode) => {
        if (mode === "create") await this.#step(`create ${path}`);
        return this.#file(await this.#run(inner.open(path, mode)));
      },
      rename: (from, to) => this.#then(`rename ${from}`, () => inner.rename(from, to)),
      unlink: (path) => this.#then(`unlink ${path}`, () => inner.unlink(path)),
      mkdir: (path) => this.#then(`mkdir ${path}`, () => inner.mkdir(path)),
      rmdir: (path) => this.#then(`rmdir ${path}`, () => inner.rmdir(path)),
      syncDirectory: (path) => this.#then(`sync ${path}`, () => inner.syncDirectory(path)),
      lockDirectory: async (path) => {
        const lock = await this.#run(inner.lockDirectory(path));
        this.#locks.push(lock);
        return lock;
      },
    };
  }

  #file(file: File): File {
    const change = ["write", "datasync", "truncate", "punch", "unseal"] as const;
    return new Proxy(file, {
      get: (target, key) => {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== "function") return value;
        const method = value.bind(target) as (...args: unknown[]) => Promise<unknown>;
        if (!(change as readonly (string | symbol)[]).includes(key)) return method;
        return (...args: unknown[]) => this.#then(`${String(key)} ${target.path}`, () => method(...args));
      },
    });
  }

  readonly openStore = async (path: string): Promise<MetadataStore> => {
    const inner = await SqliteMetadataStore.open(path);
    this.#store = inner;
    /** May be killed before the change, or after it and before the answer. */
    const change = async <T>(what: string, work: () => Promise<T>): Promise<T> => {
      const result = await this.#then(what, work);
      await this.#step(`answer of ${what}`);
      return result;
    };
    return {
      get readOnlyReason() {
        return inner.readOnlyReason;
      },
      insertVolume: (volume) => change("insert row", () => inner.insertVolume(volume)),
      updateVolume: (id, fields) => change("update row", () => inner.updateVolume(id, fields)),
      noteStanding: (id, standing) => change("note standing", () => inner.noteStanding(id, standing)),
      deleteVolume: (id) => change("delete row", () => inner.deleteVolume(id)),
      listVolumes: (after, limit) => inner.listVolumes(after, limit),
      insertSnapshot: (snapshot) => change("insert snapshot", () => inner.insertSnapshot(snapshot)),
      updateSnapshot: (id, fields) => change("update snapshot", () => inner.updateSnapshot(id, fields)),
      deleteSnapshot: (id) => change("delete snapshot", () => inner.deleteSnapshot(id)),
      listSnapshots: (after, limit) => inner.listSnapshots(after, limit),
      insertExport: (added) => change("insert export", () => inner.insertExport(added)),
      deleteExport: (id) => change("delete export", () => inner.deleteExport(id)),
      listExports: (after, limit) => inner.listExports(after, limit),
      close: () => inner.close(),
    };
  };

  async #then<T>(what: string, work: () => Promise<T>): Promise<T> {
    await this.#step(what);
    return this.#run(work());
  }

  async #run<T>(working: Promise<T>): Promise<T> {
    this.#running.add(working);
    return working.finally(() => this.#running.delete(working));
  }

  async #step(what: string): Promise<void> {
    this.steps++;
    if (this.steps < this.crashAt && this.died === undefined) return;
    this.died ??= what;
    this.#onCrash();
    const forever = new Promise<never>(() => undefined);
    graves.push(forever);
    await forever;
  }

  /** What the kernel does when a process has died: its last system calls have returned then. */
  async bury(): Promise<void> {
    await Promise.allSettled(this.#running);
    for (const lock of this.#locks) await lock.release().catch(() => undefined); // some were let go of in time
    await this.#store?.close();
  }
}
