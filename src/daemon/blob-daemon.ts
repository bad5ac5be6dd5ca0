import { randomBytes } from "node:crypto";
import { join, resolve } from "node:path";
import { Backends } from "../backend/backends.ts";
import { defaultSourceEntries, sourcePolicy } from "../backend/source-guard.ts";
import { systemClock } from "../base/clock.ts";
import { realFileSystem } from "../base/real-file-system.ts";
import type { SocketAccess } from "../export/listen-address.ts";
import { BlobListener } from "./blob-listener.ts";
import type { Log } from "./log.ts";
import { Sources } from "./sources.ts";

export interface BlobDaemonOptions {
  /** The data directory; made when it is missing. Only its `blobs` are used, and locked. */
  dataDir: string;
  /** Default: <data>/blobd.sock. */
  socket?: string;
  access?: SocketAccess;
  /** Who may connect besides root and this process's own user. */
  allowedUsers?: readonly number[];
  /** Default: public hosts only. */
  allowSources?: readonly string[];
  log: Log;
}

/** The blob manager as a process of its own: the cache of a data directory, without volumes. */
export class BlobDaemon {
  readonly dataDir: string;
  readonly #sources: Sources;
  readonly #listener: BlobListener;

  private constructor(dataDir: string, sources: Sources, listener: BlobListener) {
    this.dataDir = dataDir;
    this.#sources = sources;
    this.#listener = listener;
  }

  /** @throws UllageError `locked` when another process has the cache, `listen-in-use` */
  static async open(options: BlobDaemonOptions): Promise<BlobDaemon> {
    const dataDir = resolve(options.dataDir);
    const { log, socket = join(dataDir, "blobd.sock"), access, allowedUsers = [] } = options;
    await realFileSystem.mkdir(dataDir);
    const policy = sourcePolicy(options.allowSources ?? defaultSourceEntries);
    const sources = await Sources.open(
      { fs: realFileSystem, clock: systemClock, dataDir, randomBytes, log },
      new Backends({ policy }),
    );
    try {
      const listener = await BlobListener.open({
        store: sources.cache,
        dataDir,
        path: socket,
        allowedUsers,
        log,
        ...(access === undefined ? {} : { access }),
      });
      return new BlobDaemon(dataDir, sources, listener);
    } catch (error) {
      await sources.close();
      throw error;
    }
  }

  get socket(): string {
    return this.#listener.path;
  }

  async close(): Promise<void> {
    await this.#listener.close();
    await this.#sources.close();
  }
}
