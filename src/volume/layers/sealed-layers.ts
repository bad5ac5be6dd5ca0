import type { File } from "../../base/file-system.ts";
import { Layer } from "./layer.ts";
import type { OwnerTable } from "../map/owner-table.ts";
import { layerPath } from "../paths.ts";
import type { VolumeEnvironment } from "../types.ts";

/** The layers below the head: opened, read-only, when a block of theirs is first read, so that a deep chain opens fast. */
export class SealedLayers {
  readonly #env: VolumeEnvironment;
  readonly #table: OwnerTable;
  readonly #open = new Map<number, Layer>();

  constructor(env: VolumeEnvironment, table: OwnerTable) {
    this.#env = env;
    this.#table = table;
  }

  /** @throws IoError when the layer's file is missing; RangeError when `owner` is no layer */
  get(owner: number): Layer {
    return this.#open.get(owner) ?? this.#openLayer(owner);
  }

  #openLayer(owner: number): Layer {
    const entry = this.#table.get(owner);
    if (entry?.kind !== "layer") throw new RangeError(`owner ${owner} is no layer`);
    const layer = new Layer(entry.id, this.#env.fs.openNow(layerPath(this.#env.dataDir, entry.id)));
    this.#open.set(owner, layer);
    return layer;
  }

  /** A layer that was the head, still open for writing, is read from here on. */
  add(owner: number, layer: Layer): void {
    this.#open.set(owner, layer);
  }

  /** It is not read any more. @returns its open file, if it has one, for the caller to close */
  take(owner: number): File | undefined {
    const layer = this.#open.get(owner);
    this.#open.delete(owner);
    return layer?.file;
  }

  /** Goes over to a read-only descriptor. @returns the one before, for the caller to close */
  reopen(owner: number): File | undefined {
    const before = this.take(owner);
    this.#openLayer(owner);
    return before;
  }

  async close(): Promise<void> {
    for (const layer of this.#open.values()) await layer.file.close();
    this.#open.clear();
  }
}
