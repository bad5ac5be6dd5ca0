import type { VolumeEnvironment } from "../../volume/types.ts";
import { layerCreator } from "../volumes/volume-files.ts";

/**
 * Layers that may be what a crash in the middle of a snapshot left: made, but named by nothing. A layer that was there when
 * this process began is from an earlier one, so nothing that is being made now is ever among them; whether anything refers
 * to one, and whether it is empty, is for others to find out.
 */
export class LeftoverLayers {
  readonly #env: VolumeEnvironment;
  readonly #names: readonly string[];
  #byCreator: Promise<Map<string, string[]>> | undefined;

  /** @param names of all layers, from before anything was made in this process */
  constructor(env: VolumeEnvironment, names: readonly string[]) {
    this.#env = env;
    this.#names = names;
  }

  /** Those that were made for a volume; each is named once. Their headers are read when the first volume is asked for. */
  async takeOf(volumeId: string): Promise<string[]> {
    this.#byCreator ??= this.#read();
    this.#byCreator.catch(() => (this.#byCreator = undefined)); // whoever comes next tries again
    const byCreator = await this.#byCreator;
    const layers = byCreator.get(volumeId) ?? [];
    byCreator.delete(volumeId);
    return layers;
  }

  async #read(): Promise<Map<string, string[]>> {
    const byCreator = new Map<string, string[]>();
    for (const name of this.#names) {
      const creator = await layerCreator(this.#env, name);
      if (creator === undefined) continue;
      const layers = byCreator.get(creator);
      if (layers === undefined) byCreator.set(creator, [name]);
      else layers.push(name);
    }
    return byCreator;
  }
}
