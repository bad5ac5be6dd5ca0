import type { Identity } from "../../backend/backend.ts";
import type { Backends } from "../../backend/backends.ts";
import type { BlobLook } from "../../blob/blob-look.ts";
import type { BlobMeta } from "../../blob/blob-meta.ts";
import type { Blob } from "../../blob/blob.ts";
import type { BlobNeeds } from "../../blob/cache.ts";
import type { CacheSpace } from "../../blob/cache-space.ts";
import type { SourceTrouble } from "../../blob/source-trouble.ts";
import type { SourceTraffics } from "../../blob/source-traffic.ts";
import type { SourceRequest } from "../views.ts";

/*
 * Where volumes get their images' bytes from: the cache of this process (sources.ts), or that of a blob manager's
 * (remote-sources.ts). Volumes see no difference.
 */

/** A blob, what it is of, and how its source is. */
export interface SharedBlob extends Blob {
  readonly meta: BlobMeta;
  /** Undefined: the last request was answered well, or none was made yet. */
  readonly sourceTrouble: SourceTrouble | undefined;
  /** `listener` hears when the source failed somebody, and when it does not any more. @returns what ends it */
  onTrouble(listener: () => void): () => void;
}

/** A source that was looked at and found good. To be made a blob, or closed. */
export interface FoundImage {
  /** canonical, without credentials */
  readonly url: string;
  /** of the image: a chain, see `OpenedImage` */
  readonly format: string;
  readonly identity: Identity;
  /** of the disk, in bytes; undefined: known when it is unpacked */
  readonly size: number | undefined;
  readonly download: boolean;
  /** Its blob, once there is one. */
  readonly blobId?: string | undefined;
  /**
   * The blob that caches it, an existing one when its identity is the same; with `download` all of it is there. The caller
   * releases it.
   */
  blob(options?: FillOptions): Promise<SharedBlob>;
  /** When it does not become a blob. */
  close(): Promise<void>;
}

/** How an image becomes a blob. */
export interface FillOptions {
  /** The volume that is made from it. */
  volumeId?: string;
  /** Called before the first byte is streamed: what a killed process leaves can be found by this id. */
  onBlob?: (id: string) => Promise<unknown>;
  signal?: AbortSignal;
  /** called with the bytes received so far, and those that will come in all; with 0 before the first ones are asked for */
  onProgress?: (bytes: number, total: number) => void;
}

export interface FindOptions {
  /** The policy decides whether the source may be looked at, and later read. */
  guarded?: boolean;
  /** Nothing of it is to be kept on disk. */
  uncached?: boolean;
}

/** What is in the cache, as far as this process knows. */
export interface VolumeCache {
  list(): BlobMeta[];
  metaOf(id: string): BlobMeta | undefined;
  look(id: string): Promise<BlobLook | undefined>;
  /** @throws UllageError `not-found` */
  open(id: string): Promise<SharedBlob>;
  release(id: string): Promise<void>;
  ifOpen(id: string): SharedBlob | undefined;
  opened(): readonly SharedBlob[];
  expectReads(): void;
  setNeeds(needs: BlobNeeds): void;
  /** @returns bytes freed; undefined when none of it may go */
  evict(id: string): Promise<number | undefined>;
  readonly space: Pick<CacheSpace, "limits" | "evictedBytes" | "room" | "demandRoom" | "relieve" | "free">;
  readonly diskBytes: number;
  readonly sources: SourceTraffics;
}

export interface VolumeSources {
  readonly cache: VolumeCache;
  readonly backends: Backends;
  /** The socket of the blob manager that has the cache; undefined: it is here. */
  readonly elsewhere: string | undefined;
  /**
   * Looks at a source: what it is now, and in which format.
   * @throws SourceError, UllageError `format-unknown`, `format-unsupported`, `source-no-ranges`, `source-unpinned`,
   *   `not-cached`
   */
  find(request: SourceRequest, signal?: AbortSignal, options?: FindOptions): Promise<FoundImage>;
  /** A further volume needs the blob. Durable when it resolves. */
  claim(blobId: string, volumeId: string): Promise<void>;
  /** A volume is gone. @param blobId null: it is not known which it had */
  forget(volumeId: string, blobId: string | null): Promise<void>;
  /** No volume of this process needs the blob any more. */
  giveUp(blobId: string): Promise<void>;
  /** Whether a volume is detached and therefore keeps this blob. Opens nothing. */
  isPinned(blobId: string, volumeId: string): Promise<boolean>;
  close(): Promise<void>;
}
