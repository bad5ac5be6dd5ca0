import { join } from "node:path";
import type { Backend, ReadOptions, Sink } from "../../backend/backend.ts";
import type { Backends } from "../../backend/backends.ts";
import { DigestCheck } from "../../backend/wrappers/digest-check.ts";
import { canonicalSource } from "../../backend/source-address.ts";
import { SourceError, UllageError } from "../../base/errors.ts";
import { orAborted } from "../../base/or-aborted.ts";
import type { BackingMeta, BlobMeta } from "../../blob/blob-meta.ts";
import { BlobCache, type BlobCacheOptions } from "../../blob/cache.ts";
import type { CachedBlob } from "../../blob/cached-blob.ts";
import { fillBlob } from "../../blob/fill-blob.ts";
import type { StillPacked } from "../../blob/unpacked-files.ts";
import { detectHeadBytes } from "../../image/detect.ts";
import { unsupportedImage, type ImageReader } from "../../image/image-format.ts";
import { objectReader } from "../../image/object-reader.ts";
import { findImage, findStreamedImage, openImage, type PackedImage } from "../../image/open-image.ts";
import { BackingChain, LayeredBackend } from "./backing-chain.ts";
import { Turns } from "../turns.ts";
import type { SourceRequest } from "../views.ts";
import type { FillOptions, FindOptions, FoundImage, VolumeSources } from "./volume-sources.ts";

/** What was found, and how it is read. */
export interface FoundSource extends FoundImage {
  /** What it lies on. */
  readonly backing: readonly BackingMeta[];
  readonly backend: LayeredBackend;
  /** Reads the disk, or what has to be unpacked before there is one. */
  readonly image: ImageReader | PackedImage;
  readonly ranges: boolean;
  /** Nothing of it is kept on disk. */
  readonly uncached: boolean;
  /** Named over the network: bound by the policy for as long as it is read. */
  readonly guarded: boolean;
  blobId?: string;
  blob(options?: FillOptions): Promise<CachedBlob>;
}

type Place = Pick<BlobCacheOptions, "fs" | "dataDir">;

/**
 * Turns sources as users write them into blobs of the local cache. One backend per blob stays open while it is used.
 * A blob is guarded when who made it was; who finds it there shares it, after the policy let him look at the source.
 */
export class Sources implements VolumeSources {
  readonly elsewhere: undefined;
  readonly cache: BlobCache;
  readonly backends: Backends;
  readonly #place: Place;
  /** Of blobs, by id. */
  readonly #opened: Map<string, LayeredBackend>;
  /** Finding, making and removing blobs: two volumes made from one image at once share a blob. */
  readonly #turns = new Turns();
  /** Images that are being unpacked. */
  readonly #unpacking = new Map<string, Promise<unknown>>();

  private constructor(place: Place, backends: Backends, cache: BlobCache, opened: Map<string, LayeredBackend>) {
    this.#place = place;
    this.backends = backends;
    this.cache = cache;
    this.#opened = opened;
  }

  /** @param backends closed with this */
  static async open(options: Omit<BlobCacheOptions, "openSource">, backends: Backends): Promise<Sources> {
    const opened = new Map<string, LayeredBackend>();
    const cache = await BlobCache.open({
      ...options,
      openSource: (meta, signal) => reopenSource(meta, signal, backends, opened),
      onRemoved: (id) => {
        void opened.get(id)?.close();
        opened.delete(id);
      },
    });
    return new Sources(options, backends, cache, opened);
  }

  async find(
    request: SourceRequest,
    signal?: AbortSignal,
    { guarded = false, uncached = false }: FindOptions = {},
  ): Promise<FoundSource> {
    const { source, format: wanted = "auto", download = false, unpinned = false, allowBacking = false } = request;
    const url = canonicalSource(source);
    if (uncached && download) throw needsCache("`--download` fetches all of the image");
    const chain = new BackingChain({ open: (below) => this.backends.open(below, guarded), unpinned });
    const backend = new LayeredBackend(this.backends.open(source, guarded), chain);
    try {
      const { identity, head, ranges } = await backend.probe(detectHeadBytes, signal);
      if (!ranges && !download) throw noRanges(url);
      if (!identity.strong && !unpinned) throw notPinned(url);
      const context = allowBacking ? chain.context(url, signal) : { name: url, ...(signal && { signal }) };
      const object = objectReader(backend, identity);
      const found = ranges
        ? await findImage(object, wanted, context, head)
        : findStreamedImage(object, wanted, url, head);
      const backing = chain.found;
      const about = { url, backing, format: found.format, identity, backend, ranges, download, guarded, uncached };
      const toFound = (size: number | undefined, image: FoundSource["image"]): FoundSource => {
        const complete: FoundSource = {
          ...about,
          size,
          image,
          blob: (options) => this.blobOf(complete, options),
          close: () => backend.close(),
        };
        return complete;
      };
      if ("packed" in found && uncached) throw needsCache(`an image of format ${found.format} has to be unpacked`);
      if ("packed" in found) return toFound(undefined, found);
      if (found.reader.size === 0) throw emptySource(url);
      return toFound(found.reader.size, found.reader);
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  /**
   * The blob that caches a source, an existing one when its identity is the same; with `download` all of it is there.
   * Takes the source's backend over. The caller releases the blob.
   */
  async blobOf(found: FoundSource, options: FillOptions = {}): Promise<CachedBlob> {
    const { image } = found;
    let blob: CachedBlob | undefined;
    try {
      if ("packed" in image) return (blob = await this.#unpacked(found, image, options));
      blob = await this.#turns.run(() => this.#findOrMake(found, image));
      found.blobId = blob.id;
      if (!found.download || blob.readyBytes === blob.size) return blob;
      await options.onBlob?.(blob.id);
      options.onProgress?.(0, blob.size);
      const room = (bytes: number): Promise<void> => this.cache.space.demandRoom(bytes);
      if (found.format === "raw") {
        await blob.fillByStreaming((sink, read) => found.backend.stream(found.identity, sink, read), {
          ...options,
          room,
          onProgress: (bytes) => options.onProgress?.(bytes, found.identity.size),
        });
        await blob.sync();
      } else {
        const { size } = blob;
        const { signal = new AbortController().signal, onProgress } = options;
        await fillBlob(blob, { signal, room, onProgress: (bytes) => onProgress?.(bytes, size) });
      }
      return blob;
    } catch (error) {
      if (blob !== undefined) {
        await this.cache.release(blob.id);
        if (blob.readyBytes === 0) await this.cache.evict(blob.id).catch(() => undefined); // it is empty, and may stay
      }
      throw error;
    } finally {
      if (blob === undefined || this.#opened.get(blob.id) !== found.backend) await found.backend.close();
    }
  }

  async #findOrMake(found: FoundSource, reader: ImageReader): Promise<CachedBlob> {
    const { url, format, identity, backing, backend, guarded, uncached } = found;
    const known = this.cache.find(url, format, identity, uncached, backing);
    if (known === undefined && url.startsWith("/") && format === "raw" && !uncached) {
      const about = { url, identity, guarded };
      const cloned = await this.cache.createCloned(about, (path) => backend.cloneTo(identity, path));
      if (cloned !== undefined) return cloned;
    }
    const blob =
      known === undefined
        ? await this.cache.create(
            { url, imageFormat: format, identity, backing, size: reader.size, guarded, uncached },
            reader,
          )
        : await this.cache.open(known.id);
    if (!this.#opened.has(blob.id)) {
      this.#opened.set(blob.id, backend);
      blob.attach(reader);
    }
    return blob;
  }

  /** The complete blob of an image that has to be unpacked; whoever comes while it is being made waits for it. */
  async #unpacked(found: FoundSource, image: PackedImage, options: FillOptions): Promise<CachedBlob> {
    const { url, identity, format } = found;
    const key = JSON.stringify([url, identity, format]);
    for (;;) {
      const known = this.cache.find(url, format, identity);
      if (known !== undefined) {
        found.blobId = known.id;
        return this.cache.open(known.id);
      }
      const before = this.#unpacking.get(key);
      if (before === undefined || !identity.strong) break;
      await orAborted(
        before.catch(() => undefined),
        options.signal,
      );
    }
    const making = this.#unpack(found, image, options);
    this.#unpacking.set(key, making);
    try {
      return await making;
    } finally {
      this.#unpacking.delete(key);
    }
  }

  #unpack(found: FoundSource, image: PackedImage, { signal, onBlob, onProgress }: FillOptions): Promise<CachedBlob> {
    const { url, identity, guarded } = found;
    const options = { background: true, ...(signal === undefined ? {} : { signal }) };
    const total = image.packed.size;
    let format = image.format;
    const unpack = async (sink: Sink): Promise<void> => {
      const unpacker = image.unpacker(sink);
      let received = 0;
      const take: Sink = async (chunk) => {
        await unpacker.write(chunk);
        received += chunk.length;
        onProgress?.(received, total);
      };
      try {
        onProgress?.(0, total);
        if (found.ranges) {
          // What is read from its beginning to its end can be hashed on the way, where it is the whole object.
          const whole = total === identity.size && !image.outer.includes("+");
          const check = whole ? DigestCheck.of(identity, take) : undefined;
          for (let at = 0; at < total; at += pieceBytes) {
            await image.packed.read(at, Math.min(pieceBytes, total - at), check?.sink ?? take, options);
          }
          check?.demandMatch(url);
        } else await found.backend.stream(identity, take, options);
        await unpacker.end();
      } finally {
        await unpacker.close();
      }
    };
    let { outer, inner } = image;
    const openDisk = async (unpacked: ImageReader): Promise<ImageReader | StillPacked> => {
      const context = { ...(signal === undefined ? {} : { signal }), ...(outer === "" ? { name: url } : {}) };
      const opened = await findImage(unpacked, inner, context);
      const behind = (names: string): string => (outer === "" ? names : `${outer}+${names}`);
      format = behind(opened.format);
      if ("packed" in opened) {
        if (outer !== "") throw unsupportedImage(format, "is compressed twice", "unpack it first");
        outer = opened.outer;
        inner = opened.inner;
        return { unpack: (sink) => sendUnpacked(opened, sink, context) };
      }
      if (opened.reader.size === 0) throw emptySource(url);
      return opened.reader;
    };
    const onId = async (id: string): Promise<void> => {
      found.blobId = id;
      await onBlob?.(id);
    };
    return this.cache.createUnpacked(
      { url, identity, guarded, imageFormat: () => format },
      { ...(signal === undefined ? {} : { signal }), unpack, openDisk, onId },
    );
  }

  /** Whether a volume is detached and therefore keeps this blob. Opens nothing. */
  isPinned(blobId: string, volumeId: string): Promise<boolean> {
    const { fs, dataDir } = this.#place;
    return fs.exists(join(dataDir, "blobs", blobId, "pins", volumeId));
  }

  /** Volumes of this process are known without it. */
  claim(): Promise<void> {
    return Promise.resolve();
  }

  async forget(volumeId: string, blobId: string | null): Promise<void> {
    if (blobId !== null) await this.unpin(blobId, volumeId);
  }

  /** Ends a detached volume's claim on a blob. */
  async unpin(blobId: string, volumeId: string): Promise<void> {
    await this.#turns.run(async () => {
      if (!this.#isThere(blobId)) return;
      const blob = await this.cache.open(blobId);
      try {
        await blob.unpin(volumeId);
      } finally {
        await this.cache.release(blobId);
      }
    });
  }

  #isThere(blobId: string): boolean {
    return this.cache.list().some(({ id }) => id === blobId);
  }

  /**
   * No volume refers to the blob any more. It stays in the cache for the next one, until its space is wanted, unless
   * nothing of it is here or it could not be found again.
   */
  async giveUp(blobId: string): Promise<void> {
    const look = await this.cache.look(blobId);
    if (look === undefined || (look.readyBytes > 0 && look.meta.uncached !== true && look.meta.identity.strong)) return;
    await this.remove(blobId);
  }

  /** Frees the space of a blob that no volume refers to any more, unless somebody has begun to use it again. */
  async remove(blobId: string): Promise<void> {
    await this.#turns.run(async () => {
      if (!this.#isThere(blobId)) return; // of two last volumes that went at once, the other was quicker
      try {
        await this.cache.remove(blobId);
      } catch (error) {
        if (error instanceof UllageError && error.code === "in-use") return;
        throw error;
      }
    });
  }

  async close(): Promise<void> {
    await this.cache.close();
    await Promise.all([...this.#opened.values()].map((backend) => backend.close()));
    await this.backends.close();
  }
}

/** What is unpacked is fetched in pieces, each with retries of its own. */
const pieceBytes = 8 * 1024 * 1024;

/** Unpacks what lies in a file here. */
async function sendUnpacked({ packed, unpacker }: PackedImage, sink: Sink, options: ReadOptions): Promise<void> {
  const unpacking = unpacker(sink);
  try {
    for (let at = 0; at < packed.size; at += pieceBytes) {
      await packed.read(at, Math.min(pieceBytes, packed.size - at), (chunk) => unpacking.write(chunk), options);
    }
    await unpacking.end();
  } finally {
    await unpacking.close();
  }
}

/** Costs no probe: every read is bound to the identity by itself. */
async function reopenSource(
  meta: BlobMeta,
  signal: AbortSignal,
  backends: Backends,
  opened: Map<string, LayeredBackend>,
): Promise<ImageReader> {
  let backend = opened.get(meta.id);
  if (backend === undefined) {
    const open = (url: string): Backend => backends.open(url, meta.guarded === true);
    backend = new LayeredBackend(open(meta.url), new BackingChain({ open, pinned: meta.backing ?? [] }));
    opened.set(meta.id, backend);
  }
  const context = meta.backing === undefined ? { signal } : backend.chain.context(meta.url, signal);
  const { reader } = await openImage(objectReader(backend, meta.identity), meta.imageFormat, context);
  return reader;
}

function emptySource(url: string): UllageError {
  return new UllageError("source-empty", `${url} is empty`, {
    hint: "see whether it was written to its end; a disk without an image is made with --size alone",
  });
}

function needsCache(why: string): UllageError {
  return new UllageError("not-cached", `${why}, and with cache=none nothing of it is kept`, {
    hint: "make the volume with a cache",
  });
}

function noRanges(url: string): SourceError {
  return new SourceError("source-no-ranges", `${url} can't be read in parts`, {
    transient: false,
    hint: "use --download, which fetches all of it before the volume is there",
  });
}

function notPinned(url: string): SourceError {
  return new SourceError("source-unpinned", `${url} offers nothing by which a change could be noticed`, {
    transient: false,
    hint: "if it never changes, say so with --unpinned; otherwise bytes of two versions could be mixed",
  });
}
