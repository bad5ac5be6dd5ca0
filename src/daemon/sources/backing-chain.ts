import type { Backend, Identity } from "../../backend/backend.ts";
import { backingSource } from "../../backend/backing-name.ts";
import { WrappedBackend } from "../../backend/wrappers/wrapped-backend.ts";
import { SourceError } from "../../base/errors.ts";
import type { BackingMeta } from "../../blob/blob-meta.ts";
import type { ImageReader, OpenContext } from "../../image/image-format.ts";
import { objectReader } from "../../image/object-reader.ts";
import { openImage } from "../../image/open-image.ts";

/** Images that lie on each other below a volume's own at most. */
const MAX_DEPTH = 16;

/** QEMU's names of formats, and ours. Containers are none: QEMU knows no such backing files. */
const formats = new Map([
  ["raw", "raw"],
  ["qcow2", "qcow2"],
  ["vmdk", "vmdk"],
  ["vpc", "vhd"],
  ["vhdx", "vhdx"],
]);

export interface BackingOptions {
  /** Opens a source that is not known yet, or that was pinned before. */
  open(url: string): Backend;
  /** What the volume's image was found to lie on, when it was made. Absent: that is found out now. */
  pinned?: readonly BackingMeta[];
  /** Take backing files that nothing is known to notice a change of by. */
  unpinned?: boolean;
}

/**
 * The images below another one, each pinned like a source of its own: found out when a volume is made, and from then on the
 * same ones. Their backends are closed together.
 */
export class BackingChain {
  readonly #options: BackingOptions;
  readonly #backends = new Map<string, Backend>();
  readonly #found: BackingMeta[] = [];

  constructor(options: BackingOptions) {
    this.#options = options;
  }

  /** What was found, the nearest one first. */
  get found(): readonly BackingMeta[] {
    return this.#found;
  }

  /** For opening the image at `url`, which lies `above` all that was found. */
  context(url: string, signal?: AbortSignal, above: readonly string[] = []): OpenContext {
    return {
      name: url,
      ...(signal === undefined ? {} : { signal }),
      openBacking: (name, format) => this.#openBacking(name, format, [...above, url], signal),
    };
  }

  async #openBacking(
    name: string,
    format: string,
    above: readonly string[],
    signal: AbortSignal | undefined,
  ): Promise<ImageReader> {
    const url = backingSource(above.at(-1)!, name);
    const imageFormat = formats.get(format);
    if (imageFormat === undefined) throw refused(`${url} is a backing file of format ${format}`);
    if (above.includes(url)) throw refused(`${url} lies on itself`);
    if (above.length > MAX_DEPTH) throw refused(`${above[0]} lies on more than ${MAX_DEPTH} others`);
    const backend = this.#backend(url);
    const identity = await this.#identityOf(backend, url, imageFormat, above.length - 1, signal);
    return (await openImage(objectReader(backend, identity), imageFormat, this.context(url, signal, above))).reader;
  }

  #backend(url: string): Backend {
    let backend = this.#backends.get(url);
    if (backend === undefined) this.#backends.set(url, (backend = this.#options.open(url)));
    return backend;
  }

  async #identityOf(
    backend: Backend,
    url: string,
    imageFormat: string,
    depth: number,
    signal: AbortSignal | undefined,
  ): Promise<Identity> {
    const { pinned, unpinned = false } = this.#options;
    if (pinned !== undefined) {
      const known = pinned.at(depth);
      if (known?.url === url && known.imageFormat === imageFormat) return known.identity;
      throw new SourceError("source-changed", `the image lies on ${url} now`, { transient: false });
    }
    const { identity, ranges } = await backend.probe(0, signal);
    if (!ranges) throw refused(`${url}, a backing file, can't be read in parts`);
    if (!identity.strong && !unpinned) {
      const hint = "if it never changes, say so with --unpinned";
      const message = `${url}, a backing file, offers nothing by which a change could be noticed`;
      throw new SourceError("source-unpinned", message, { transient: false, hint });
    }
    this.#found.push({ url, imageFormat, identity });
    return identity;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#backends.values()].map((backend) => backend.close()));
  }
}

/** An image's backend with those of the images that it lies on. */
export class LayeredBackend extends WrappedBackend {
  readonly chain: BackingChain;

  constructor(top: Backend, chain: BackingChain) {
    super(top);
    this.chain = chain;
  }

  override async close(): Promise<void> {
    await Promise.all([super.close(), this.chain.close()]);
  }
}

function refused(why: string): SourceError {
  const hint = "join them first: qemu-img convert -O qcow2";
  return new SourceError("image-unsupported", why, { transient: false, hint });
}
