import { randomBytes } from "node:crypto";
import { join, resolve } from "node:path";
import { Backends } from "../../backend/backends.ts";
import { defaultSourceEntries, sourcePolicy } from "../../backend/source-guard.ts";
import { systemClock } from "../../base/clock.ts";
import { realFileSystem } from "../../base/real-file-system.ts";
import type { SocketAccess } from "../../export/listen-address.ts";
import type { SourceSettings } from "../../backend/source-settings.ts";
import type { CacheLimits } from "../../blob/cache-space.ts";
import { BlobClaims } from "./blob-claims.ts";
import { BlobService } from "./blob-service.ts";
import { BlobListener } from "./blob-listener.ts";
import type { Log } from "../log.ts";
import { Sources } from "../sources/sources.ts";

export interface BlobDaemonOptions {
  /** The data directory; made when it is missing. Only its `blobs` are used, and locked. */
  dataDir: string;
  /** Default: <data>/blobd.sock. */
  socket?: string;
  access?: SocketAccess;
  /** Who may connect besides root and this process's own user. */
  allowedUsers?: readonly number[];
  /** Which sources users that are neither root nor this process's own may name. Default: public hosts only. */
  allowSources?: readonly string[];
  /** See `UllageOptions`. */
  sourceSettings?: readonly SourceSettings[];
  sourceBytesPerSecond?: number | null;
  cacheLimits?: CacheLimits;
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
    const limits = options.cacheLimits === undefined ? {} : { cacheLimits: options.cacheLimits };
    const { sourceSettings: settings = [], sourceBytesPerSecond: bytesPerSecond = null } = options;
    const sources = await Sources.open(
      { fs: realFileSystem, clock: systemClock, dataDir, randomBytes, log, ...limits },
      new Backends({ policy, settings, bytesPerSecond }),
    );
    try {
      const claims = await BlobClaims.open(realFileSystem, dataDir);
      // Volumes beside the cache claim nothing: where there are any, no blob is ever given up.
      const volumes = await realFileSystem.readdir(join(dataDir, "volumes"));
      if (volumes.length === 0) {
        const needed = (): Map<string, boolean> =>
          new Map(sources.cache.list().flatMap(({ id }) => (claims.isGivenUp(id) ? [] : [[id, false] as const])));
        sources.cache.setNeeds({ needed });
        await sources.cache.space.relieve(); // the last one may have been allowed more
      }
      const answerer = new BlobService(sources, claims, { mayRemove: volumes.length === 0 });
      const listener = await BlobListener.open({
        store: sources.cache,
        answerer,
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

  /** What the credentials of sources refer to is read again. */
  refreshCredentials(): void {
    this.#sources.backends.refresh();
  }

  get socket(): string {
    return this.#listener.path;
  }

  async close(): Promise<void> {
    await this.#listener.close();
    await this.#sources.close();
  }
}
