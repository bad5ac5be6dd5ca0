import { randomBytes } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Backends } from "../backend/backends.ts";
import { canonicalSource } from "../backend/source-address.ts";
import { defaultSourceEntries, sourcePolicy, type Resolver } from "../backend/source-guard.ts";
import type { SourceSettings } from "../backend/source-settings.ts";
import { systemClock, type Clock } from "../base/clock.ts";
import { describeError, UllageError } from "../base/errors.ts";
import { counted, formatSize } from "../base/units.ts";
import type { FileSystem } from "../base/file-system.ts";
import { realFileSystem } from "../base/real-file-system.ts";
import type { MetadataStore, SnapshotRecord } from "../catalog/metadata-store.ts";
import { SqliteMetadataStore } from "../catalog/sqlite-metadata-store.ts";
import type { BlockDevice } from "../export/block-device.ts";
import type { ConnectionWatch } from "../export/nbd/connection.ts";
import type { CacheLimits } from "../blob/cache-space.ts";
import type { SocketAccess } from "../export/listen-address.ts";
import { ExportTraffic } from "../export/export-traffic.ts";
import { HydrationSlots } from "../volume/hydration/hydration-slots.ts";
import type { VolumeEnvironment, VolumeInfo } from "../volume/types.ts";
import { BlobListener } from "./cache/blob-listener.ts";
import { BootTraces } from "./cache/boot-traces.ts";
import { CacheControl } from "./cache/cache-control.ts";
import { demandSameCache } from "./cache/cache-place.ts";
import { Contents, type ContentFormat, type ContentReader, type VolumeContent } from "./volumes/contents.ts";
import { DataDirectory } from "./directory/data-directory.ts";
import { DataProbe } from "./directory/data-probe.ts";
import { EventLoopDelay } from "./health/event-loop-delay.ts";
import { Events, tellWarnings } from "./events.ts";
import { ExportNames, type NamedExport } from "./exports/export-names.ts";
import type { RequestKey } from "./request-key.ts";
import { findingsOf } from "./health/health-checks.ts";
import { checksOf, worstOf, type Finding, type Warning } from "./health/health.ts";
import { Images } from "./cache/images.ts";
import { Jobs, type JobView } from "./jobs.ts";
import type { Log } from "./log.ts";
import type { ManagedVolume } from "./volumes/managed-volume.ts";
import { processFigures, type Measured, type MeasuredVolume } from "./health/measured.ts";
import { NbdListeners, type ListenTarget, type NbdOptions } from "./exports/nbd-listeners.ts";
import type { Reclaimed } from "./snapshots/reclaim.ts";
import { runtimeDirectory } from "./directory/runtime-directory.ts";
import { RemoteSources } from "./sources/remote-sources.ts";
import { Sources } from "./sources/sources.ts";
import { sweepAtStart } from "./directory/start-sweep.ts";
import { packageVersion } from "./version.ts";
import { VolumeMeters } from "./volumes/volume-meters.ts";
import { volumeTraffic, type VolumeTraffic } from "./volumes/volume-traffic.ts";
import type {
  AllSpaceView,
  AddExportRequest,
  BlobView,
  ConnectionView,
  CreateVolumeRequest,
  ExportView,
  HealthView,
  HydrationChange,
  HydrationView,
  ImageView,
  ListenerView,
  ReclaimView,
  MapRunView,
  DiffRunView,
  SpaceView,
  SnapshotView,
  SourceLimitsView,
  StatsView,
  VolumeChangeRequest,
  VolumeView,
} from "./views.ts";
import type { ImportContent } from "./volumes/volume-import.ts";
import { VolumeJobs, type MadeVolume } from "./volumes/volume-jobs.ts";
import type { VolumeSources } from "./sources/volume-sources.ts";
import { Volumes, type CreateOptions } from "./volumes/volumes.ts";

/** How a data directory is opened. */
export interface UllageOptions {
  /** Made when it is missing. */
  dataDir: string;
  /** Who holds the directory, for the message that a second process gets. Default: `library`. */
  command?: string;
  /** Use a file system whose locks can't keep a second writer out. */
  unsafeFileSystem?: boolean;
  /** Every export is read-only. */
  readOnly?: boolean;
  /** What sources may be named over the network (backend/source-guard.ts). Default: public addresses. */
  allowSources?: readonly string[];
  /**
   * The socket of a blob manager (`ullage blobd`) whose cache the volumes use instead of one below `dataDir`; it reads the
   * sources, and what else is said here of the cache and sources is not used.
   */
  blobs?: string;
  /** How much space the cache may take; default: what the file system has, less 5 %. */
  cacheLimits?: CacheLimits;
  /** How sources are reached, by prefix (backend/source-settings.ts). */
  sourceSettings?: readonly SourceSettings[];
  /** What all sources together may deliver; null, the default: no limit. Local files are not counted. */
  sourceBytesPerSecond?: number | null;
  /** Default: nothing is logged. */
  log?: Log;
  /** The world, for tests that inject faults. */
  fs?: FileSystem;
  clock?: Clock;
  openStore?: (path: string) => Promise<MetadataStore>;
  resolveHost?: Resolver;
}

const openSqliteStore = (path: string): Promise<MetadataStore> => SqliteMetadataStore.open(path);

/** Looked at in one turn of the event loop, for metrics: less than a millisecond. */
const volumesPerTurn = 50;

/**
 * A data directory, opened: the volumes in it, and the servers that export them. One process at a time.
 *
 *     const ullage = await Ullage.open({ dataDir: "/srv/ullage" });
 *     await ullage.createVolume({ name: "web1", from: { source: "https://example.org/debian.raw" } });
 *     const device = await ullage.getDevice("web1");
 *     await ullage.close();
 */
export class Ullage {
  /** What happens, as it happens. */
  readonly events: Events;
  /** Work that goes on by itself. */
  readonly jobs: Jobs;
  readonly #volumeJobs: VolumeJobs;
  readonly #directory: DataDirectory;
  readonly #store: MetadataStore;
  readonly #sources: VolumeSources;
  readonly #volumes: Volumes;
  readonly #contents: Contents;
  readonly #images: Images;
  /** What people do with the cache. */
  readonly cache: CacheControl;
  readonly #exportNames: ExportNames;
  readonly #nbd: NbdListeners;
  #blobs: BlobListener | undefined;
  readonly #meters: VolumeMeters;
  readonly #log: Log;
  readonly #startWarnings: readonly Warning[];
  readonly #listenerWarnings: Warning[] = [];
  readonly #apiListeners: ListenerView[] = [];
  readonly #probe: DataProbe;
  readonly #delay = new EventLoopDelay();
  #opening: Promise<void> = Promise.resolve();
  #closed: Promise<void> | undefined;

  private constructor(parts: {
    directory: DataDirectory;
    store: MetadataStore;
    sources: VolumeSources;
    traces: BootTraces;
    volumes: Volumes;
    events: Events;
    clock: Clock;
    meters: VolumeMeters;
    log: Log;
    readOnly: boolean;
    startWarnings: readonly Warning[];
    probe: DataProbe;
  }) {
    this.#directory = parts.directory;
    this.#store = parts.store;
    this.#sources = parts.sources;
    this.#volumes = parts.volumes;
    this.#images = new Images(parts.sources.cache, () => parts.volumes.all().map(({ record }) => record));
    this.#meters = parts.meters;
    this.#log = parts.log;
    this.#startWarnings = parts.startWarnings;
    this.#probe = parts.probe;
    this.#contents = new Contents(parts.volumes, parts.meters, parts.log);
    this.events = parts.events;
    this.jobs = new Jobs(parts.clock, (job) => this.events.publish({ name: "job", data: job }));
    this.cache = new CacheControl({
      sources: parts.sources,
      traces: parts.traces,
      images: this.#images,
      jobs: this.jobs,
    });
    parts.volumes.reclaimer.onReclaimed = (result) => this.#reclaimed(result);
    this.#volumeJobs = new VolumeJobs(this.jobs, (...asked) => this.createVolume(...asked));
    const traffic = (exportName: string): ExportTraffic => this.#trafficOf(exportName);
    const watch: ConnectionWatch = (...seen) => this.#connectionSeen(...seen);
    this.#exportNames = new ExportNames(parts.volumes, parts.readOnly);
    this.#nbd = new NbdListeners(this.#exportNames, traffic, watch, parts.log);
  }

  /**
   * Locks and opens a data directory and puts right what a crash left behind. Volumes are opened on first use, or by
   * `resume`.
   * @throws UllageError `data-in-use`, `data-foreign`, `data-unwritable`, `sources-allow`, `catalog-lost`, …
   */
  static async open(options: UllageOptions): Promise<Ullage> {
    const { dataDir, fs = realFileSystem, clock = systemClock, openStore = openSqliteStore } = options;
    const events = new Events();
    const log = tellWarnings(events, options.log ?? (() => undefined));
    const limits = options.cacheLimits === undefined ? {} : { cacheLimits: options.cacheLimits };
    const policy = sourcePolicy(options.allowSources ?? defaultSourceEntries, options.resolveHost);
    const undo: (() => Promise<void>)[] = [];
    try {
      const directory = await DataDirectory.open(fs, dataDir, {
        command: options.command ?? "library",
        create: true,
        unsafeFileSystem: options.unsafeFileSystem === true,
        log,
      });
      undo.push(() => directory.close());
      const store = await openStore(directory.below("catalog.db"));
      undo.push(() => store.close());
      await fs.syncDirectory(directory.path);
      const meters = new VolumeMeters();
      const env: VolumeEnvironment = {
        fs,
        clock,
        randomBytes,
        dataDir: directory.path,
        runtimeDir: await runtimeDirectory(),
        observer: meters,
        log,
      };
      const swept = await sweepAtStart(env, store);
      const backends = new Backends({
        clock,
        policy,
        settings: options.sourceSettings ?? [],
        bytesPerSecond: options.sourceBytesPerSecond ?? null,
      });
      await demandSameCache(fs, directory.path, options.blobs);
      const sources =
        options.blobs === undefined
          ? await Sources.open({ fs, clock, dataDir: directory.path, randomBytes, log, ...limits }, backends)
          : new RemoteSources({ path: options.blobs, clock, backends, log });
      undo.push(() => sources.close());
      const traces = new BootTraces(fs, directory.path, log);
      const volumes = new Volumes(
        { env, store, spare: directory.spare, sources, slots: new HydrationSlots(), traces, events },
        { volumes: swept.ready, snapshots: swept.snapshots.ready, exports: swept.exports, layers: swept.layers },
      );
      sources.cache.setNeeds({ needed: () => volumes.neededBlobs() });
      for (const { id, name, state, blobId } of swept.removed) {
        await volumes.dropBlob(id, blobId);
        await store.deleteVolume(id);
        log("info", `volume '${name}' (${id}) was ${state} when the last process ended: removed what was left of it`);
      }
      await volumes.snapshots.adopt(volumes.all(), swept.snapshots.deleting);
      await volumes.snapshots.collect();
      for (const { code, message } of [...directory.warnings, ...swept.warnings]) log("warn", message, { code });
      const probe = new DataProbe(fs, clock, directory.path, directory.spare);
      void directory.spare.refill();
      const readOnly = options.readOnly === true;
      const startWarnings = swept.warnings;
      return new Ullage({
        directory,
        store,
        sources,
        traces,
        volumes,
        events,
        clock,
        meters,
        probe,
        log,
        startWarnings,
        readOnly,
      });
    } catch (error) {
      for (const step of undo.toReversed()) await step().catch(() => undefined); // the first error is the one that counts
      throw error;
    }
  }

  // ---- sources -----------------------------------------------------------------------------------------------------

  /** What all sources together may deliver; holds until the process ends. */
  sourceLimits(change: Partial<SourceLimitsView> = {}): SourceLimitsView {
    const { rateLimit } = this.#sources.backends;
    if (change.bytesPerSecond !== undefined) {
      if (this.#sources.elsewhere !== undefined) {
        throw new UllageError("cache-elsewhere", `sources are read by the blob manager at ${this.#sources.elsewhere}`, {
          hint: "set `sources.limit` in its configuration, `ullage blobd --config FILE`",
        });
      }
      rateLimit.bytesPerSecond = change.bytesPerSecond;
      this.#log("info", `sources may deliver ${change.bytesPerSecond ?? "any number of"} bytes per second`);
    }
    return { bytesPerSecond: rateLimit.bytesPerSecond };
  }

  /** What the credentials of sources refer to, and the files with their authorities, are read again before their next requests. */
  refreshCredentials(): void {
    this.#sources.backends.refresh();
  }

  // ---- volumes -----------------------------------------------------------------------------------------------------

  /** Resolves when the volume can be used. See `Volumes.create` for errors. */
  async createVolume(
    request: CreateVolumeRequest,
    requestKey?: RequestKey,
    options?: CreateOptions,
  ): Promise<VolumeView> {
    try {
      const volume = await this.#volumes.create(request, requestKey, options);
      this.#log("info", `volume '${request.name}' is ready`, { volume: request.name, volumeId: volume.record.id });
      return volume.view();
    } catch (error) {
      this.#forgetGoneVolumes();
      throw error;
    }
  }

  /** As `createVolume`, but resolves when its image begins to be downloaded, with a job that goes on. */
  createVolumeOrJob(
    request: CreateVolumeRequest,
    requestKey?: RequestKey,
    options: CreateOptions = {},
  ): Promise<MadeVolume> {
    return this.#volumeJobs.create(request, requestKey, options);
  }

  /**
   * Makes a volume from bytes that somebody sends; durable when it resolves. See `Volumes.import` for errors.
   * @param requestKey recognises a repeated request, whose content is then not asked for
   */
  async importVolume(name: string, content: ImportContent, requestKey?: RequestKey): Promise<VolumeView> {
    try {
      const { volume, dataBytes } = await this.#volumes.import(name, content, requestKey);
      this.#meters.of(volume.record.id).importedBytes += dataBytes;
      this.#log("info", `volume '${name}' is ready`, { volume: name, volumeId: volume.record.id });
      return volume.view();
    } catch (error) {
      this.#forgetGoneVolumes();
      throw error;
    }
  }

  /** Bytes of a disk, without reading it: a snapshot's, or a volume's. @throws UllageError `not-found`, `creating` */
  sizeOf(volumeName: string, snapshotName?: string): number {
    const volume = this.#volumes.getReady(volumeName);
    if (snapshotName !== undefined) return this.#volumes.snapshots.get(volume, snapshotName).size;
    return volume.view().size;
  }

  /**
   * A disk as a file, as it is at this moment: a snapshot, or a volume, however it is written to meanwhile. The content must
   * be closed. See `Contents.open` for errors.
   */
  openContent(
    volumeName: string,
    snapshotName: string | undefined,
    format: ContentFormat,
    reader: ContentReader,
  ): Promise<VolumeContent> {
    return this.#contents.open(volumeName, snapshotName, format, reader);
  }

  /**
   * Ordered by name, starting behind `after`. Opens only those that nothing is known of: the figures of a closed volume are
   * those it was closed with.
   */
  async listVolumes(after = "", limit = Infinity): Promise<VolumeView[]> {
    const page = this.#volumes
      .all()
      .filter(({ record }) => record.name > after)
      .slice(0, limit);
    await Promise.all(page.map((volume) => volume.ascertain()));
    return page.map((volume) => volume.view());
  }

  /** As `listVolumes` tells of it. @throws UllageError `not-found` */
  async showVolume(name: string): Promise<VolumeView> {
    const volume = this.#volumes.get(name);
    await volume.ascertain();
    return volume.view();
  }

  /** Whether a volume was made from this source, its secret parts included. @throws UllageError `not-found`, SourceError */
  isMadeFrom(name: string, source: string): boolean {
    return this.#volumes.get(name).record.source === canonicalSource(source);
  }

  /** Removes a volume and everything written to it. @throws UllageError `not-found`, `in-use` */
  async removeVolume(name: string, options: { force?: boolean; snapshots?: boolean } = {}): Promise<void> {
    const { force = false, snapshots = false } = options;
    await this.#volumes.remove(name, { force, snapshots });
    this.#forgetGoneVolumes();
    this.#log("info", `volume '${name}' is removed`, { volume: name });
  }

  /** Name, size and settings, in this order; each durable before the next. @throws UllageError `not-found`, `name-taken`, … */
  async changeVolume(name: string, change: VolumeChangeRequest): Promise<VolumeView> {
    const { name: newName = name, size, force = false, settings } = change;
    let volume = this.#volumes.getReady(name);
    if (newName !== name) volume = await this.#volumes.rename(name, newName);
    if (size !== undefined) volume = await this.#volumes.resize(newName, size, force);
    if (settings !== undefined) await volume.changeSettings(settings);
    return volume.view();
  }

  // ---- snapshots ---------------------------------------------------------------------------------------------------

  /**
   * Freezes a volume as it is; durable when it resolves.
   * @param requestKey recognises a repeated request
   * @throws UllageError `not-found`, `name-taken`, `bad-name`, `request-key-reused`
   */
  async createSnapshot(volumeName: string, name: string, requestKey?: RequestKey): Promise<SnapshotView> {
    const { snapshots } = this.#volumes;
    const volume = this.#volumes.getReady(volumeName);
    const row = await snapshots.once(requestKey, async () => {
      const made = await snapshots.create(volume, name, { request: requestKey });
      this.#log("info", `snapshot '${volumeName}@${name}' is taken`);
      this.events.publish({ name: "snapshot-created", data: snapshotView(volumeName, { ...made, name }) });
      return made;
    });
    return snapshotView(volumeName, { ...row, name });
  }

  /** Of one volume, or of all: by volume name, then oldest first. @throws UllageError `not-found` */
  listSnapshots(volumeName?: string): SnapshotView[] {
    const volumes = volumeName === undefined ? this.#volumes.ready() : [this.#volumes.get(volumeName)];
    return volumes.flatMap(({ record }) =>
      this.#volumes.snapshots.of(record.id).map((row) => snapshotView(record.name, row)),
    );
  }

  /** @throws UllageError `not-found` */
  showSnapshot(volumeName: string, name: string): SnapshotView {
    return snapshotView(volumeName, this.#volumes.snapshots.get(this.#volumes.get(volumeName), name));
  }

  /** @throws UllageError `not-found`, `in-use` */
  async removeSnapshot(volumeName: string, name: string, options: { force?: boolean } = {}): Promise<void> {
    const snapshot = this.showSnapshot(volumeName, name);
    await this.#volumes.snapshots.remove(this.#volumes.getReady(volumeName), name, options.force === true);
    this.#log("info", `snapshot '${volumeName}@${name}' is removed`);
    this.events.publish({ name: "snapshot-removed", data: snapshot });
  }

  /** What was written since the snapshot is lost. @throws UllageError `not-found`, `in-use` */
  async revertVolume(volumeName: string, name: string, options: { force?: boolean } = {}): Promise<VolumeView> {
    const volume = await this.#volumes.revert(volumeName, name, options.force === true);
    this.#log("info", `volume '${volumeName}' is what '${volumeName}@${name}' was`);
    return volume.view();
  }

  /**
   * What was written between a snapshot and a later one, or now: runs of changed bytes from `offset` on, at most `limit`,
   * and where the next page begins. @throws UllageError `not-found`
   */
  async diffSnapshot(
    volumeName: string,
    name: string,
    options: { to?: string; offset?: number; limit?: number } = {},
  ): Promise<{ runs: DiffRunView[]; next: number | null }> {
    const { snapshots } = this.#volumes;
    const volume = this.#volumes.get(volumeName);
    const before = (await snapshots.view(snapshots.get(volume, name))).frozen;
    const { to, offset = 0, limit = maxDiffRuns } = options;
    const device = to === undefined ? await volume.device() : await snapshots.view(snapshots.get(volume, to));
    if (offset >= device.size) return { runs: [], next: null };
    // Every other run is changed, so that twice as many are asked for.
    const found = device.changesSince(before, offset, device.size - offset, 2 * limit);
    const runs: DiffRunView[] = [];
    let at = offset;
    for (const { length, changed } of found) {
      if (changed) runs.push({ offset: at, length });
      at += length;
    }
    return { runs, next: at < device.size ? at : null };
  }

  /** Where a volume's bytes are on this host. @throws UllageError `not-found`, `creating` */
  spaceOf(name: string): Promise<SpaceView> {
    return this.#volumes.spaceOf(name);
  }

  /** Where the bytes of the data directory are. */
  space(): Promise<AllSpaceView> {
    return this.#volumes.space();
  }

  /**
   * Notes what a volume reads of its image from now on, for so long; then that is what disks made from it fetch first.
   * @returns until when, RFC 3339 @throws UllageError `not-found`, `no-source`
   */
  async recordTrace(name: string, seconds: number): Promise<{ until: string }> {
    return { until: (await this.#volumes.getReady(name).recordTrace(seconds))! };
  }

  /** Frees, in all layers, the blocks that nothing refers to any more. @throws UllageError `too-many-jobs` */
  startReclaim(): JobView {
    const running = this.jobs.list().find(({ kind, state }) => kind === "reclaim" && state === "running");
    if (running !== undefined) return running;
    const controller = new AbortController();
    const begun = Promise.withResolvers<(done: number, total: number) => void>();
    const onProgress = (done: number, total: number): void => void begun.promise.then((note) => note(done, total));
    const work = begun.promise
      .then(() => this.#volumes.reclaimer.now({ signal: controller.signal, onProgress }))
      .then(reclaimView);
    const about = { kind: "reclaim", target: null, progress: { done: 0, total: null, unit: "layers" } } as const;
    const { view, progress } = this.jobs.start(about, controller, work);
    begun.resolve(progress);
    return view;
  }

  /** The same, to its end. @throws what stopped it; what it has freed by then stays free */
  async reclaim(signal: AbortSignal = new AbortController().signal): Promise<ReclaimView> {
    return reclaimView(await this.#volumes.reclaimer.now({ signal }));
  }

  #reclaimed(result: Reclaimed): void {
    this.#log(
      "info",
      `${formatSize(result.bytes)} that nothing needed were freed in ${counted(result.layers, "layer")}`,
    );
    this.events.publish({ name: "space-reclaimed", data: reclaimView(result) });
  }

  /** A snapshot as a read-only disk. @throws UllageError `not-found` */
  getSnapshotDevice(volumeName: string, name: string): Promise<BlockDevice> {
    const { snapshots } = this.#volumes;
    return snapshots.view(snapshots.get(this.#volumes.get(volumeName), name));
  }

  // ---- the cache ---------------------------------------------------------------------------------------------------

  /** Ordered by source, starting behind `after` (see `imagePlace`). */
  listImages(after = "", limit = Infinity): Promise<ImageView[]> {
    return this.#images.listImages(after, limit);
  }

  /** @throws UllageError `not-found` */
  showImage(id: string): Promise<ImageView> {
    return this.#images.showImage(id);
  }

  /** Ordered by id, starting behind `after`. */
  listBlobs(after = "", limit = Infinity): Promise<BlobView[]> {
    return this.#images.listBlobs(after, limit);
  }

  /** @throws UllageError `not-found` */
  showBlob(id: string): Promise<BlobView> {
    return this.#images.showBlob(id);
  }

  // ---- exports -----------------------------------------------------------------------------------------------------

  /** Ordered by name, starting behind `after`; with `volume`, those of a volume and its snapshots. @throws UllageError `not-found` */
  listExports(after = "", limit = Infinity, volume?: string): ExportView[] {
    const names = this.#exportNames;
    return (volume === undefined ? names.all() : names.of(this.#volumes.get(volume)))
      .filter(({ name }) => name > after)
      .slice(0, limit)
      .map((found) => this.#exportView(found));
  }

  /** @throws UllageError `not-found` */
  showExport(name: string): ExportView {
    const found = this.#exportNames.find(name);
    if (found !== undefined) return this.#exportView(found);
    throw new UllageError("not-found", `there is no export '${name}'`, { hint: "`ullage export ls` lists them" });
  }

  /**
   * A further name for a volume or a snapshot, durable when it resolves; it follows a rename, and goes with what it names.
   * @throws UllageError `bad-name`, `name-taken`, `not-found`, `creating`, `request-key-reused`, `export-limit`
   */
  async addExport(request: AddExportRequest, requestKey?: RequestKey): Promise<ExportView> {
    const row = await this.#volumes.exports.add(request, requestKey);
    const found = this.#exportNames.behind(row);
    if (found === undefined) {
      throw new UllageError("not-found", `'${request.target}' was removed while '${row.name}' was added`);
    }
    const view = this.#exportView(found);
    this.#log("info", `'${row.name}' is an export of '${request.target}'`);
    this.events.publish({ name: "export-added", data: view });
    return view;
  }

  /** Open connections stay. @throws UllageError `not-found`, `own-name` */
  async removeExport(name: string): Promise<void> {
    const view = this.showExport(name);
    if (view.implicit) {
      throw new UllageError("own-name", `'${name}' is the own name of what it exports`, {
        hint: "only exports that were added can be removed: this one goes with its volume or snapshot",
      });
    }
    await this.#volumes.exports.remove(name);
    this.#log("info", `'${name}' is no export any more`);
    this.events.publish({ name: "export-removed", data: view });
  }

  #exportView({ name, volume, snapshot, added, readOnly }: NamedExport): ExportView {
    const { id, createdAt } = added ?? snapshot ?? volume.record;
    return {
      id,
      name,
      protocol: "nbd",
      volume: volume.record.name,
      snapshot: snapshot?.name ?? null,
      readOnly,
      description: added?.options.description ?? null,
      implicit: added === undefined,
      uris: this.#nbd.urisOf(name),
      createdAt,
    };
  }

  /** @throws UllageError `not-found`, `no-source` */
  async steerHydration(name: string, change: HydrationChange): Promise<HydrationView> {
    const volume = this.#volumes.getReady(name);
    await volume.steer(change);
    return volume.hydration();
  }

  /** A page of the map: at most `limit` runs from `offset` on, and where the next page begins. */
  async mapVolume(name: string, offset: number, limit: number): Promise<{ runs: MapRunView[]; next: number | null }> {
    const device = await this.#volumes.getReady(name).device();
    if (offset >= device.size) return { runs: [], next: null };
    const length = device.size - offset;
    const runs = device.mapRuns(offset, (await device.learnZeros(offset, length)) ?? length, limit);
    const last = runs.at(-1)!;
    const end = last.offset + last.length;
    return {
      runs: runs.map(({ owner, ...run }) => ({ ...run, owner: owner ?? null })),
      next: end < device.size ? end : null,
    };
  }

  /** @throws UllageError `not-found` */
  connections(name: string): ConnectionView[] {
    return this.#volumes.get(name).connections();
  }

  /** Lets writers in again (docs/DURABILITY.md). @throws UllageError `not-found`, `loss-not-accepted` */
  async reopenVolume(name: string, acceptLoss: boolean): Promise<VolumeView> {
    const volume = this.#volumes.getReady(name);
    await volume.reopen(acceptLoss);
    return volume.view();
  }

  /** The disk itself; opened when it is not yet. @throws UllageError `not-found`, `poisoned`, CorruptionError */
  getDevice(name: string): Promise<BlockDevice> {
    return this.#volumes.getReady(name).device();
  }

  // ---- serving -----------------------------------------------------------------------------------------------------

  /** Opens NBD listeners. @throws UllageError `listen-in-use`, `listen` */
  async serveNbd(addresses: readonly ListenTarget[], options: NbdOptions = {}): Promise<void> {
    await this.#nbd.listen(addresses, options);
  }

  /**
   * Offers the cache to other processes of this host, on <data>/blobd.sock.
   * @throws UllageError `listen-in-use`, `listen`
   */
  async serveBlobs(access: SocketAccess): Promise<void> {
    if (!(this.#sources instanceof Sources)) return; // it is not here
    this.#blobs = await BlobListener.open({
      path: this.#directory.below("blobd.sock"),
      dataDir: this.#directory.path,
      store: this.#sources.cache,
      log: this.#log,
      access,
    });
    this.noteListener({ protocol: "blobs", address: `unix:${this.#blobs.path}`, uri: null });
  }

  /** Lets connections finish what they started, for so long, then closes them and the listeners. */
  async stopServing(graceMs: number): Promise<void> {
    await this.#nbd.stop(graceMs);
    await this.#blobs?.close();
    this.#blobs = undefined;
    this.events.close();
  }

  /** Opens, in the background, the volumes that have something to do: hydration goes on where it was. */
  resume(): void {
    this.#opening = this.#volumes.openBusy().catch((error: unknown) => this.#log("error", describeError(error)));
  }

  /** An API listener was opened beside this; for `health`. */
  noteListener(listener: ListenerView): void {
    this.#apiListeners.push(listener);
  }

  /** Something about a listener that was opened beside this; for `health`. */
  noteWarning(warning: Warning): void {
    this.#listenerWarnings.push(warning);
  }

  /** As far as is known at once: the data directory as of the last `checkHealth`. */
  health(): HealthView {
    const findings = this.#findings(this.#volumes.ready().map((volume) => volume.view()));
    return {
      status: worstOf(findings),
      checks: checksOf(findings),
      warnings: findings.map(({ code, message }) => ({ code, message })),
      version: packageVersion,
      pid: process.pid,
      dataDirectory: this.#directory.path,
      listeners: [...this.#apiListeners, ...this.#nbd.listeners],
    };
  }

  /** Looks first whether the data directory takes writes, unless that was done a moment ago. */
  async checkHealth(): Promise<HealthView> {
    await this.#probe.refresh();
    return this.health();
  }

  #findings(volumes: readonly VolumeView[]): Finding[] {
    return findingsOf({
      fileSystem: this.#directory.warnings,
      start: this.#startWarnings,
      listeners: [...this.#nbd.warnings, ...this.#listenerWarnings],
      store: this.#store,
      cache: this.#sources.cache,
      probe: this.#probe,
      delay: this.#delay,
      volumes,
    });
  }

  /** Figures of the process, as `GET /v1/stats` shows them. */
  stats(): StatsView {
    const volumes = this.#volumes.all();
    return {
      uptimeSeconds: process.uptime(),
      ...processFigures(),
      eventLoopDelay: this.#delay.total(),
      volumes: { known: volumes.length, open: volumes.filter(({ isOpen }) => isOpen).length },
      connections: volumes.reduce((sum, volume) => sum + volume.connections().length, 0),
    };
  }

  /** Of volumes that clients did anything with since the process started, ordered by name. */
  traffic(): VolumeTraffic[] {
    return this.#volumes.all().flatMap(({ record: { id, name } }) => {
      const meter = this.#meters.find(id);
      return meter === undefined ? [] : [volumeTraffic(name, meter.traffic)];
    });
  }

  /** Everything that is counted; for metrics. Opens nothing, and takes a turn of the event loop for a few volumes each. */
  async measure(): Promise<Measured> {
    await this.#probe.refresh();
    const volumes: MeasuredVolume[] = [];
    for (const volume of this.#volumes.all()) {
      const { id } = volume.record;
      const snapshots = this.#volumes.snapshots.of(id).length;
      const meter = this.#meters.find(id);
      volumes.push({ view: volume.view(), snapshots, info: await this.#infoOf(volume), meter });
      if (volumes.length % volumesPerTurn === 0) await nextTurn();
    }
    return {
      process: processFigures(),
      recentDelay: this.#delay.lastMinute() ?? this.#delay.total(),
      checks: checksOf(this.#findings(volumes.map(({ view }) => view))),
      space: this.#probe.space,
      nbd: this.#nbd.figures(),
      sources: this.#sources.cache.sources.all(),
      reclaim: this.#volumes.reclaimer.figures,
      cache: this.cache.view(),
      volumes,
    };
  }

  /** Their counters go. */
  #forgetGoneVolumes(): void {
    this.#meters.keepOnly(new Set(this.#volumes.all().map(({ record }) => record.id)));
  }

  /** @returns undefined when the volume is not open, or about to be closed */
  async #infoOf(volume: ManagedVolume): Promise<VolumeInfo | undefined> {
    if (!volume.isOpen || volume.record.state !== "ready") return undefined;
    const device = await volume.device().catch(() => undefined);
    return device?.info();
  }

  #connectionSeen(...[what, exportName, connection]: Parameters<ConnectionWatch>): void {
    this.events.publish({ name: `connection-${what}`, data: { export: exportName, connection } });
    this.#exportNames.volumeOf(exportName)?.news.changed();
  }

  /** What is done with a snapshot is counted for its volume. */
  #trafficOf(exportName: string): ExportTraffic {
    const volume = this.#exportNames.volumeOf(exportName);
    return volume === undefined ? new ExportTraffic() : this.#meters.of(volume.record.id).traffic;
  }

  /** Flushes and checkpoints every volume, then lets go of the directory. @throws the first failure, when all is closed */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    this.#delay.stop();
    this.events.close();
    const failures: unknown[] = [];
    const steps = [
      () => this.#nbd.stop(0),
      () => this.#contents.close(),
      () => this.#volumes.close(),
      () => this.#opening,
      () => this.#sources.close(),
      () => this.#store.close(),
      () => this.#directory.close(),
    ];
    for (const step of steps) await step().catch((error: unknown) => failures.push(error));
    if (failures.length === 0) return;
    throw new UllageError("close-failed", "not everything could be closed cleanly", { cause: failures[0] });
  }
}

function reclaimView({ bytes, ...rest }: Reclaimed): ReclaimView {
  return { reclaimedBytes: bytes, ...rest };
}

const maxDiffRuns = 10_000;

function snapshotView(volume: string, { id, name, size, createdAt }: SnapshotRecord & { name: string }): SnapshotView {
  return { id, name, volume, size, createdAt };
}
