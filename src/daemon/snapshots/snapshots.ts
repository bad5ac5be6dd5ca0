import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { CorruptionError, UllageError, describeError } from "../../base/errors.ts";
import { counted } from "../../base/units.ts";
import { isId } from "../../base/ids.ts";
import { didYouMean } from "../../base/similar.ts";
import type { Blob } from "../../blob/blob.ts";
import { checkName } from "../../catalog/names.ts";
import type { SnapshotRecord } from "../../catalog/metadata-store.ts";
import { loadFrozenMap, readFrozenTable } from "../../volume/map/frozen-map.ts";
import { frozenMapPath, mapsDir, volumeDir } from "../../volume/paths.ts";
import { baseOf, frozenReferences } from "../../volume/layers/references.ts";
import {
  describedSnapshots,
  describeSnapshot,
  forgetSnapshot,
  readSnapshot,
  type SnapshotDescription,
} from "../../volume/snapshot-files.ts";
import { SnapshotView } from "../../volume/snapshot-view.ts";
import { dropLayers } from "./layer-files.ts";
import { LeftoverLayers } from "./leftover-layers.ts";
import type { ManagedVolume, VolumeHost } from "../volumes/managed-volume.ts";
import { type AllLayerSpace, allLayerSpace, type LayerSpace, type SpaceHost, volumeSpace } from "./space.ts";
import { MadeOnce, type RequestKey } from "../request-key.ts";
import { Turns } from "../turns.ts";
import { isEmptyLayer } from "../volumes/volume-files.ts";

/** So many, the newest, are looked through for a name that was probably meant: that takes time on the event loop. */
const suggestible = 500;

/** Snapshots that stay open without a client, so that the next one finds them ready. */
const idleViews = 16;

/** Where a clone begins. */
export interface CloneBase {
  /** of the frozen map */
  id: string;
  /** bytes */
  size: number;
  /** an owner id that the frozen map does not use */
  freeOwner: number;
}

interface OpenView {
  view: SnapshotView;
  blobs: string[];
}

/**
 * The snapshots of all volumes. The volume's own files come first, the catalog's row after them (durability rule 17):
 *
 *     create   description -> record in the volume's log -> (answerable) row -> answered; frozen map when there is time
 *     remove   row `deleting` -> its exports -> description -> layers that nothing else needs -> frozen map -> row gone -> answered
 *
 * A snapshot that is removed while a clone's checkpoint still names its frozen map only loses its name; it goes with the
 * last clone that needs it. One that is held never has a name: it is there for somebody who reads it, goes when he has
 * read it, or at the next start, which knows of no reader.
 */
export class Snapshots {
  readonly #host: VolumeHost;
  readonly #rows = new Map<string, SnapshotRecord>();
  readonly #requests = new MadeOnce<SnapshotRecord>((key) => {
    const thing = [...this.#rows.values()].find((row) => row.requestKey === key);
    return thing === undefined ? undefined : { digest: thing.requestDigest, thing };
  });
  readonly #volume: (id: string) => ManagedVolume | undefined;
  readonly #views = new Map<string, Promise<OpenView>>();
  /** Ids of those that somebody reads and nobody else knows of. */
  readonly #held = new Set<string>();
  /** Views that are being closed: reads of theirs may be under way. */
  readonly #closingViews = new Map<string, Promise<void>>();
  /** How often a volume came to begin with a frozen map, and a frozen map was removed: see reclaim.ts. */
  readonly moves = { given: 0, removed: 0 };
  /** Whoever makes or takes away a reference to a frozen map or a layer of somebody else. */
  readonly references = new Turns();
  readonly #leftovers: LeftoverLayers;
  #dropping: Promise<void> = Promise.resolve();

  /** @param layers that were there before anything was made in this process */
  constructor(
    host: VolumeHost,
    rows: SnapshotRecord[],
    layers: readonly string[],
    volume: (id: string) => ManagedVolume | undefined,
  ) {
    this.#host = host;
    this.#leftovers = new LeftoverLayers(host.env, layers);
    this.#volume = volume;
    for (const row of rows) this.#rows.set(row.id, row);
  }

  /** Those with a name, oldest first. */
  of(volumeId: string): (SnapshotRecord & { name: string })[] {
    return [...this.#rows.values()]
      .filter((row): row is SnapshotRecord & { name: string } => row.volumeId === volumeId && row.name !== null)
      .sort((a, b) => (a.createdAt === b.createdAt ? (a.id < b.id ? -1 : 1) : a.createdAt < b.createdAt ? -1 : 1));
  }

  /** @throws UllageError `not-found` */
  get(volume: ManagedVolume, name: string): SnapshotRecord & { name: string } {
    const rows = this.of(volume.record.id);
    const row = rows.find((candidate) => candidate.name === name);
    if (row !== undefined) return row;
    // In the hint alone, which users of the API get: they may list the names anyway. Clients of exports are told the message.
    const meant = didYouMean(
      name,
      rows.slice(-suggestible).map((each) => each.name),
    );
    throw new UllageError("not-found", `volume '${volume.record.name}' has no snapshot '${name}'`, {
      hint: `${meant === undefined ? "" : `${meant} `}\`ullage snapshot ls ${volume.record.name}\` lists them`,
    });
  }

  /**
   * Takes a snapshot once per key. Its description has the key from before the volume's log names it on, so that a start that
   * finds it without a row knows the key as well.
   * @param make takes it, with this key, and gives it a name
   * @throws UllageError `request-key-reused`, and whatever `make` throws
   */
  once(requestKey: RequestKey | undefined, make: () => Promise<SnapshotRecord>): Promise<SnapshotRecord> {
    return this.#requests.make(requestKey, make);
  }

  /** Whether it is there and has its name. */
  has(id: string): boolean {
    return this.#rows.get(id)?.name != null;
  }

  /**
   * Durable when it resolves.
   * @param name null: for a clone only, or to be held
   * @param options.held stays until `release`
   * @throws UllageError `bad-name`, `name-taken`
   */
  async create(
    volume: ManagedVolume,
    name: string | null,
    { held = false, request }: { held?: boolean; request?: RequestKey | undefined } = {},
  ): Promise<SnapshotRecord> {
    const { env, store } = this.#host;
    const volumeId = volume.record.id;
    if (name !== null) {
      checkName(name);
      if (this.of(volumeId).some((row) => row.name === name)) {
        throw new UllageError("name-taken", `volume '${volume.record.name}' has a snapshot '${name}' already`, {
          hint: "choose another name",
        });
      }
    }
    const device = await volume.device();
    const id = env.randomBytes(16).toString("hex");
    const description = await device.snapshot({ id, name, createdAt: env.clock.wallTime(), request });
    const row = rowOf(volumeId, description);
    try {
      await store.insertSnapshot(row);
    } catch (error) {
      await forgetSnapshot(env, volumeDir(env.dataDir, volumeId), id);
      await device.forgetSnapshot(id);
      throw error;
    }
    if (held) this.#held.add(id);
    this.#rows.set(id, row);
    return row;
  }

  /** A snapshot that was held goes. May be called again. */
  async release(id: string): Promise<void> {
    if (!this.#held.has(id)) return;
    await this.#closeView(id, "its volume is being removed"); // when readers have left, there is nobody to hear it
    await this.references.run(async () => {
      const row = this.#rows.get(id);
      if (row !== undefined) await this.#delete(row);
      this.#held.delete(id);
    });
  }

  /** Those of a volume that is about to go are cut off from their readers. */
  async releaseOf(volumeId: string): Promise<void> {
    for (const id of this.#held) if (this.#rows.get(id)?.volumeId === volumeId) await this.release(id);
  }

  /**
   * Takes a name away, and everything that is only there for it.
   * @throws UllageError `not-found`, `in-use` while clients read it, unless `force`
   */
  async remove(volume: ManagedVolume, name: string, force: boolean): Promise<void> {
    const row = this.get(volume, name);
    await this.demandNoReaders(volume, row, force);
    await this.#host.spare.borrow();
    await this.#closeView(row.id, "the snapshot is being removed");
    await this.references.run(async () => {
      if (await this.#isBase(row.id)) await this.#unname(row);
      else await this.#delete(row);
    });
  }

  /** @throws UllageError `in-use` while clients read it, unless `force` */
  async demandNoReaders(volume: ManagedVolume, { id, name }: SnapshotRecord, force: boolean): Promise<void> {
    const open = await this.#views.get(id)?.catch(() => undefined);
    if (open === undefined || open.view.connections === 0 || force) return;
    throw new UllageError(
      "in-use",
      `'${volume.record.name}@${name}' has ${counted(open.view.connections, "connection")}`,
      {
        hint: "disconnect them first, or use --force, which closes them",
      },
    );
  }

  /** Only clones need it from here on. */
  async #unname(row: SnapshotRecord): Promise<void> {
    const { env, store } = this.#host;
    await store.updateSnapshot(row.id, { name: null });
    this.#rows.set(row.id, { ...row, name: null, requestKey: null, requestDigest: null });
    await this.#host.targetGone(row.id);
    const dir = volumeDir(env.dataDir, row.volumeId);
    const { id, size, createdAt } = row;
    if (await env.fs.exists(dir)) await describeSnapshot(env, dir, { id, name: null, size, createdAt });
  }

  /** Runs in its turn of `references`. May be repeated after a crash. */
  async #delete(row: SnapshotRecord): Promise<void> {
    const { env, store } = this.#host;
    this.moves.removed++;
    await this.#volume(row.volumeId)?.opened?.writeSnapshot(row.id); // so that its layers are known
    await store.updateSnapshot(row.id, { state: "deleting" });
    this.#rows.delete(row.id);
    await this.#host.targetGone(row.id);
    await this.#closeView(row.id, "the snapshot is being removed"); // one that was opened meanwhile
    const dir = volumeDir(env.dataDir, row.volumeId);
    if (await env.fs.exists(dir)) await forgetSnapshot(env, dir, row.id);
    // What its volume still refers to stays; a map that was never written has nothing else.
    let candidates = new Set<string>();
    if (await env.fs.exists(frozenMapPath(env.dataDir, row.id))) {
      candidates = await frozenReferences(env, row.id).catch((error: unknown) => {
        if (!(error instanceof CorruptionError)) throw error;
        env.log("warn", `layers of a snapshot stay, though they may be unused: ${error.message}`);
        return new Set<string>();
      });
      await dropLayers(env, candidates, { openLayers: (id) => this.#openLayers(id), withoutMap: row.id });
    }
    await this.#volume(row.volumeId)?.opened?.forgetSnapshot(row.id);
    await env.fs.unlink(frozenMapPath(env.dataDir, row.id));
    await env.fs.mkdir(mapsDir(env.dataDir));
    await env.fs.syncDirectory(mapsDir(env.dataDir));
    await store.deleteSnapshot(row.id);
    this.#host.reclaimSoon(candidates);
  }

  #openLayers(volumeId: string): Set<string> | undefined {
    return this.#volume(volumeId)?.opened?.layerIds();
  }

  /** Whether a checkpoint names the frozen map, or may do so: one that is damaged may name any. */
  async #isBase(id: string): Promise<boolean> {
    const bases = await this.#bases();
    return bases === undefined || bases.has(id);
  }

  /** Frozen maps that only the volume's own log could rebuild get their files: the volume is about to go. */
  async settle(volume: ManagedVolume): Promise<void> {
    const own = [...this.#rows.values()].filter((row) => row.volumeId === volume.record.id);
    const bases = own.length === 0 ? undefined : await this.#bases();
    for (const { id } of own) if (bases === undefined || bases.has(id)) await this.materialise(id);
  }

  /** The same beside everything else. */
  layersUnused(layers: string[]): void {
    this.#dropSoon(() => Promise.resolve(new Set(layers)));
  }

  /**
   * A crash in the middle of a snapshot leaves its layer, empty, when no record names it yet. It goes when the volume is
   * opened again; a crash before that leaves it to the next opening.
   */
  endedBadly(volumeId: string): void {
    this.#dropSoon(async () => {
      const left = new Set<string>();
      for (const id of await this.#leftovers.takeOf(volumeId)) {
        if (this.#openLayers(volumeId)?.has(id) === true) continue;
        if (await isEmptyLayer(this.#host.env, id)) left.add(id);
      }
      return left;
    });
  }

  #dropSoon(find: () => Promise<Set<string>>): void {
    this.#dropping = this.references
      .run(async () => this.dropLayers(await find()))
      .catch((error: unknown) => this.#host.env.log("warn", `layers stay, though unused: ${describeError(error)}`));
  }

  /** Resolves when nothing is being removed any more. */
  settled(): Promise<void> {
    return this.#dropping;
  }

  /** Bytes on disk in the layers of a volume and its snapshots. */
  space(volume: ManagedVolume): Promise<LayerSpace> {
    return this.references.run(() => volumeSpace(this.#spaceHost(), volume.record.id));
  }

  /** Bytes on disk in all layers. */
  allSpace(): Promise<AllLayerSpace> {
    return this.references.run(() => allLayerSpace(this.#spaceHost()));
  }

  #spaceHost(): SpaceHost {
    return {
      env: this.#host.env,
      openLayers: (id) => this.#openLayers(id),
      ownerOf: (id) => {
        const row = this.#rows.get(id);
        return row === undefined || row.name === null ? undefined : row.volumeId;
      },
    };
  }

  /** Removes layers that were given up, unless somebody else needs them. Runs in a turn of `references`. */
  async dropLayers(candidates: Set<string>): Promise<void> {
    await dropLayers(this.#host.env, candidates, { openLayers: (id) => this.#openLayers(id) });
  }

  /** Removes nameless snapshots that no clone needs any more: one look at every volume, however many there are of both. */
  async collect(): Promise<void> {
    await this.references.run(async () => {
      const nameless = [...this.#rows.values()].filter(({ id, name }) => name === null && !this.#held.has(id));
      if (nameless.length === 0) return;
      const bases = await this.#bases();
      if (bases !== undefined) for (const row of nameless) if (!bases.has(row.id)) await this.#delete(row);
    });
  }

  /** The frozen maps that checkpoints name; undefined: one is damaged and may name any. */
  async #bases(): Promise<Set<string> | undefined> {
    const bases = new Set<string>();
    try {
      const { env } = this.#host;
      for (const volumeId of (await env.fs.readdir(join(env.dataDir, "volumes"))).filter(isId)) {
        const base = await baseOf(env, volumeId);
        if (base !== undefined) bases.add(base);
      }
    } catch (error) {
      if (error instanceof CorruptionError) return undefined;
      throw error;
    }
    return bases;
  }

  /** Makes sure that a frozen map is in its file. @throws UllageError, IoError when the volume can't be opened */
  async materialise(id: string): Promise<void> {
    const { env } = this.#host;
    if (await env.fs.exists(frozenMapPath(env.dataDir, id))) return;
    const volume = this.#volume(this.#rows.get(id)?.volumeId ?? "");
    if (volume === undefined) throw new UllageError("not-found", `frozen map ${id} is missing, and no volume has it`);
    await (await volume.device()).writeSnapshot(id);
  }

  /** What a clone of a snapshot needs to know. */
  async base(row: SnapshotRecord): Promise<CloneBase> {
    const { id } = row;
    const pending = this.#volume(row.volumeId)?.opened?.pendingSnapshot(id);
    if (pending !== undefined) return { id, size: pending.size, freeOwner: pending.table.free() };
    await this.materialise(id);
    const { size, table } = await readFrozenTable(this.#host.env, id);
    return { id, size, freeOwner: table.free() };
  }

  // ---- reading -----------------------------------------------------------------------------------------------------

  /** The snapshot as a read-only disk; stays open for those who come after. */
  async view(row: SnapshotRecord): Promise<SnapshotView> {
    let opening = this.#views.get(row.id);
    if (opening === undefined) {
      await this.#closeIdle();
      await this.#closingViews.get(row.id);
      opening = this.#views.get(row.id);
    }
    if (opening === undefined) {
      if (!this.#rows.has(row.id)) throw new UllageError("not-found", `snapshot '${row.name ?? row.id}' is gone`);
      opening = this.#open(row);
      this.#views.set(row.id, opening);
      opening.catch(() => this.#views.delete(row.id));
    }
    return (await opening).view;
  }

  async #open(row: SnapshotRecord): Promise<OpenView> {
    const { env, sources } = this.#host;
    await this.materialise(row.id);
    const frozen = await loadFrozenMap(env, row.id);
    const blobs = new Map<number, Blob>();
    const ids: string[] = [];
    try {
      for (const [owner, { kind, id }] of frozen.table.entries()) {
        if (kind !== "blob") continue;
        blobs.set(owner, await sources.cache.open(id));
        ids.push(id);
      }
    } catch (error) {
      for (const id of ids) await sources.cache.release(id);
      throw error;
    }
    return { view: new SnapshotView(env, frozen, blobs), blobs: ids };
  }

  async #closeIdle(): Promise<void> {
    if (this.#views.size < idleViews) return;
    for (const [id, opening] of this.#views) {
      const open = await opening.catch(() => undefined);
      await nextTurn(); // whoever waited for the same has come in by then
      if (open?.view.connections === 0) await this.#closeView(id, "");
    }
  }

  async #closeView(id: string, reason: string): Promise<void> {
    const opening = this.#views.get(id);
    this.#views.delete(id);
    if (opening !== undefined) {
      const closing = this.#closeOpened(opening, reason).finally(() => this.#closingViews.delete(id));
      this.#closingViews.set(id, closing);
    }
    await this.#closingViews.get(id);
  }

  async #closeOpened(opening: Promise<OpenView>, reason: string): Promise<void> {
    const open = await opening.catch(() => undefined);
    if (open === undefined) return;
    open.view.disconnectAll(reason);
    await open.view.close();
    for (const blob of open.blobs) await this.#host.sources.cache.release(blob);
  }

  async close(): Promise<void> {
    for (const id of this.#views.keys()) await this.#closeView(id, "Ullage is being stopped");
  }

  // ---- at start ----------------------------------------------------------------------------------------------------

  /**
   * What the volumes say and the catalog does not know yet: a crash between the volume's log and the row. Also ends
   * removals that were interrupted.
   */
  async adopt(volumes: readonly ManagedVolume[], deleting: readonly SnapshotRecord[]): Promise<void> {
    const { env } = this.#host;
    for (const row of deleting) await this.references.run(() => this.#delete(row));
    for (const volume of volumes) {
      const dir = volumeDir(env.dataDir, volume.record.id);
      for (const id of describedSnapshots(await env.fs.readdir(dir))) {
        if (this.#rows.has(id)) continue;
        await this.#adoptOne(volume, dir, id).catch((error: unknown) => {
          env.log("warn", `snapshot ${id} of volume '${volume.record.name}' is left alone: ${describeError(error)}`);
        });
      }
    }
  }

  async #adoptOne(volume: ManagedVolume, dir: string, id: string): Promise<void> {
    const { env, store } = this.#host;
    const description = await readSnapshot(env, dir, id);
    const { name } = description;
    if (!(await env.fs.exists(frozenMapPath(env.dataDir, id)))) {
      const device = await volume.device(); // its recovery knows whether the log has it
      if (device.pendingSnapshot(id) === undefined && !(await env.fs.exists(frozenMapPath(env.dataDir, id)))) {
        await forgetSnapshot(env, dir, id);
        return;
      }
    }
    const row = rowOf(volume.record.id, description);
    await store.insertSnapshot(row);
    this.#rows.set(id, row);
    env.log("info", `snapshot '${volume.record.name}@${name ?? id}' was taken just before the last process ended`);
  }
}

function rowOf(volumeId: string, { id, name, size, createdAt, request }: SnapshotDescription): SnapshotRecord {
  const { key = null, digest = null } = request ?? {};
  return { id, volumeId, name, state: "ready", size, createdAt, requestKey: key, requestDigest: digest };
}
