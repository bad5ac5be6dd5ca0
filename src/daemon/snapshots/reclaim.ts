import { CorruptionError, describeError, errnoOf, UllageError } from "../../base/errors.ts";
import { isId } from "../../base/ids.ts";
import { visitFrozenMap } from "../../volume/map/frozen-map.ts";
import { Layer } from "../../volume/layers/layer.ts";
import { MapClaims } from "../../volume/map/map-claims.ts";
import { visitMapFile } from "../../volume/map/map-file.ts";
import { Pace } from "../../volume/pace.ts";
import { layersDir } from "../../volume/paths.ts";
import {
  baseOf,
  cleanCheckpoint,
  frozenMaps,
  frozenReferences,
  steadily,
  volumeReferences,
} from "../../volume/layers/references.ts";
import type { VolumeEnvironment } from "../../volume/types.ts";
import { UnclaimedBlocks } from "../../volume/map/unclaimed-blocks.ts";
import type { Volume } from "../../volume/volume.ts";
import type { Turns } from "../turns.ts";

/*
 * Reclaim: blocks of sealed layers that no map refers to any more are punched out (durability rules 4 and 5).
 *
 *     where the layers have data -> what volumes, then frozen maps, claim is taken out -> reads that had begun end -> punch
 *
 * A sealed layer gets no new blocks, and whoever comes to refer to one of its blocks copies that from a map that refers to
 * it. So once a block has been found in no map, in memory or in files, it is in none for ever, and no lock is needed: maps
 * may change while they are looked at. Three things make "in no map" true:
 *
 *  - A volume's last durable state counts like its map. After its map was looked at it is flushed: from then on no crash
 *    brings back a state that is older than what was seen. One that can't be flushed (poisoned) or read keeps all layers
 *    that it refers to; so does one that was not closed cleanly and is not open, because only a recovery can tell.
 *  - A volume's references move into frozen maps (snapshots): volumes are looked at first, each together with the frozen
 *    maps that are in no file yet. They move from frozen maps into volumes (clones, reverts) while the frozen map stays,
 *    so it is found there; if both happened, somebody came and a frozen map went, the look is taken again.
 *  - The head is not sealed, nor are earlier heads that are still being sealed: their blocks stay.
 *
 * Nothing is written down. A kill or power cut at any step leaves some blocks punched, durably or not, of which none is
 * referred to by any state that can come back, and others as they were: the next run finds those again.
 */

/** Memory of the blocks that are looked at together; one layer of 1 TiB full of data takes 33 MiB. */
const batchBytes = 64 * 1024 * 1024;
/** One punch frees so many blocks (64 MiB), so that whoever reads the file does not wait for long. */
const punchBlocks = 16384;
/** So often the maps are looked at in vain because snapshots come and go. */
const attempts = 3;
const keptReasons = 10;

/** A volume that may refer to layers. */
export interface ReclaimVolume {
  id: string;
  /** The volume for `work`, which nobody opens or closes meanwhile; undefined: it is closed. */
  inspect(work: (volume: Volume | undefined) => Promise<void>): Promise<void>;
}

/** What is known besides the files. */
export interface ReclaimHost {
  env: VolumeEnvironment;
  /** Turns of those who make or take away references to frozen maps. */
  references: Turns;
  /** So often since the start a volume came to begin with a frozen map, and a frozen map was removed. */
  moves(): { given: number; removed: number };
  volumes(): ReclaimVolume[];
  /** The layers that open volumes may write to: not worth a look. */
  unsealedLayers(): Set<string>;
}

export interface ReclaimOptions {
  /** Only these; absent: all. */
  layers?: ReadonlySet<string>;
  /** Ends it between two steps. */
  signal: AbortSignal;
  /** Layers that are done with, of so many. */
  onProgress?: (done: number, total: number) => void;
}

/** What came of it. */
export interface Reclaimed {
  /** Bytes on disk that were freed. */
  bytes: number;
  /** Layers of which it is known now what they need. */
  layers: number;
  /** Layers that were left alone. */
  leftAlone: number;
  /** Why, the first few. */
  reasons: string[];
}

/**
 * Frees what nobody needs. May be repeated at any time, by one caller at a time.
 * @throws CorruptionError, IoError when a map can't be read: it may refer to anything, so nothing was freed on its account;
 *   UllageError `reclaim-busy`, `base-missing`; the signal's reason
 */
export async function reclaim(host: ReclaimHost, options: ReclaimOptions): Promise<Reclaimed> {
  const run = new Run(host, options);
  await run.all();
  return run.result;
}

class Run {
  readonly result: Reclaimed = { bytes: 0, layers: 0, leftAlone: 0, reasons: [] };
  readonly #host: ReclaimHost;
  readonly #env: VolumeEnvironment;
  readonly #options: ReclaimOptions;
  readonly #pace: Pace;
  #canPunch = true;

  constructor(host: ReclaimHost, options: ReclaimOptions) {
    this.#host = host;
    this.#env = host.env;
    this.#options = options;
    this.#pace = new Pace(host.env.clock, options.signal);
  }

  async all(): Promise<void> {
    const { env } = this.#host;
    const names = this.#options.layers ?? (await env.fs.readdir(layersDir(env.dataDir)));
    const unsealed = this.#host.unsealedLayers();
    const ids = [...names].filter((name) => isId(name) && !unsealed.has(name)).sort();
    for (let next = 0; next < ids.length && this.#canPunch;) {
      const end = await this.#batch(ids, next);
      next = end;
      this.#options.onProgress?.(next, ids.length);
    }
  }

  /** Some layers, as many as memory allows. @returns the index behind the last one */
  async #batch(ids: string[], from: number): Promise<number> {
    for (let attempt = 1; ; attempt++) {
      this.#options.signal.throwIfAborted();
      // Nobody is in the middle of a move when it is counted from here.
      const before = await this.#host.references.run(() => Promise.resolve(this.#look()));
      const { layers, end } = await this.#unclaimed(ids, from);
      const batch = new Batch(layers, new MapClaims(layers, this.#pace));
      if (layers.size > 0) {
        for (const volume of before.volumes) await this.#volume(batch, volume);
        await this.#frozenMaps(batch);
        for (const volume of before.volumes) await volume.inspect((open) => open?.readsEnded() ?? Promise.resolve());
      }
      const after = this.#host.moves();
      if (after.given === before.given || after.removed === before.removed) {
        batch.demandBases();
        await this.#punch(batch);
        return end;
      }
      if (attempt === attempts) {
        throw new UllageError("reclaim-busy", "snapshots came and went while it was looked at who needs them", {
          hint: "try again when there is less going on",
        });
      }
    }
  }

  #look(): { given: number; removed: number; volumes: ReclaimVolume[] } {
    return { ...this.#host.moves(), volumes: this.#host.volumes() };
  }

  /** Where the next layers have data, until memory is used up. */
  async #unclaimed(ids: string[], from: number): Promise<{ layers: Map<string, UnclaimedBlocks>; end: number }> {
    const layers = new Map<string, UnclaimedBlocks>();
    let memory = 0;
    let end = from;
    for (; end < ids.length && memory < batchBytes; end++) {
      const layer = await Layer.open(this.#env, ids[end], "read").catch(absent);
      if (layer === undefined) continue;
      try {
        const blocks = await UnclaimedBlocks.of(layer, this.#pace);
        memory += blocks.memory;
        layers.set(layer.id, blocks);
      } finally {
        await layer.file.close();
      }
    }
    return { layers, end };
  }

  async #volume(batch: Batch, asked: ReclaimVolume): Promise<void> {
    this.#options.signal.throwIfAborted();
    const { id } = asked;
    await asked.inspect(async (volume) => {
      if (volume === undefined) return steadily(() => this.#closedVolume(batch, id));
      for (const layer of volume.unsealedLayerIds()) batch.layers.delete(layer);
      for (const snapshot of volume.pendingSnapshots()) batch.seen.add(snapshot);
      const referred = volume.layerIds();
      if (!batch.names(referred)) return;
      await volume.claim(batch.claims);
      // Not before: the durable state must be no older than what was seen.
      await volume.flush().catch((error: unknown) => this.#leaveAlone(batch, referred, id, describeError(error)));
    });
  }

  async #closedVolume(batch: Batch, id: string): Promise<void> {
    const path = await cleanCheckpoint(this.#env, id);
    if (path === undefined) {
      const base = await baseOf(this.#env, id);
      if (base !== undefined) batch.bases.add(base);
      const referred = await volumeReferences(this.#env, id);
      this.#leaveAlone(batch, referred, id, "it was not closed cleanly, and is not open");
      return;
    }
    const { checkpoint, table } = await visitMapFile(this.#env, path, batch.claims);
    if (checkpoint.base !== undefined) batch.bases.add(checkpoint.base);
    batch.layers.delete(table.get(checkpoint.head)?.id ?? "");
    batch.names([...table.entries()].map(([, owner]) => owner.id));
  }

  async #frozenMaps(batch: Batch): Promise<void> {
    for (const id of await frozenMaps(this.#env)) {
      this.#options.signal.throwIfAborted();
      batch.seen.add(id);
      try {
        batch.names(await frozenReferences(this.#env, id));
        await visitFrozenMap(this.#env, id, batch.claims);
      } catch (error) {
        if (errnoOf(error) !== "ENOENT") throw error;
        batch.seen.delete(id); // it has just been removed
      }
    }
  }

  /** A volume that may be in any state keeps everything that it may refer to. */
  #leaveAlone(batch: Batch, layers: Iterable<string>, volumeId: string, why: string): void {
    for (const layer of layers) {
      if (!batch.layers.delete(layer)) continue;
      this.result.leftAlone++;
      this.#reason(`volume ${volumeId}: ${why}`);
    }
  }

  #reason(text: string): void {
    const { reasons } = this.result;
    if (!reasons.includes(text) && reasons.length < keptReasons) reasons.push(text);
  }

  async #punch(batch: Batch): Promise<void> {
    for (const [id, blocks] of batch.layers) {
      if (!batch.named.has(id)) continue; // as a whole it is not reclaim's
      if (!this.#canPunch) return;
      this.#options.signal.throwIfAborted();
      try {
        await this.#punchLayer(id, blocks);
        this.result.layers++;
      } catch (error) {
        if (this.#options.signal.aborted) throw error;
        // It frees no space, and harms nothing.
        this.result.leftAlone++;
        this.#reason(`layer ${id}: ${describeError(error)}`);
      }
    }
  }

  async #punchLayer(id: string, blocks: UnclaimedBlocks): Promise<void> {
    let layer: Layer | undefined;
    let before = 0;
    try {
      for (const run of blocks.runs(punchBlocks)) {
        this.#options.signal.throwIfAborted();
        if (this.#pace.due) await this.#pace.rest();
        if (run === undefined) continue;
        if (layer === undefined) {
          layer = await Layer.openSealed(this.#env, id).catch(absent);
          if (layer === undefined) return;
          before = layer.file.allocated();
        }
        if (await layer.punch(run.block, run.count)) continue;
        this.#canPunch = false;
        this.result.leftAlone++;
        this.#reason("the file system of the data directory can't free parts of files");
        return;
      }
    } finally {
      if (layer !== undefined) {
        this.result.bytes += Math.max(0, before - layer.file.allocated());
        await layer.file.close();
      }
    }
  }
}

/** Layers that are looked at together, and what was found out of them. */
class Batch {
  /** Those that may be punched, as far as is known. */
  readonly layers: Map<string, UnclaimedBlocks>;
  readonly claims: MapClaims;
  /** Those that some map names. */
  readonly named = new Set<string>();
  /** Frozen maps that were looked at. */
  readonly seen = new Set<string>();
  /** Frozen maps that checkpoints of closed volumes begin with. */
  readonly bases = new Set<string>();

  constructor(layers: Map<string, UnclaimedBlocks>, claims: MapClaims) {
    this.layers = layers;
    this.claims = claims;
  }

  /** A map has these in its table. @returns whether any is of this batch */
  names(layers: Iterable<string>): boolean {
    let any = false;
    for (const layer of layers) {
      if (!this.layers.has(layer)) continue;
      any = true;
      this.named.add(layer);
    }
    return any;
  }

  /** What a clone begins with must have been seen, or it may refer to anything. @throws UllageError */
  demandBases(): void {
    if (this.layers.size === 0) return;
    for (const base of this.bases) {
      if (this.seen.has(base)) continue;
      throw new UllageError("base-missing", `a volume begins with the frozen map ${base}, which is in no file yet`, {
        hint: "open the volume that it was taken of (`ullage volume ls` does), then try again",
      });
    }
  }
}

function absent(error: unknown): undefined {
  if (errnoOf(error) === "ENOENT" || error instanceof CorruptionError) return undefined; // it went as a whole meanwhile
  throw error;
}
