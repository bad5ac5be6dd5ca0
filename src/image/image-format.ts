import type { Backend, Identity, ReadOptions, Sink } from "../backend/backend.ts";

/** An image format maps the bytes of a remote object to the bytes of a disk. Read-only, lazy. */
export interface ImageFormat {
  readonly name: string;
  /** Whether the object's first bytes are of this format; only asked at import, never of data a guest can write. */
  detect(head: Uint8Array, size: number): boolean;
  open(backend: Backend, identity: Identity): Promise<ImageReader>;
}

/** A disk-addressed reader over one pinned object. */
export interface ImageReader {
  /** Bytes of the disk. */
  readonly size: number;
  /** Same contract as `Backend.read`, in disk addresses. */
  read(offset: number, length: number, sink: Sink, options?: ReadOptions): Promise<void>;
}
