import { UllageError } from "../../base/errors.ts";
import { shownSource } from "../../base/without-secrets.ts";
import { keptByUser } from "../../blob/blob.ts";
import type { CacheLimits } from "../../blob/cache-space.ts";
import type { BlobMeta } from "../../blob/blob-meta.ts";
import { type BootTrace, checkTrace } from "../../blob/boot-trace.ts";
import { fillBlob, fillTraced } from "../../blob/fill-blob.ts";
import type { BootTraces } from "./boot-traces.ts";
import type { Images } from "./images.ts";
import type { Jobs, JobView } from "../jobs.ts";
import type { BlobView, CacheView, EvictRequest, ImageView, SourceRequest } from "../views.ts";
import type { VolumeSources } from "../sources/volume-sources.ts";

export interface CacheControlParts {
  sources: VolumeSources;
  images: Images;
  jobs: Jobs;
  traces: BootTraces;
}

/** What people do with the cache: look at it, bound it, warm it, keep things in it and throw things out. */
export class CacheControl {
  readonly #sources: VolumeSources;
  readonly #images: Images;
  readonly #jobs: Jobs;
  readonly #traces: BootTraces;

  constructor({ sources, images, jobs, traces }: CacheControlParts) {
    this.#sources = sources;
    this.#images = images;
    this.#jobs = jobs;
    this.#traces = traces;
  }

  view(): CacheView {
    const { cache } = this.#sources;
    const { limits, evictedBytes } = cache.space;
    const blobs = cache.list().length;
    return { blobs, diskBytes: cache.diskBytes, ...limits, evictedBytes };
  }

  /** Takes effect at once, until the process ends. What is left out stays. */
  async setLimits(change: Partial<CacheLimits>): Promise<CacheView> {
    const { space } = this.#sources.cache;
    space.limits = { ...space.limits, ...change };
    await space.relieve();
    return this.view();
  }

  /**
   * Throws out what no volume needs, or as much of one blob as may go.
   * @throws UllageError `not-found`, `in-use` when volumes need all of that blob
   */
  async evict({ blob, bytes }: EvictRequest): Promise<{ freedBytes: number }> {
    const { cache } = this.#sources;
    if (blob === undefined) return { freedBytes: await cache.space.free(bytes ?? Number.MAX_SAFE_INTEGER) };
    const { volumes } = await this.#images.showBlob(blob);
    const freedBytes = await cache.evict(blob);
    if (freedBytes === undefined) {
      const why = volumes.length > 0 ? `volumes ${volumes.join(", ")} need` : "somebody keeps or reads";
      throw new UllageError("in-use", `${why} blob ${blob}`, {
        hint: "remove these volumes, or unpin it; of volumes with `hydrate: off` ranges may go",
      });
    }
    return { freedBytes };
  }

  /** @throws UllageError `not-found`, `not-cached`, `cache-elsewhere` */
  async setPinned(blobId: string, pinned: boolean): Promise<BlobView> {
    await this.#images.showBlob(blobId);
    const { cache, elsewhere } = this.#sources;
    if (elsewhere !== undefined) {
      throw new UllageError("cache-elsewhere", `the cache is the blob manager's at ${elsewhere}`, {
        hint: "it keeps what volumes need: a volume that was made from the image, of any of its daemons, keeps it there",
      });
    }
    if (pinned && cache.list().some(({ id, uncached }) => id === blobId && uncached === true)) {
      throw new UllageError("not-cached", `nothing of blob ${blobId} is kept`, { hint: "pull the image instead" });
    }
    const blob = await cache.open(blobId);
    try {
      await (pinned ? blob.pin(keptByUser) : blob.unpin(keptByUser));
    } finally {
      await cache.release(blobId);
    }
    return this.#images.showBlob(blobId);
  }

  /** Throws out every version of an image. @throws UllageError `not-found`, `in-use` */
  async removeImage(id: string): Promise<void> {
    const { blobs, volumes } = await this.#images.showImage(id);
    if (volumes.length > 0) {
      throw new UllageError("in-use", `volumes ${volumes.join(", ")} were made from this image`, {
        hint: "remove them first",
      });
    }
    for (const blob of blobs) await this.evict({ blob });
  }

  /**
   * Fetches an image whole, as a job, whose result is the image. What was fetched stays when it is cancelled.
   * @throws SourceError, UllageError as for a volume that is made from it
   */
  async pull(request: SourceRequest, guarded: boolean): Promise<JobView> {
    const sources = this.#sources;
    const configured = sources.backends.settingsFor(request.source);
    if (configured?.cache === "none") {
      throw new UllageError("not-cached", `the configuration has cache=none for ${configured.prefix}`, {
        hint: "make a volume with cache=shared instead, or take `cache` out of that table",
      });
    }
    const found = await sources.find(request, undefined, { guarded });
    const room = (bytes: number): Promise<void> => sources.cache.space.demandRoom(bytes);
    const controller = new AbortController();
    const { signal } = controller;
    const begun = Promise.withResolvers<(done: number) => void>();
    const work = begun.promise.then(async (onProgress): Promise<ImageView> => {
      const blob = await found.blob({ signal, onProgress });
      try {
        if (found.size !== undefined) await fillBlob(blob, { signal, room, onProgress });
      } finally {
        await sources.cache.release(blob.id);
      }
      return this.#images.showImage((await this.#images.showBlob(blob.id)).image);
    });
    const progress = { done: 0, total: found.size ?? found.identity.size, unit: "bytes" } as const;
    const job = this.#jobs.start({ kind: "image-pull", target: shownSource(found.url), progress }, controller, work);
    begun.resolve(job.progress);
    return job.view;
  }

  // ---- traces ------------------------------------------------------------------------------------------------------

  /** What the newest version of an image was first read for. @throws UllageError `not-found` */
  async trace(imageId: string): Promise<BootTrace> {
    const trace = await this.#traces.of(await this.#newest(imageId));
    if (trace !== undefined) return trace;
    throw new UllageError("not-found", `nothing is known of how image '${imageId}' is read first`, {
      hint: "`ullage image trace record VOLUME` notes it",
    });
  }

  /** Takes the place of the one before. @throws UllageError `not-found`, `bad-trace` */
  async setTrace(imageId: string, trace: unknown): Promise<BootTrace> {
    const meta = await this.#newest(imageId);
    const checked = checkTrace(trace, meta.size);
    await this.#traces.save(meta, checked);
    return checked;
  }

  /** Fetches now what the image's trace names, in that order, as a job. @throws UllageError `not-found` */
  async replayTrace(imageId: string): Promise<JobView> {
    const { reads } = await this.trace(imageId);
    const meta = await this.#newest(imageId);
    const { cache } = this.#sources;
    const room = (bytes: number): Promise<void> => cache.space.demandRoom(bytes);
    const controller = new AbortController();
    const { signal } = controller;
    const begun = Promise.withResolvers<(done: number) => void>();
    const work = begun.promise.then(async (onProgress): Promise<ImageView> => {
      const blob = await cache.open(meta.id);
      try {
        await fillTraced(blob, reads, { signal, room, onProgress });
      } finally {
        await cache.release(meta.id);
      }
      return this.#images.showImage(imageId);
    });
    const total = reads.reduce((sum, [, , length]) => sum + length, 0);
    const progress = { done: 0, total, unit: "bytes" } as const;
    const about = { kind: "image-pull", target: shownSource(meta.url), progress } as const;
    const job = this.#jobs.start(about, controller, work);
    begun.resolve(job.progress);
    return job.view;
  }

  async #newest(imageId: string): Promise<BlobMeta> {
    const { blobs } = await this.#images.showImage(imageId);
    const meta = this.#sources.cache.list().find(({ id }) => id === blobs[0]);
    if (meta !== undefined) return meta;
    throw new UllageError("not-found", `there is no image '${imageId}'`, { hint: "`ullage image ls` lists them" });
  }
}
