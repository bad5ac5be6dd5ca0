import type { ImageFormat } from "./image-format.ts";
import { gunzip } from "./unpacker.ts";

/** gzip (RFC 1952). It has no way in but the beginning: it is unpacked once, as a whole. */
export const gzipFormat: ImageFormat = {
  name: "gzip",
  container: true,
  detect: (head) => head.length >= 3 && head[0] === 0x1f && head[1] === 0x8b && head[2] === 8,
  open: () => Promise.resolve(undefined),
  unpacker: gunzip,
};
