import { createHash } from "node:crypto";
import { shownVersion } from "../../backend/file/file-identity.ts";
import { UllageError } from "../../base/errors.ts";
import { shownSource } from "../../base/without-secrets.ts";
import type { BlobLook } from "../../blob/blob-look.ts";
import { keptByUser } from "../../blob/blob.ts";
import type { BlobMeta } from "../../blob/blob-meta.ts";
import type { VolumeRecord } from "../../catalog/metadata-store.ts";
import type { BlobView, ImageView, SourceStateView } from "../views.ts";
import type { VolumeCache } from "../sources/volume-sources.ts";

/**
 * What is in the cache, by what it was fetched from. An image is a source with a format; every version of it that some volume
 * was made from is a blob. Nothing is kept here: images are there as long as they have a blob.
 */
export class Images {
  readonly #cache: VolumeCache;
  readonly #volumes: () => VolumeRecord[];

  /** @param volumes all that there are, ordered by name */
  constructor(cache: VolumeCache, volumes: () => VolumeRecord[]) {
    this.#cache = cache;
    this.#volumes = volumes;
  }

  /** Ordered by id, starting behind `after`. */
  async listBlobs(after: string, limit: number): Promise<BlobView[]> {
    const page = this.#cache
      .list()
      .filter(({ id }) => id > after)
      .sort((a, b) => (a.id < b.id ? -1 : 1))
      .slice(0, limit);
    return this.#views(page);
  }

  /** @throws UllageError `not-found` */
  async showBlob(id: string): Promise<BlobView> {
    const [view] = await this.#views(this.#cache.list().filter((meta) => meta.id === id));
    if (view !== undefined) return view;
    throw new UllageError("not-found", `there is no blob '${id}'`, { hint: "`ullage cache ls` lists them" });
  }

  /** Ordered by `imagePlace`, starting behind `after`. */
  async listImages(after: string, limit: number): Promise<ImageView[]> {
    const page = this.#groups()
      .map((blobs) => ({ blobs, place: placeOf(blobs[0]) }))
      .filter(({ place }) => place > after)
      .sort((a, b) => (a.place < b.place ? -1 : 1))
      .slice(0, limit);
    const views = await Promise.all(page.map(({ blobs }) => this.#imageView(blobs)));
    return views.filter((view) => view !== undefined);
  }

  /** @throws UllageError `not-found` */
  async showImage(id: string): Promise<ImageView> {
    const blobs = this.#groups().find(([newest]) => imageIdOf(newest) === id);
    const view = blobs === undefined ? undefined : await this.#imageView(blobs);
    if (view !== undefined) return view;
    throw new UllageError("not-found", `there is no image '${id}'`, { hint: "`ullage image ls` lists them" });
  }

  /** The blobs of each image, the newest first. */
  #groups(): BlobMeta[][] {
    const groups = new Map<string, BlobMeta[]>();
    for (const meta of this.#cache.list()) {
      const id = imageIdOf(meta);
      groups.set(id, [...(groups.get(id) ?? []), meta]);
    }
    const newestFirst = (a: BlobMeta, b: BlobMeta): number =>
      a.createdAt === b.createdAt ? (a.id < b.id ? -1 : 1) : a.createdAt > b.createdAt ? -1 : 1;
    return [...groups.values()].map((blobs) => blobs.sort(newestFirst));
  }

  /** @returns undefined when all of it went meanwhile */
  async #imageView(metas: BlobMeta[]): Promise<ImageView | undefined> {
    const blobs = await this.#views(metas);
    if (blobs.length === 0) return undefined;
    const [{ image, source, format, size, identity, pinned, verified, createdAt }] = blobs;
    const sum = (of: (blob: BlobView) => number): number => blobs.reduce((total, blob) => total + of(blob), 0);
    return {
      id: image,
      source,
      format,
      size,
      identity,
      pinned,
      verified,
      blobs: blobs.map(({ id }) => id),
      volumes: blobs.flatMap(({ volumes }) => volumes).sort(),
      readyBytes: sum(({ readyBytes }) => readyBytes),
      diskBytes: sum(({ diskBytes }) => diskBytes),
      createdAt,
    };
  }

  /** In the same order, without those that went meanwhile. */
  async #views(metas: BlobMeta[]): Promise<BlobView[]> {
    const volumes = this.#volumes();
    const looks = await Promise.all(metas.map(({ id }) => this.#cache.look(id)));
    return looks.flatMap((look) => (look === undefined ? [] : [blobView(look, volumes)]));
  }
}

/** Where an image stands in lists. */
export function imagePlace({ source, id }: Pick<ImageView, "source" | "id">): string {
  return `${source}\0${id}`;
}

function placeOf(meta: BlobMeta): string {
  return imagePlace({ source: shownSource(meta.url), id: imageIdOf(meta) });
}

/** 32 hex digits, the same for all versions of a source and in every data directory. */
function imageIdOf({ url, imageFormat }: BlobMeta): string {
  return createHash("sha256")
    .update(JSON.stringify([url, imageFormat]))
    .digest("hex")
    .slice(0, 32);
}

function blobView(look: BlobLook, all: VolumeRecord[]): BlobView {
  const { meta, readyBytes, diskBytes, users, stats, pins, verified } = look;
  const { id, url, imageFormat, identity, size, unitBytes, createdAt } = meta;
  const names = new Map(all.map((volume) => [volume.id, volume.name]));
  return {
    id,
    image: imageIdOf(meta),
    source: shownSource(url),
    format: imageFormat,
    identity: identity.version === "" ? null : shownVersion(identity.version),
    pinned: identity.strong,
    verified: meta.uncached === true ? null : verified, // nothing stays for which that would hold
    cache: meta.uncached === true ? "none" : "shared",
    size,
    unitBytes,
    readyBytes,
    diskBytes,
    foregroundBytes: stats.foregroundBytes,
    readaheadBytes: stats.readaheadBytes,
    backgroundBytes: stats.backgroundBytes,
    users,
    volumes: all.filter(({ blobId }) => blobId === id).map(({ name }) => name),
    detached: pins
      .filter((pin) => pin !== keptByUser)
      .map((pin) => names.get(pin) ?? pin)
      .sort(),
    kept: pins.includes(keptByUser),
    usedAt: look.usedAt === 0 ? null : new Date(look.usedAt).toISOString(),
    sourceState: sourceState(look),
    createdAt,
  };
}

function sourceState({ meta, readyBytes, stats, trouble }: BlobLook): SourceStateView {
  const wrong = trouble?.error.code === "source-wrong-bytes";
  if (readyBytes === meta.size && !wrong && meta.uncached !== true)
    return { state: "notNeeded", reason: null, at: null };
  if (trouble !== undefined) return { state: "failing", reason: trouble.error.message, at: trouble.at };
  return { state: stats.requests === 0 ? "notAsked" : "ok", reason: null, at: null };
}
