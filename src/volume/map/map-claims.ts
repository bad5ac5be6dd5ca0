import type { MapVisitor } from "./map-codec.ts";
import { chunkBlocks, type OwnerMap } from "./owner-map.ts";
import type { OwnerTable } from "./owner-table.ts";
import type { Pace } from "../pace.ts";
import type { UnclaimedBlocks } from "./unclaimed-blocks.ts";

/** Uniform chunks of a map in memory that are looked at before the clock is. */
const chunksPerLook = 4096;

/** Takes out of the sets of some layers what maps refer to, one map after the other. */
export class MapClaims implements MapVisitor {
  readonly #layers: ReadonlyMap<string, UnclaimedBlocks>;
  readonly #pace: Pace;
  /** By owner number of the map that is being looked at. */
  #owners: (UnclaimedBlocks | undefined)[] = [];
  #blocks = 0;

  /** @param layers by id */
  constructor(layers: ReadonlyMap<string, UnclaimedBlocks>, pace: Pace) {
    this.#layers = layers;
    this.#pace = pace;
  }

  begin(table: OwnerTable, blocks: number): boolean {
    this.#owners = [];
    this.#blocks = blocks;
    for (const [owner, { id }] of table.entries()) {
      const layer = this.#layers.get(id);
      if (layer === undefined) continue;
      layer.rewind();
      this.#owners[owner] = layer;
    }
    return this.#owners.length > 0;
  }

  setChunks(chunk: number, count: number, owner: number): void {
    const layer = this.#owners[owner];
    if (layer === undefined) return;
    const whole = Math.min(count, Math.floor(this.#blocks / chunkBlocks) - chunk);
    if (whole > 0) layer.claimChunks(chunk, whole);
    // What the last chunk says of blocks behind the end means nothing.
    if (whole < count) layer.claim(chunk + whole, 0, this.#blocks - (chunk + whole) * chunkBlocks);
  }

  setMixedChunk(chunk: number, owners: Uint16Array): void {
    const length = Math.min(chunkBlocks, this.#blocks - chunk * chunkBlocks);
    for (let from = 0; from < length;) {
      const owner = owners[from];
      let to = from + 1;
      while (to < length && owners[to] === owner) to++;
      this.#owners[owner]?.claim(chunk, from, to);
      from = to;
    }
  }

  rest(): Promise<void> | undefined {
    return this.#pace.due ? this.#pace.rest() : undefined;
  }

  /** A map in memory. It may change meanwhile, but must not come to refer to more blocks of the layers in question. */
  async walk(map: OwnerMap, table: OwnerTable): Promise<void> {
    if (!this.begin(table, map.blocks)) return;
    for (let chunk = 0; chunk < map.chunks;) {
      const owner = map.uniformOwner(chunk);
      if (owner < 0) {
        this.setMixedChunk(chunk, map.mixedOwners(chunk));
        chunk++;
      } else {
        const limit = Math.min(map.chunks, chunk + chunksPerLook);
        let end = chunk + 1;
        while (end < limit && map.uniformOwner(end) === owner) end++;
        this.setChunks(chunk, end - chunk, owner);
        chunk = end;
      }
      if (this.#pace.due) await this.#pace.rest();
    }
  }
}
