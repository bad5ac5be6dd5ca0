import type { ImageFormat } from "./image-format.ts";

/** The object's bytes are the disk's. */
export const rawFormat: ImageFormat = {
  name: "raw",
  container: false,
  /** Any bytes may be a disk; so what is nothing else is raw. */
  detect: () => true,
  open: (source) => Promise.resolve(source),
};
