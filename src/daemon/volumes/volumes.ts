import type { Backends } from "../../backend/backends.ts";
import { IoError, UllageError, describeError } from "../../base/errors.ts";
import { fewAtOnce } from "../../base/few-at-once.ts";
import { counted, formatSize } from "../../base/units.ts";
import { checkName } from "../../catalog/names.ts";
import {
  defaultSettings,
  type ExportRecord,
  type Origin,
  type SnapshotRecord,
  type VolumeRecord,
} from "../../catalog/metadata-store.ts";
import { MISS_BYTES } from "../../blob/neighbours.ts";
import { blockBytes } from "../../volume/map/owner-map.ts";
import { revertVolume, shrinkVolume } from "../../volume/rebase-volume.ts";
import { Volume } from "../../volume/volume.ts";
import type { VolumeNames } from "../exports/export-names.ts";
import { Exports } from "../exports/exports.ts";
import { MadeOnce, type RequestKey } from "../request-key.ts";
import { ManagedVolume, type VolumeHost } from "./managed-volume.ts";
import type { ReclaimVolume } from "../snapshots/reclaim.ts";
import { Reclaimer } from "../snapshots/reclaimer.ts";
import { Snapshots } from "../snapshots/snapshots.ts";
import type { FoundImage, SharedBlob } from "../sources/volume-sources.ts";
import { allBlobSpace, blobSpace } from "../snapshots/space.ts";
import { removeVolumeFiles } from "./volume-files.ts";
import { fillDisk, type ImportContent } from "./volume-import.ts";
import { sectorBytes, volumeSize } from "./volume-size.ts";
import type { AllSpaceView, CloneRequest, CreateVolumeRequest, OriginView, SpaceView } from "../views.ts";

/** At start, volumes that are looked at, or opened, at the same time. */
const openingAtOnce = 2;
/** At the end, volumes that are closed at the same time. */
const closingAtOnce = 64;

/** A volume, and how many bytes were written to it; 0 when a repeated request found it. */
export interface ImportedVolume {
  volume: ManagedVolume;
  dataBytes: number;
}

/** How a volume is made, beside what it is made from. */
export interface CreateOptions {
  /** Its source was named over the network: `sources.allow` decides whether it may be read, now and later. */
  guarded?: boolean;
  /** Ends it: what was made is removed, and the promise rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called, with 0 first, while the image is downloaded; not at all when all of it is there already. */
  onDownload?: (bytes: number, total: number) => void;
}

/**
 * The volumes of a data directory by name, and how they come and go. Each step is durable before the next one begins, so
 * that a crash between any two leaves something that the next start understands (durability rule 17):
 *
 *     create   row `creating` -> files and directories -> row `ready` -> answered
 *     import   the same; the first checkpoint, which makes the files a volume, comes behind the last byte of its content
 *     remove   row `deleting` -> its exports -> files -> row gone -> answered
 */
export class Volumes implements VolumeNames {
  readonly #host: VolumeHost;
  readonly snapshots: Snapshots;
  readonly reclaimer: Reclaimer;
  readonly exports: Exports;
  readonly #byName = new Map<string, ManagedVolume>();
  readonly #byId = new Map<string, ManagedVolume>();
  /** Requests under way, so that a repeated one waits for the first. */
  readonly #requests = new MadeOnce<ManagedVolume>((key) => {
    const thing = this.ready().find(({ record }) => record.requestKey === key);
    return thing === undefined ? undefined : { digest: thing.record.requestDigest, thing };
  });
  /** Creations and removals under way. */
  readonly #underWay = new Set<Promise<unknown>>();
  readonly #stopping = new AbortController();

  /** @param records of what is complete, as the catalog has them after the sweep at start */
  constructor(
    host: Omit<VolumeHost, "materialise" | "layersUnused" | "endedBadly" | "reclaimSoon" | "targetGone" | "originNow">,
    records: { volumes: VolumeRecord[]; snapshots: SnapshotRecord[]; exports: ExportRecord[]; layers: string[] },
  ) {
    this.#host = {
      ...host,
      materialise: (id) => this.snapshots.materialise(id),
      layersUnused: (layers) => this.snapshots.layersUnused(layers),
      endedBadly: (id) => this.snapshots.endedBadly(id),
      reclaimSoon: (layers) => this.reclaimer.soon(layers),
      targetGone: (id) => this.exports.targetGone(id),
      originNow: (origin) => this.#originNow(origin),
    };
    this.snapshots = new Snapshots(this.#host, records.snapshots, records.layers, (id) => this.byId(id));
    this.reclaimer = new Reclaimer({
      env: this.#host.env,
      references: this.snapshots.references,
      moves: () => ({ ...this.snapshots.moves }),
      volumes: () => this.ready().map((volume) => reclaimVolume(volume)),
      unsealedLayers: () => new Set(this.all().flatMap(({ opened }) => [...(opened?.unsealedLayerIds() ?? [])])),
    });
    this.exports = new Exports(host, records.exports, {
      isVolume: (name) => this.#byName.has(name),
      idsOf: (target) => this.#idsOf(target),
    });
    for (const record of records.volumes) this.#add(new ManagedVolume(this.#host, record));
  }

  #add(volume: ManagedVolume): void {
    this.#byName.set(volume.record.name, volume);
    this.#byId.set(volume.record.id, volume);
  }

  #forget({ record: { id, name } }: ManagedVolume): void {
    this.#byName.delete(name);
    this.#byId.delete(id);
  }

  byId(id: string): ManagedVolume | undefined {
    return this.#byId.get(id);
  }

  byName(name: string): ManagedVolume | undefined {
    return this.#byName.get(name);
  }

  ready(): ManagedVolume[] {
    return this.all().filter(({ record }) => record.state === "ready");
  }

  /** In the order of their names; those on their way in or out included. */
  all(): ManagedVolume[] {
    return [...this.#byName.values()].sort((a, b) => (a.record.name < b.record.name ? -1 : 1));
  }

  /** @throws UllageError `not-found` */
  get(name: string): ManagedVolume {
    const volume = this.#byName.get(name);
    if (volume !== undefined) return volume;
    throw new UllageError("not-found", `there is no volume '${name}'`, { hint: "`ullage volume ls` lists them" });
  }

  /** @throws UllageError `not-found`, `creating` */
  getReady(name: string): ManagedVolume {
    const volume = this.get(name);
    if (volume.record.state === "ready") return volume;
    throw new UllageError("creating", `volume '${name}' is still ${volume.record.state}`, {
      hint: "try again when it is ready",
    });
  }

  /**
   * Makes a volume that can be used when the promise resolves.
   * @throws UllageError `bad-name`, `bad-size`, `name-taken`, `request-key-reused`, `too-large`; SourceError
   */
  create(request: CreateVolumeRequest, requestKey?: RequestKey, options: CreateOptions = {}): Promise<ManagedVolume> {
    return this.#once(requestKey, () => this.#create(request, requestKey, options));
  }

  /**
   * Makes a volume with a content that somebody sends. When anything goes wrong, nothing of it is left: now, or, after a
   * kill, at the next start.
   * @throws UllageError `bad-name`, `name-taken`, `request-key-reused`, `too-large`; see `fillDisk`
   */
  import(name: string, content: ImportContent, requestKey?: RequestKey): Promise<ImportedVolume> {
    let dataBytes = 0;
    const make = async (): Promise<ManagedVolume> => {
      const made = await this.#import(name, content, requestKey);
      dataBytes = made.dataBytes;
      return made.volume;
    };
    return this.#once(requestKey, make).then((volume) => ({ volume, dataBytes }));
  }

  #once(requestKey: RequestKey | undefined, make: () => Promise<ManagedVolume>): Promise<ManagedVolume> {
    return this.#track(this.#requests.make(requestKey, make));
  }

  async #track<T>(work: Promise<T>): Promise<T> {
    this.#underWay.add(work);
    try {
      return await work;
    } finally {
      this.#underWay.delete(work);
    }
  }

  async #create(
    asked: CreateVolumeRequest,
    requestKey: RequestKey | undefined,
    options: CreateOptions,
  ): Promise<ManagedVolume> {
    this.#demandFree(asked.name);
    const configured = uncachedPrefix(asked, this.#host.sources.backends);
    if (configured === undefined) return this.#createAs(asked, requestKey, options);
    const request: CreateVolumeRequest = { ...asked, settings: { ...asked.settings, cache: "none" } };
    try {
      return await this.#createAs(request, requestKey, options);
    } catch (error) {
      throw explainUncached(error, configured);
    }
  }

  async #createAs(
    request: CreateVolumeRequest,
    requestKey: RequestKey | undefined,
    options: CreateOptions,
  ): Promise<ManagedVolume> {
    const { name, from } = request;
    const { guarded = false } = options;
    demandCacheable(request);
    if (from !== undefined && !("source" in from)) return this.#clone(request, from, requestKey);
    const stop = this.#stopping.signal;
    const signal = options.signal === undefined ? stop : AbortSignal.any([options.signal, stop]);
    const uncached = request.settings?.cache === "none";
    const found = from === undefined ? undefined : await this.#host.sources.find(from, signal, { guarded, uncached });
    let volume: ManagedVolume;
    try {
      // What has to be unpacked is as large as it turns out to be.
      const unknown = found !== undefined && found.size === undefined;
      const size = unknown ? (request.size ?? 0) : volumeSize(found?.size, request.size);
      this.#demandFree(name); // another request may have been quicker
      const image = { source: found?.url ?? null, format: found?.format ?? null, blobId: null };
      volume = this.#reserve(request, size, { ...image, origin: null }, requestKey);
    } catch (error) {
      await found?.close();
      throw error;
    }
    try {
      await this.#makeFiles(volume, request.size, found, { ...options, signal });
    } catch (error) {
      await this.#giveUp(volume, found?.blobId);
      throw explain(error, volume.record.size);
    }
    return volume;
  }

  async #import(name: string, content: ImportContent, requestKey: RequestKey | undefined): Promise<ImportedVolume> {
    const { env, store } = this.#host;
    this.#demandFree(name);
    const announced = content.size === undefined ? sectorBytes : volumeSize(content.size, undefined);
    const nowhere = { source: null, format: null, blobId: null, origin: null };
    const volume = this.#reserve({ name }, announced, nowhere, requestKey);
    let size = announced;
    let dataBytes = 0;
    try {
      await store.insertVolume(volume.record);
      const { id, settings, createdAt } = volume.record;
      await Volume.create(env, {
        id,
        name,
        size,
        content: async (disk) => {
          const filled = await fillDisk(content, this.#stopping.signal, disk, (bytes) => {
            size = Math.max(size, bytes);
            volume.download = { bytes, total: Math.max(bytes, content.size ?? 0) };
            volume.news.progress();
          });
          dataBytes = filled.dataBytes;
          return (size = volumeSize(filled.size, undefined));
        },
        details: { source: null, format: null, settings, createdAt, blobId: null },
      });
      await store.updateVolume(id, { state: "ready", size });
      volume.record = { ...volume.record, state: "ready", size };
      volume.download = undefined;
      await volume.deviceForReader().catch(() => undefined); // as for any other new volume
      volume.news.changed();
      return { volume, dataBytes };
    } catch (error) {
      await this.#giveUp(volume, undefined);
      throw explain(error, size);
    }
  }

  /** @throws UllageError `not-found`, `bad-size`, … */
  async #clone(
    request: CreateVolumeRequest,
    from: CloneRequest,
    requestKey: RequestKey | undefined,
  ): Promise<ManagedVolume> {
    const parent = "volume" in from ? this.getReady(from.volume) : this.snapshotNamed(from.snapshot).volume;
    const { env, store } = this.#host;
    // From here until the clone's checkpoint names it, nobody may take the frozen map away.
    return this.snapshots.references.run(async () => {
      this.snapshots.moves.given++;
      const row =
        "volume" in from ? await this.snapshots.create(parent, null) : this.snapshotNamed(from.snapshot).snapshot;
      const base = await this.snapshots.base(row);
      const size = volumeSize(base.size, request.size);
      this.#demandFree(request.name);
      const { source, format, blobId } = parent.record;
      const origin = {
        volumeId: parent.record.id,
        volume: parent.record.name,
        snapshotId: row.name === null ? null : row.id,
        snapshot: row.name,
      };
      // It reads the same image in the same way.
      const { cache } = parent.record.settings;
      const inherited = { ...request, settings: { ...request.settings, cache } };
      const volume = this.#reserve(inherited, size, { source, format, blobId, origin }, requestKey);
      try {
        await store.insertVolume(volume.record);
        const { id, name, settings, createdAt } = volume.record;
        if (blobId !== null) await this.#host.sources.claim(blobId, id);
        await Volume.create(env, {
          id,
          name,
          size,
          base: { id: base.id, freeOwner: base.freeOwner },
          details: { source, format, settings, createdAt, blobId, origin },
        });
        // Until it is opened it is as its parent, as far as that is known.
        const standing = {
          ...parent.standing(),
          checkpoint: 1,
          lostUnflushed: false,
          detached: false,
          writtenBytes: 0,
        };
        await store.updateVolume(id, { state: "ready", standing });
        volume.record = { ...volume.record, state: "ready", standing };
        volume.news.changed();
      } catch (error) {
        await this.#giveUp(volume, undefined);
        throw explain(error, size);
      }
      return volume;
    });
  }

  /** @param name `VOL@SNAP` @throws UllageError `not-found`, `bad-name` */
  snapshotNamed(name: string): { volume: ManagedVolume; snapshot: SnapshotRecord & { name: string } } {
    const at = name.indexOf("@");
    if (at < 0) {
      throw new UllageError("bad-name", `'${name}' names no snapshot`, { hint: "write it as VOLUME@SNAPSHOT" });
    }
    const volume = this.get(name.slice(0, at));
    return { volume, snapshot: this.snapshots.get(volume, name.slice(at + 1)) };
  }

  /** @param target `VOL` or `VOL@SNAP` @throws UllageError `not-found`, `creating`, `bad-name` */
  #idsOf(target: string): { volumeId: string; snapshotId: string | null } {
    if (!target.includes("@")) return { volumeId: this.getReady(target).record.id, snapshotId: null };
    const { volume, snapshot } = this.snapshotNamed(target);
    return { volumeId: volume.record.id, snapshotId: snapshot.id };
  }

  #originNow({ volumeId, volume, snapshotId, snapshot }: Origin): OriginView {
    const now = this.#byId.get(volumeId)?.record;
    const isThere = now !== undefined && (snapshotId === null || this.snapshots.has(snapshotId));
    return { volume: now?.name ?? volume, snapshot, removed: !isThere };
  }

  /**
   * The volume becomes what the snapshot is; what was written since is lost.
   * @throws UllageError `not-found`, `in-use`
   */
  revert(name: string, snapshotName: string, force: boolean): Promise<ManagedVolume> {
    return this.#track(
      this.snapshots.references.run(async () => {
        const volume = this.getReady(name);
        const { env } = this.#host;
        const { id } = this.snapshots.get(volume, snapshotName);
        this.snapshots.moves.given++;
        await this.snapshots.materialise(id);
        const before = (await volume.device()).layerIds();
        await volume.rebase("the volume is being reverted", force, () => revertVolume(env, volume.record.id, id));
        await this.snapshots.dropLayers(before);
        this.reclaimer.soon(before);
        return volume;
      }),
    );
  }

  /** @throws UllageError `not-found`, `in-use`, `bad-size`, `shrinks` */
  async resize(name: string, size: number, force: boolean): Promise<ManagedVolume> {
    const volume = this.getReady(name);
    const device = await volume.device();
    volumeSize(undefined, size);
    if (size === device.size) return volume;
    if (size > device.size) {
      await volume.grow(size).catch((error: unknown) => {
        throw explain(error, size);
      });
      return volume;
    }
    if (!force) {
      throw new UllageError("shrinks", `volume '${name}' has ${formatSize(device.size)}: it would lose its end`, {
        hint: "--force shrinks it, if nothing was written there",
      });
    }
    const { env } = this.#host;
    const shrink = async (): Promise<number> => {
      await shrinkVolume(env, volume.record.id, size);
      return size;
    };
    await volume.rebase("the volume is being resized", force, shrink, async (closing) => {
      if (!closing.isEmptyFrom(size)) {
        throw new UllageError("not-empty", `volume '${name}' has data behind ${formatSize(size)}`, {
          hint: "discard it first (blkdiscard, fstrim), or choose a larger size",
        });
      }
      const rest = Math.min(closing.size, Math.ceil(size / blockBytes) * blockBytes) - size;
      if (rest > 0) await closing.zero(size, rest, { allocate: false, fast: false });
    });
    this.reclaimer.soon((await volume.device()).layerIds());
    return volume;
  }

  /** @throws UllageError `not-found`, `bad-name`, `name-taken` */
  async rename(name: string, to: string): Promise<ManagedVolume> {
    const volume = this.getReady(name);
    if (to === name) return volume;
    this.#demandFree(to);
    this.#byName.set(to, volume);
    try {
      await volume.rename(to);
    } catch (error) {
      this.#byName.delete(to);
      throw error;
    }
    this.#byName.delete(name);
    return volume;
  }

  #demandFree(name: string): void {
    checkName(name);
    this.#stopping.signal.throwIfAborted();
    const what = this.#byName.has(name) ? "a volume" : this.exports.holds(name) ? "an export" : undefined;
    if (what === undefined) return;
    throw new UllageError("name-taken", `there is ${what} '${name}' already`, { hint: "choose another name" });
  }

  /** In memory: from here on the name is taken. */
  #reserve(
    request: CreateVolumeRequest,
    size: number,
    from: Pick<VolumeRecord, "source" | "format" | "blobId" | "origin">,
    requestKey: RequestKey | undefined,
  ): ManagedVolume {
    const { env } = this.#host;
    const settings = { ...defaultSettings, ...request.settings };
    if (settings.cache === "none") settings.hydrate = "off";
    const volume = new ManagedVolume(this.#host, {
      id: env.randomBytes(16).toString("hex"),
      name: request.name,
      state: "creating",
      size,
      ...from,
      settings,
      hydration: { wanted: settings.hydrate === "auto", paused: false, rate: null, priority: 0 },
      createdAt: env.clock.wallTime(),
      requestKey: requestKey?.key ?? null,
      requestDigest: requestKey?.digest ?? null,
      standing: null,
    });
    this.#add(volume);
    volume.news.created();
    return volume;
  }

  async #makeFiles(
    volume: ManagedVolume,
    wanted: number | undefined,
    found: FoundImage | undefined,
    { signal, onDownload }: CreateOptions & { signal: AbortSignal },
  ): Promise<void> {
    const { env, store, sources } = this.#host;
    const { id, name, source, settings, createdAt } = volume.record;
    await store.insertVolume(volume.record);
    if (found?.download === true) volume.download = { bytes: 0, total: found.size ?? found.identity.size };
    const blob =
      found === undefined
        ? undefined
        : await found.blob({
            signal,
            volumeId: id,
            onBlob: (blobId) => store.updateVolume(id, { blobId }),
            onProgress: (bytes, total) => {
              volume.download = { bytes, total };
              volume.news.progress();
              onDownload?.(bytes, total);
            },
          });
    if (settings.hydrate === "auto") bringBeginning(blob);
    try {
      const size = found === undefined ? volume.record.size : volumeSize(blob?.size, wanted);
      const format = blob?.meta.imageFormat ?? null;
      volume.record = { ...volume.record, size, format };
      await Volume.create(env, {
        id,
        name,
        size,
        ...(blob === undefined ? {} : { blob: { id: blob.id, size: blob.size } }),
        details: { source, format, settings, createdAt, blobId: blob?.id ?? null },
      });
      // An empty volume is opened on first use, like a clone.
      const standing = blob === undefined ? { ...volume.standing(), checkpoint: 1 } : null;
      const ready = { state: "ready", size, format, blobId: blob?.id ?? null, standing } as const;
      await store.updateVolume(id, ready);
      volume.record = { ...volume.record, ...ready };
      volume.download = undefined;
      // Hydration begins. It is complete and stays, whatever opening says: its state tells why it can't be opened.
      if (blob !== undefined) await volume.deviceForReader().catch(() => undefined);
      if (blob !== undefined) await volume.recordTrace().catch(() => undefined);
      volume.news.changed();
    } finally {
      if (blob !== undefined) await sources.cache.release(blob.id);
    }
  }

  /** Undoes a creation that failed. What can't be undone now is found by the next start. */
  async #giveUp(volume: ManagedVolume, blobId: string | undefined): Promise<void> {
    const { env, store } = this.#host;
    const { id, name } = volume.record;
    try {
      await volume.stop();
      await removeVolumeFiles(env, id);
      await this.dropBlob(id, blobId ?? null);
      await store.deleteVolume(id);
    } catch (error) {
      env.log("warn", `what is left of volume '${name}' (${id}) goes at the next start: ${describeError(error)}`);
    }
    this.#forget(volume);
    volume.news.removed();
  }

  /**
   * @param options.snapshots remove its snapshots as well; clones live on
   * @throws UllageError `not-found`, `creating`, `in-use`, `has-snapshots`
   */
  remove(name: string, options: { force: boolean; snapshots: boolean }): Promise<void> {
    return this.#track(this.#remove(name, options));
  }

  async #remove(name: string, { force, snapshots }: { force: boolean; snapshots: boolean }): Promise<void> {
    const { env, store } = this.#host;
    const volume = this.getReady(name);
    const { id, blobId } = volume.record;
    await this.#host.spare.borrow();
    const taken = this.snapshots.of(id);
    if (taken.length > 0 && !snapshots) {
      throw new UllageError("has-snapshots", `volume '${name}' has ${counted(taken.length, "snapshot")}`, {
        hint: "remove them first, or use --snapshots, which removes them too; clones live on",
      });
    }
    // Asked of all before anything goes: a refusal changes nothing. Who connects from here on comes too late.
    volume.demandNoWriters(force);
    for (const snapshot of taken) await this.snapshots.demandNoReaders(volume, snapshot, force);
    for (const snapshot of taken) await this.snapshots.remove(volume, snapshot.name, true);
    await this.snapshots.releaseOf(id);
    await this.snapshots.settle(volume);
    await volume.end(true, async () => {
      await store.updateVolume(id, { state: "deleting" });
    });
    this.#forget(volume);
    volume.news.removed();
    await this.exports.targetGone(id);
    const layers = await this.snapshots.references.run(() =>
      removeVolumeFiles(env, id, (other) => this.#openLayers(other)),
    );
    await this.dropBlob(id, blobId);
    await store.deleteVolume(id);
    await this.snapshots.collect();
    this.reclaimer.soon(layers);
    void this.#host.spare.refill();
  }

  /** @throws UllageError `not-found`, `creating` */
  async spaceOf(name: string): Promise<SpaceView> {
    const volume = this.getReady(name);
    const { blobId } = volume.record;
    const cachedBytes = blobId === null ? 0 : await blobSpace(this.#host.env, blobId);
    return { ...(await this.snapshots.space(volume)), cachedBytes };
  }

  async space(): Promise<AllSpaceView> {
    return { ...(await this.snapshots.allSpace()), cachedBytes: await allBlobSpace(this.#host.env) };
  }

  #openLayers(id: string): Set<string> | undefined {
    return this.#byId.get(id)?.opened?.layerIds();
  }

  /** The blobs that volumes were made from, and whether all volumes of one want only what they read. */
  neededBlobs(): Map<string, boolean> {
    const needed = new Map<string, boolean>();
    for (const { record } of this.all()) {
      const { blobId, hydration } = record;
      if (blobId !== null) needed.set(blobId, !hydration.wanted && needed.get(blobId) !== false);
    }
    return needed;
  }

  /** A volume is gone: its blob is given up, unless another volume was made from it. */
  async dropBlob(volumeId: string, blobId: string | null): Promise<void> {
    const { sources } = this.#host;
    await sources.forget(volumeId, blobId);
    if (blobId === null) return;
    if (!this.all().some(({ record }) => record.blobId === blobId)) await sources.giveUp(blobId);
  }

  /**
   * At start: opens the volumes that have something to do by themselves, so that hydration goes on, and those that did not
   * come to a clean end, so that it shows what they are like. All others are opened on first use.
   */
  async openBusy(): Promise<void> {
    const results = await fewAtOnce(this.ready(), openingAtOnce, async (volume) => {
      if (this.#stopping.signal.aborted) return;
      await volume.ascertain();
      if (!volume.isOpen && (await this.#isBusy(volume.record))) await volume.device().catch(() => undefined); // its state tells why
    });
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  async #isBusy({ id, blobId, hydration }: VolumeRecord): Promise<boolean> {
    const { sources } = this.#host;
    if (blobId === null || !hydration.wanted || hydration.paused) return false;
    return !(await sources.isPinned(blobId, id));
  }

  /** Flushes, checkpoints and closes all. @throws the first failure, after everything is closed */
  async close(): Promise<void> {
    this.#stopping.abort(new UllageError("stopping", "Ullage is being stopped"));
    await Promise.allSettled(this.#underWay);
    await this.reclaimer.close();
    await this.snapshots.close();
    const results = await fewAtOnce(this.all(), closingAtOnce, (volume) => volume.stop());
    await this.snapshots.settled();
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }
}

/** @throws UllageError `not-cached` when settings of a new volume contradict each other */
function demandCacheable({ from, settings }: CreateVolumeRequest): void {
  if (settings?.cache === undefined) return;
  if (from === undefined || !("source" in from)) {
    throw new UllageError("not-cached", "the setting `cache` is for volumes that are made from a source", {
      hint: "leave it out: a clone reads its image as the volume does that it is made from",
    });
  }
  if (settings.cache === "none" && settings.hydrate === "auto") {
    throw new UllageError("not-cached", "with cache=none nothing is kept that could be hydrated", {
      hint: "leave out one of cache=none and hydrate=auto",
    });
  }
}

/** The prefix whose table in the configuration makes it a volume without a cache, as the request does not say how it is. */
function uncachedPrefix({ from, settings }: CreateVolumeRequest, backends: Backends): string | undefined {
  if (from === undefined || !("source" in from) || settings?.cache !== undefined) return undefined;
  const configured = backends.settingsFor(from.source);
  return configured?.cache === "none" ? configured.prefix : undefined;
}

/** What a request contradicts is not in it. */
function explainUncached(error: unknown, prefix: string): unknown {
  if (!(error instanceof UllageError) || error.code !== "not-cached") return error;
  return new UllageError("not-cached", `the configuration has cache=none for ${prefix}`, {
    cause: error,
    hint: "ask for cache=shared (`--set cache=shared`), or take `cache` out of that table",
  });
}

function reclaimVolume(volume: ManagedVolume): ReclaimVolume {
  return {
    id: volume.record.id,
    inspect: (work) => volume.inspect(work),
  };
}

function explain(error: unknown, size: number): unknown {
  if (!(error instanceof IoError) || error.errno !== "EFBIG") return error;
  return new UllageError("too-large", `the file system of the data directory has no files of ${formatSize(size)}`, {
    cause: error,
    hint: "ext4 ends at 16T: use XFS, or a smaller volume",
  });
}

/**
 * Whoever is given a disk looks at its beginning first, partition table or superblock: it is on its way while the rest of
 * the volume is made.
 */
function bringBeginning(blob: SharedBlob | undefined): void {
  if (blob === undefined || blob.size === 0) return;
  blob.fetch(0, Math.min(MISS_BYTES, blob.size), { soon: true }).catch(() => undefined); // met by who needs it
}
