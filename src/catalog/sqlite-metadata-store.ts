import { Worker } from "node:worker_threads";
import { IoError, UllageError } from "../base/errors.ts";
import { threadFile } from "../base/threads/thread-file.ts";
import type { CatalogDatabase } from "./catalog-database.ts";
import type { CatalogCall, CatalogReply, CatalogStart } from "./catalog-protocol.ts";
import type {
  ExportRecord,
  MetadataStore,
  SnapshotChange,
  SnapshotRecord,
  Standing,
  VolumeChange,
  VolumeRecord,
} from "./metadata-store.ts";

/** Calls that may wait for the catalog's thread at once; more means that its disk hangs. */
const maxWaitingCalls = 1024;

/** SQLite's result codes for a full disk and a broken UNIQUE, in the low byte of the extended codes. */
const SQLITE_FULL = 13;
const SQLITE_CONSTRAINT = 19;

interface Waiting {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}

/**
 * The metadata store in one SQLite file (WAL, synchronous=FULL), on a thread of its own. A failed change leaves open what
 * reached the disk, so from then on nothing is changed any more until the next start (durability rule 17); reading and
 * the data path go on. One that found no space for its frames in the log has not happened: without the last of them, which
 * commits it, SQLite believes none (its file format, section 4).
 */
export class SqliteMetadataStore implements MetadataStore {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #readOnlyReason: string | undefined;
  #ended: Error | undefined;

  /** Opens `path`, creating it when missing. @throws UllageError `catalog-version`, `catalog-foreign`, `catalog-damaged` */
  static async open(path: string): Promise<SqliteMetadataStore> {
    const worker = new Worker(threadFile("catalog-worker", import.meta.url), {
      workerData: { path } satisfies CatalogStart,
    });
    const store = new SqliteMetadataStore(worker);
    await store.#expect(0);
    return store;
  }

  private constructor(worker: Worker) {
    this.#worker = worker;
    worker.on("message", (reply: CatalogReply) => this.#settle(reply));
    worker.on("error", (error: Error) => this.#end(error));
    worker.on("exit", () => this.#end(new UllageError("catalog-closed", "the catalog is closed")));
  }

  get readOnlyReason(): string | undefined {
    return this.#readOnlyReason;
  }

  insertVolume(volume: VolumeRecord): Promise<void> {
    return this.#change("insertVolume", [volume], volume.name);
  }

  updateVolume(id: string, change: VolumeChange): Promise<boolean> {
    return this.#change("updateVolume", [id, change], change.name);
  }

  noteStanding(id: string, standing: Standing): Promise<void> {
    return this.#change("noteStanding", [id, standing]);
  }

  deleteVolume(id: string): Promise<void> {
    return this.#change("deleteVolume", [id]);
  }

  listVolumes(afterId: string, limit: number): Promise<VolumeRecord[]> {
    return this.#call("listVolumes", [afterId, limit]);
  }

  insertSnapshot(snapshot: SnapshotRecord): Promise<void> {
    return this.#change("insertSnapshot", [snapshot], snapshot.name ?? undefined);
  }

  updateSnapshot(id: string, change: SnapshotChange): Promise<boolean> {
    return this.#change("updateSnapshot", [id, change]);
  }

  deleteSnapshot(id: string): Promise<void> {
    return this.#change("deleteSnapshot", [id]);
  }

  listSnapshots(afterId: string, limit: number): Promise<SnapshotRecord[]> {
    return this.#call("listSnapshots", [afterId, limit]);
  }

  insertExport(added: ExportRecord): Promise<void> {
    return this.#change("insertExport", [added], added.name);
  }

  deleteExport(id: string): Promise<void> {
    return this.#change("deleteExport", [id]);
  }

  listExports(afterId: string, limit: number): Promise<ExportRecord[]> {
    return this.#call("listExports", [afterId, limit]);
  }

  async close(): Promise<void> {
    if (this.#ended !== undefined) return;
    await this.#call("close", []);
    await this.#worker.terminate();
  }

  async #change<T>(method: keyof CatalogDatabase, args: unknown[], name?: string): Promise<T> {
    if (this.#readOnlyReason !== undefined) throw readOnly(this.#readOnlyReason);
    try {
      return await this.#call<T>(method, args);
    } catch (error) {
      const code = (error as { sqliteCode?: number }).sqliteCode;
      if (code === undefined) throw error;
      if ((code & 0xff) === SQLITE_CONSTRAINT) {
        throw new UllageError("name-taken", `the name '${name}' is taken already`, { hint: "choose another name" });
      }
      if ((code & 0xff) === SQLITE_FULL) {
        throw new IoError(
          "ENOSPC",
          "the catalog has no space for this change",
          error,
          "free some space; `ullage help operations` says how",
        );
      }
      this.#readOnlyReason = (error as Error).message;
      throw readOnly(this.#readOnlyReason);
    }
  }

  #call<T>(method: keyof CatalogDatabase, args: unknown[]): Promise<T> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    if (this.#waiting.size >= maxWaitingCalls) {
      return Promise.reject(new UllageError("catalog-busy", `${maxWaitingCalls} calls wait for the catalog`));
    }
    const id = ++this.#lastId;
    const answer = this.#expect(id);
    // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread has no origin
    this.#worker.postMessage({ id, method, args } satisfies CatalogCall);
    return answer as Promise<T>;
  }

  #expect(id: number): Promise<unknown> {
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #settle(reply: CatalogReply): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    if (reply.error === undefined) waiting?.resolve(reply.result);
    else waiting?.reject(revive(reply.error));
  }

  #end(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }
}

function revive(error: NonNullable<CatalogReply["error"]>): Error {
  if (error.code !== undefined) {
    return new UllageError(error.code, error.message, error.hint === undefined ? {} : { hint: error.hint });
  }
  return Object.assign(new Error(error.message), { sqliteCode: error.sqliteCode });
}

function readOnly(reason: string): UllageError {
  return new UllageError("catalog-read-only", `nothing can be changed: the catalog failed (${reason})`, {
    hint: "volumes go on serving; look after the disk of the data directory, then restart Ullage",
  });
}
