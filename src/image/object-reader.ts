import type { Backend, Identity, ReadOptions, Sink, ZeroTaker } from "../backend/backend.ts";
import type { ImageReader } from "./image-format.ts";

/** The bytes of a pinned object as they are. */
export function objectReader(backend: Backend, identity: Identity): ImageReader {
  return {
    size: identity.size,
    read: (offset: number, length: number, sink: Sink, options?: ReadOptions) =>
      backend.read(identity, offset, length, sink, options),
    zeroRun: (offset: number, length: number, options?: ReadOptions) =>
      backend.zeroRun?.(identity, offset, length, options) ?? Promise.resolve(0),
    tellZeros: async (offset: number, length: number, take: ZeroTaker, options?: ReadOptions) => {
      if (backend.tellZeros === undefined) take(length, false);
      else await backend.tellZeros(identity, offset, length, take, options);
    },
  };
}
