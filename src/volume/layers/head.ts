import type { Layer } from "./layer.ts";

/** The writable layer of an open volume, and its small id. A snapshot puts another one in its place. */
export interface Head {
  layer: Layer;
  owner: number;
}
