import { randomBytes } from "node:crypto";
import type { Backends } from "../../backend/backends.ts";
import type { Clock } from "../../base/clock.ts";
import { UllageError } from "../../base/errors.ts";
import type { BlobLook } from "../../blob/blob-look.ts";
import type { BlobMeta } from "../../blob/blob-meta.ts";
import { type CacheLimits, defaultLimits } from "../../blob/cache-space.ts";
import { ManagerClient } from "../../blob/remote/manager-client.ts";
import { RemoteBlob } from "../../blob/remote/remote-blob.ts";
import { SourceTraffics } from "../../blob/source-traffic.ts";
import type { SourceRequest } from "../views.ts";
import type { FillOptions, FindOptions, FoundImage, SharedBlob, VolumeCache, VolumeSources } from "./volume-sources.ts";

/** Between two questions how far the manager is. */
const progressMs = 250;

export interface RemoteSourcesOptions {
  /** of the blob manager's socket */
  path: string;
  clock: Clock;
  backends: Backends;
  log(this: void, level: "info" | "warn", message: string): void;
}

/** The cache is another process's: a blob manager reads all sources, and volumes read its cache files. */
export class RemoteSources implements VolumeSources {
  readonly cache: RemoteCache;
  readonly backends: Backends;
  readonly elsewhere: string;
  readonly #client: ManagerClient;
  readonly #clock: Clock;

  /** Asks for nothing yet. */
  constructor(options: RemoteSourcesOptions) {
    const { path, clock, log } = options;
    this.elsewhere = path;
    this.#clock = clock;
    this.backends = options.backends;
    this.#client = new ManagerClient({ path, clock, random: Math.random, log });
    this.cache = new RemoteCache(this.#client, options);
  }

  async find(request: SourceRequest, signal?: AbortSignal, options: FindOptions = {}): Promise<FoundImage> {
    const { guarded = false, uncached = false } = options;
    if (uncached) {
      throw new UllageError("not-cached", "cache=none is not for a daemon whose cache is a blob manager's", {
        hint: "leave cache=none out, or use a daemon without --blobs",
      });
    }
    const { size, ...found } = await this.#client.ask("find", { request, guarded }, signal);
    const blob = async ({ volumeId, onBlob, signal: ends, onProgress }: FillOptions = {}): Promise<SharedBlob> => {
      const forVolume = volumeId === undefined ? {} : { volume: volumeId };
      const { identity } = found;
      const making = randomBytes(16).toString("hex");
      const over = new AbortController();
      if (onProgress !== undefined) void this.#follow(making, onProgress, over.signal);
      const asked = { request, guarded, identity, making, ...forVolume };
      const { meta } = await this.#client.ask("make", asked, ends).finally(() => over.abort());
      image.blobId = meta.id;
      await onBlob?.(meta.id);
      this.cache.note(meta);
      return this.cache.open(meta.id);
    };
    const image: FoundImage & { blobId?: string } = {
      ...found,
      size: size ?? undefined,
      download: request.download === true,
      blob,
      close: () => Promise.resolve(),
    };
    return image;
  }

  /** Tells how far the manager is with an image that it fetches as a whole. Never rejects: what goes wrong, `make` says. */
  async #follow(making: string, tell: NonNullable<FillOptions["onProgress"]>, over: AbortSignal): Promise<void> {
    try {
      for (;;) {
        await this.#clock.sleep(progressMs, over);
        const { done, total } = await this.#client.ask("progress", { making }, over);
        over.throwIfAborted();
        if (done !== undefined && total !== undefined) tell(done, total);
      }
    } catch {
      // It is over, or the manager is an older one, which does not know the question.
    }
  }

  async claim(blob: string, volume: string): Promise<void> {
    await this.#client.ask("claim", { blob, volume });
  }

  async forget(volume: string, blob: string | null): Promise<void> {
    await this.#client.ask("forget", { volume, blob });
  }

  async giveUp(blob: string): Promise<void> {
    await this.#client.ask("giveUp", { blob });
    this.cache.forget(blob);
  }

  async isPinned(blob: string, volume: string): Promise<boolean> {
    return (await this.#client.ask("isPinned", { blob, volume })).pinned;
  }

  async close(): Promise<void> {
    await this.cache.close();
    await this.#client.close();
    await this.backends.close();
  }
}

interface OpenRemote {
  users: number;
  blob: Promise<SharedBlob & RemoteBlob>;
  opened: (SharedBlob & RemoteBlob) | undefined;
}

/** What this process has seen of the manager's cache. What people do with a cache, they do with the manager's. */
class RemoteCache implements VolumeCache {
  readonly sources = new SourceTraffics();
  readonly diskBytes = 0;
  readonly space: VolumeCache["space"];
  readonly #client: ManagerClient;
  readonly #options: RemoteSourcesOptions;
  readonly #known = new Map<string, BlobMeta>();
  readonly #open = new Map<string, OpenRemote>();

  constructor(client: ManagerClient, options: RemoteSourcesOptions) {
    this.#client = client;
    this.#options = options;
    const limits = (): UllageError =>
      this.#elsewhere("set `cache.capacity` and `cache.reserve` in its configuration, `ullage blobd --config FILE`");
    this.space = {
      get limits() {
        return defaultLimits;
      },
      set limits(_: CacheLimits) {
        throw limits();
      },
      evictedBytes: 0,
      room: Infinity,
      demandRoom: () => Promise.resolve(), // who has the cache sees to it
      relieve: () => Promise.resolve(0),
      free: () => this.#refuseEviction(),
    };
  }

  /** @param where this is done instead */
  #elsewhere(where: string): UllageError {
    return new UllageError("cache-elsewhere", `the cache is the blob manager's at ${this.#options.path}`, {
      hint: where,
    });
  }

  /** What one daemon needs no more, another one may. */
  #refuseEviction(): Promise<never> {
    const where =
      "it throws out by itself what no daemon's volumes need: a smaller `cache.capacity` in its configuration " +
      "(`ullage blobd --config FILE`) makes it, after a restart, for which clients wait";
    return Promise.reject(this.#elsewhere(where));
  }

  note(meta: BlobMeta): void {
    this.#known.set(meta.id, meta);
  }

  forget(id: string): void {
    if (!this.#open.has(id)) this.#known.delete(id);
  }

  list(): BlobMeta[] {
    return [...this.#known.values()];
  }

  metaOf(id: string): BlobMeta | undefined {
    return this.#known.get(id);
  }

  async look(id: string): Promise<BlobLook | undefined> {
    const about = await this.#client.ask("about", { blob: id }).catch((error: unknown) => {
      if (error instanceof UllageError && error.code === "not-found") return undefined;
      throw error;
    });
    if (about === undefined) return undefined;
    const open = this.#open.get(id);
    const stats = open?.opened?.stats ?? nothingAsked;
    return { ...about, pins: [], users: open?.users ?? 0, stats, trouble: open?.opened?.check?.trouble };
  }

  async open(id: string): Promise<SharedBlob> {
    let entry = this.#open.get(id);
    if (entry === undefined) {
      const fresh: OpenRemote = { users: 0, blob: this.#opening(id), opened: undefined };
      fresh.blob.then(
        (blob) => (fresh.opened = blob),
        () => this.#open.delete(id),
      );
      this.#open.set(id, fresh);
      entry = fresh;
    }
    entry.users++;
    return entry.blob;
  }

  async #opening(id: string): Promise<SharedBlob & RemoteBlob> {
    const meta = this.#known.get(id) ?? (await this.#client.ask("about", { blob: id })).meta;
    const { clock, log } = this.#options;
    const blob = await RemoteBlob.open({ client: this.#client, clock, id, log });
    this.#known.set(id, meta);
    return Object.assign(blob, { meta });
  }

  async release(id: string): Promise<void> {
    const entry = this.#open.get(id);
    if (entry === undefined) return;
    entry.users--;
    if (entry.users > 0) return;
    this.#open.delete(id);
    await (await entry.blob).close();
  }

  ifOpen(id: string): SharedBlob | undefined {
    return this.#open.get(id)?.opened;
  }

  opened(): readonly SharedBlob[] {
    return [...this.#open.values()].flatMap(({ opened }) => opened ?? []);
  }

  expectReads(): void {
    // The manager sees them when they come.
  }

  setNeeds(): void {
    // The manager knows what was claimed.
  }

  evict(): Promise<number | undefined> {
    return this.#refuseEviction();
  }

  async close(): Promise<void> {
    const open = [...this.#open.values()];
    this.#open.clear();
    for (const { blob } of open) await (await blob.catch(() => undefined))?.close();
  }
}

const nothingAsked = { foregroundBytes: 0, readaheadBytes: 0, backgroundBytes: 0, requests: 0, errors: 0 };
