import type { Backend, Identity, ReadOptions, Sink } from "../backend/backend.ts";
import type { ImageFormat, ImageReader } from "./image-format.ts";

/** The object's bytes are the disk's. */
export const rawFormat: ImageFormat = {
  name: "raw",
  /** Any bytes may be a disk; so what is nothing else is raw. */
  detect: () => true,
  open: (backend, identity) => Promise.resolve(new RawReader(backend, identity)),
};

class RawReader implements ImageReader {
  readonly size: number;
  readonly #backend: Backend;
  readonly #identity: Identity;

  constructor(backend: Backend, identity: Identity) {
    this.size = identity.size;
    this.#backend = backend;
    this.#identity = identity;
  }

  read(offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void> {
    return this.#backend.read(this.#identity, offset, length, sink, options);
  }
}
