import { isDeepStrictEqual } from "node:util";
import { UllageError, describeError } from "../../base/errors.ts";
import { counted } from "../../base/units.ts";
import { shownSource } from "../../base/without-secrets.ts";
import type { TracedRead } from "../../blob/boot-trace.ts";
import { describeDamage, isOfAPlace } from "../../blob/damage.ts";
import type { MetadataStore, Origin, Settings, Standing, VolumeRecord } from "../../catalog/metadata-store.ts";
import { Hydration } from "../../volume/hydration/hydration.ts";
import type { HydrationSlots } from "../../volume/hydration/hydration-slots.ts";
import { baseOf, cleanCheckpoint, lastCheckpoint } from "../../volume/layers/references.ts";
import type { MapRun, VolumeEnvironment, VolumeInfo } from "../../volume/types.ts";
import { unflushedLost, Volume } from "../../volume/volume.ts";
import type { SpareSpace } from "../directory/spare-space.ts";
import { TraceRecording } from "./trace-recording.ts";
import { Turns } from "../turns.ts";
import { renameDescription } from "./volume-files.ts";
import type { BootTraces } from "../cache/boot-traces.ts";
import type { Events } from "../events.ts";
import { applyWish, closedHydrationView, hydrationView } from "./hydration-view.ts";
import { VolumeNews } from "./volume-news.ts";
import type { HydrationChange, HydrationView, OriginView, VolumeView, VolumeViewState } from "../views.ts";
import type { SharedBlob, VolumeSources } from "../sources/volume-sources.ts";

/** How long connections that were asked to end may take. */
const disconnectMs = 6000;
const disconnectPollMs = 20;

/** What volumes work with; one for all of a data directory. */
export interface VolumeHost {
  env: VolumeEnvironment;
  store: MetadataStore;
  spare: SpareSpace;
  sources: VolumeSources;
  /** Requests to sources that all hydrations share. */
  slots: HydrationSlots;
  /** Makes sure that a frozen map, which a clone begins with, is in its file. */
  materialise(id: string): Promise<void>;
  /** A volume or snapshot is not there any more: further names that it was exported under go. Durable when it resolves. */
  targetGone(id: string): Promise<void>;
  /** What a clone began as, by the names of now. */
  originNow(origin: Origin): OriginView;
  /** A volume has given up layers: they go, unless somebody else needs them. */
  layersUnused(layers: string[]): void;
  /** A volume's last life did not end as it should: layers of it that nothing refers to go, in the background. */
  endedBadly(volumeId: string): void;
  /** Something that referred to these layers is gone: blocks that nobody needs any more are freed, in the background. */
  reclaimSoon(layers: Iterable<string>): void;
  /** What was read first of images. */
  traces: BootTraces;
  /** Hears of everything that happens to volumes. */
  events: Events;
}

interface Opened {
  volume: Volume;
  blobs: SharedBlob[];
  hydration: Hydration | undefined;
  /** Ends the listening to its blobs. */
  deafen: readonly (() => void)[];
}

/**
 * A volume that the catalog knows, open or not. It is opened on first use and stays open. Opening, closing, reopening
 * and removing take turns, so that a volume is never open twice.
 *
 *     creating -> ready -> deleting        the row in the catalog (durability rule 17)
 *                 closed <-> open          `failure` says why it could not be opened the last time
 */
export class ManagedVolume {
  record: VolumeRecord;
  /** While it is made with `download`: bytes received so far, of how many. */
  download: { bytes: number; total: number } | undefined;
  /** To be told when something changed that users see. */
  readonly news: VolumeNews;
  readonly #host: VolumeHost;
  readonly #turns = new Turns();
  #opened: Opened | undefined;
  #failure: unknown;
  #recording: TraceRecording | undefined;
  /** The record's standing was compared with the files, which only this process changes. */
  #standingHolds = false;
  /** It is being removed, or everything is being stopped: it is not opened any more. */
  #ending = false;

  constructor(host: VolumeHost, record: VolumeRecord) {
    this.#host = host;
    this.record = record;
    this.news = new VolumeNews(host.events, host.env.clock, () => this.view());
  }

  /** The volume, if it is open now. */
  get opened(): Volume | undefined {
    return this.#opened?.volume;
  }

  get isOpen(): boolean {
    return this.#opened !== undefined;
  }

  /** Opens the volume if need be. @throws UllageError `poisoned`, `stopping`, CorruptionError, … */
  async device(): Promise<Volume> {
    if (this.#opened !== undefined && !this.#ending) return this.#opened.volume;
    return (await this.#turns.run(() => this.#open())).volume;
  }

  /** As `device`, for somebody who is about to read: hydration leaves room for his first reads. */
  deviceForReader(): Promise<Volume> {
    const { state } = this.hydration();
    if (this.record.blobId !== null && state !== "detached") this.#host.sources.cache.expectReads();
    return this.device();
  }

  async #open(acceptLoss = false, distrustCache = false): Promise<Opened> {
    if (this.#ending) throw new UllageError("stopping", `volume '${this.record.name}' is being closed`);
    if (this.#opened !== undefined) return this.#opened;
    const { env, sources } = this.#host;
    const { id, name, settings } = this.record;
    const blobs: SharedBlob[] = [];
    const deafen: (() => void)[] = [];
    let volume: Volume | undefined;
    await this.#host.spare.borrow();
    try {
      const base = await baseOf(env, id);
      if (base !== undefined) await this.#host.materialise(base);
      // Whatever an open volume logs may be about its state: that is how it tells that it is poisoned.
      const log: VolumeEnvironment["log"] = (...message) => {
        env.log(...message);
        this.news.changed();
      };
      const listened = { ...env, log };
      volume = await Volume.open(listened, {
        id,
        name,
        settings,
        acceptLoss,
        distrustCache,
        onLayersUnused: (layers) => this.#host.layersUnused(layers),
        openBlob: async (blobId) => {
          const blob = await sources.cache.open(blobId);
          blobs.push(blob);
          deafen.push(blob.onTrouble(() => this.news.changed()));
          return blob;
        },
      });
      const hydration = blobs.length === 0 ? undefined : await this.#openHydration(volume, blobs);
      this.#opened = { volume, blobs, hydration, deafen };
      this.#failure = undefined;
      if (!volume.endedClean) this.#host.endedBadly(id);
      this.news.changed();
      return this.#opened;
    } catch (error) {
      await volume?.close();
      for (const end of deafen) end();
      for (const blob of blobs) await sources.cache.release(blob.id);
      this.#failure = error;
      env.log("error", `volume '${name}' can't be opened: ${describeError(error)}`);
      this.news.changed();
      throw error;
    }
  }

  async #openHydration(volume: Volume, blobs: readonly SharedBlob[]): Promise<Hydration> {
    const { env, slots, traces } = this.#host;
    const known = new Map<string, readonly TracedRead[]>();
    for (const { id, meta } of blobs) known.set(id, (await traces.of(meta))?.reads ?? []);
    const hydration = await Hydration.open(volume, {
      clock: env.clock,
      slots,
      space: async () => ({ ...(await env.fs.space(env.dataDir)), room: this.#host.sources.cache.space.room }),
      log: (level, message) => env.log(level, message),
      trace: (blobId) => known.get(blobId) ?? [],
    });
    applyWish(hydration, this.record.hydration);
    hydration.onChange(() => {
      this.news.changed();
      this.news.progress();
    });
    return hydration;
  }

  /** Flushes, checkpoints, closes; afterwards `device` opens it again. */
  async #close(): Promise<void> {
    if (this.#opened === undefined) return;
    const { volume, blobs, hydration, deafen } = this.#opened;
    await this.#recording?.end();
    this.#recording = undefined;
    this.#opened = undefined; // whoever looks meanwhile must not find descriptors that are closed
    await hydration?.close();
    try {
      await volume.close();
    } finally {
      for (const end of deafen) end();
      for (const blob of blobs) await this.#host.sources.cache.release(blob.id);
    }
  }

  async #disconnect(reason: string): Promise<void> {
    const volume = this.#opened?.volume;
    if (volume === undefined) return;
    volume.disconnectAll(reason);
    const { clock } = this.#host.env;
    const deadline = clock.now() + disconnectMs;
    while (volume.info().connections.length > 0 && clock.now() < deadline) await clock.sleep(disconnectPollMs);
  }

  /** For good: the process stops. The catalog keeps what the volume is like then, for the next one. */
  stop(): Promise<void> {
    this.#ending = true;
    return this.#turns.run(async () => {
      const last = this.#opened === undefined ? undefined : this.standing();
      await this.#close();
      if (last !== undefined && this.record.state === "ready") await this.#keepStanding(last);
    });
  }

  async #keepStanding(last: Omit<Standing, "checkpoint">): Promise<void> {
    const { env, store } = this.#host;
    try {
      const checkpoint = await lastCheckpoint(env, this.record.id);
      if (checkpoint === undefined) return;
      const standing = { checkpoint, ...last };
      if (isDeepStrictEqual(standing, this.record.standing)) return;
      await store.noteStanding(this.record.id, standing);
    } catch (error) {
      // The next process opens the volume to see what it is like.
      env.log("info", `what volume '${this.record.name}' is like is not kept: ${describeError(error)}`);
    }
  }

  /** What it is like, as far as that is known without a wait. */
  standing(): Omit<Standing, "checkpoint"> {
    const { fetchedBytes, writtenBytes, hydration, state } = this.view();
    return {
      lostUnflushed: state === "lostUnflushed",
      detached: hydration.state === "detached",
      writtenBytes,
      fetchedBytes,
      readyBytes: hydration.readyBytes,
      totalBytes: hydration.totalBytes,
    };
  }

  /**
   * Sees to it that what is known of the volume is true. Only one whose files do not bear out what the catalog says is opened
   * for that, if it can be: it did not come to a clean end, or was never closed.
   */
  async ascertain(): Promise<void> {
    if (this.#isCertain()) return;
    await this.#turns.run(async () => {
      if (this.#isCertain()) return;
      const { id, standing } = this.record;
      const found = await lastCheckpoint(this.#host.env, id).catch(() => undefined);
      if (found !== undefined && found === standing?.checkpoint) this.#standingHolds = true;
      else await this.#open().catch(() => undefined); // its state tells why
    });
  }

  #isCertain(): boolean {
    if (this.record.state !== "ready" || this.#ending) return true;
    return this.#opened !== undefined || this.#failure !== undefined || this.#standingHolds;
  }

  /**
   * Lets nobody in any more and closes the volume, so that its files can be removed.
   * @param markDeleting makes the row say so, durably; when that fails, the volume goes on
   * @throws UllageError `in-use` while somebody may write, unless `force`
   */
  end(force: boolean, markDeleting: () => Promise<void>): Promise<void> {
    return this.#turns.run(async () => {
      this.demandNoWriters(force);
      this.#ending = true;
      try {
        await markDeleting();
      } catch (error) {
        this.#ending = false;
        throw error;
      }
      this.record = { ...this.record, state: "deleting" };
      await this.#disconnect("the volume is being removed");
      await this.#close().catch((error: unknown) => {
        this.#host.env.log("warn", `volume '${this.record.name}' on its way out: ${describeError(error)}`);
      });
    });
  }

  /** @throws UllageError `in-use` while somebody may write, unless `force` */
  demandNoWriters(force: boolean): void {
    const writers = this.connections().filter(({ writable }) => writable).length;
    if (writers === 0 || force) return;
    throw new UllageError("in-use", `volume '${this.record.name}' has ${counted(writers, "read-write connection")}`, {
      hint: "disconnect them first, or use --force, which closes them",
    });
  }

  /**
   * The volume as it is now, for `work`: until that ends nobody opens or closes it. One that only a recovery can tell of is
   * opened first, if that is possible; undefined: it is closed. When it is on its way out, nothing is done.
   */
  inspect<T>(work: (volume: Volume | undefined) => Promise<T>): Promise<T | undefined> {
    return this.#turns.run(async () => {
      if (this.record.state !== "ready") return undefined;
      if (this.#opened === undefined && !this.#ending) {
        const clean = await cleanCheckpoint(this.#host.env, this.record.id).catch(() => undefined);
        if (clean === undefined) await this.#open().catch(() => undefined); // its state tells why
      }
      return work(this.#opened?.volume);
    });
  }

  /**
   * Lets writers in again (durability rule 16), or tries once more to open a volume that could not be opened.
   * @throws UllageError `loss-not-accepted`, and whatever opening throws
   */
  reopen(acceptLoss: boolean): Promise<void> {
    return this.#turns.run(async () => {
      const { state, reason } = this.#stateNow();
      if (state === "poisoned" || state === "lostUnflushed") {
        if (!acceptLoss) {
          throw new UllageError("loss-not-accepted", `volume '${this.record.name}' is ${state}: ${reason}`, {
            hint: "--accept-loss goes on from the last flush; what was written and not flushed since then is lost",
          });
        }
        await this.#disconnect("the volume is being reopened");
        await this.#close();
        await this.#open(true, state === "poisoned");
      } else if (this.#opened === undefined) {
        await this.#open(acceptLoss);
      }
    });
  }

  /**
   * Replaces the map as a whole: closes the volume, lets `work` change its files, and opens it again.
   * @param work @returns the volume's size in bytes
   * @param prepare looks at the volume, which nobody uses any more, before it is closed; what it throws changes nothing
   * @throws UllageError `in-use` while somebody may write, unless `force`
   */
  rebase(
    what: string,
    force: boolean,
    work: () => Promise<number>,
    prepare: (device: Volume) => Promise<void> = () => Promise.resolve(),
  ): Promise<void> {
    return this.#turns.run(async () => {
      const device = (await this.#open()).volume;
      this.demandNoWriters(force);
      await this.#disconnect(what);
      if (device.info().state !== "ok") throw new UllageError("not-ok", `volume '${this.record.name}' is not well`);
      await prepare(device);
      await this.#close();
      try {
        const size = await work();
        await this.#host.store.updateVolume(this.record.id, { size });
        this.record = { ...this.record, size };
      } finally {
        await this.#open();
      }
    });
  }

  /** Durable when it resolves; connections that are open keep the size they know. @param size bytes */
  async grow(size: number): Promise<void> {
    await (await this.device()).grow(size);
    await this.#host.store.updateVolume(this.record.id, { size });
    this.record = { ...this.record, size };
    this.news.changed();
  }

  async rename(name: string): Promise<void> {
    await this.#host.store.updateVolume(this.record.id, { name });
    this.record = { ...this.record, name };
    this.news.changed();
    const { env } = this.#host;
    await renameDescription(env, this.record.id, name).catch((error: unknown) => {
      // Only a rebuilt catalog would go by it.
      env.log("warn", `volume '${name}' keeps its old name in its own files: ${describeError(error)}`);
    });
  }

  /** @throws UllageError `not-cached` */
  async changeSettings(change: Partial<Settings>): Promise<void> {
    if (change.cache !== undefined && change.cache !== this.record.settings.cache) {
      throw new UllageError(
        "not-cached",
        `volume '${this.record.name}' stays as it was made: with or without a cache`,
        {
          hint: "make another volume from the image",
        },
      );
    }
    if (change.hydrate === "auto") this.#demandCache();
    const settings = { ...this.record.settings, ...change };
    const hydration = { ...this.record.hydration };
    if (change.hydrate !== undefined) hydration.wanted = change.hydrate === "auto";
    // The row promises only what holds already: towards `always` the volume comes first, back to `normal` the row.
    if (settings.sync === "always") await this.#opened?.volume.changeSettings(settings);
    await this.#host.store.updateVolume(this.record.id, { settings, hydration });
    this.record = { ...this.record, settings, hydration };
    await this.#opened?.volume.changeSettings(settings);
    this.#applyWish();
    this.news.changed();
  }

  #demandCache(): void {
    if (this.record.settings.cache === "shared") return;
    throw new UllageError("not-cached", `volume '${this.record.name}' has cache=none: nothing is kept of its image`, {
      hint: "make a volume with a cache from it",
    });
  }

  /** @throws UllageError `no-source`, `not-cached` */
  async steer(change: HydrationChange): Promise<void> {
    if (this.record.blobId === null) {
      throw new UllageError("no-source", `volume '${this.record.name}' was made empty: there is nothing to fetch`);
    }
    this.#demandCache();
    const hydration = { ...this.record.hydration };
    if (change.state === "running") Object.assign(hydration, { wanted: true, paused: false });
    if (change.state === "paused") hydration.paused = true;
    if (change.limitBytesPerSecond !== undefined) hydration.rate = change.limitBytesPerSecond;
    if (change.priority !== undefined) hydration.priority = change.priority;
    await this.device();
    await this.#host.store.updateVolume(this.record.id, { hydration });
    this.record = { ...this.record, hydration };
    this.#applyWish();
    this.news.changed();
  }

  #applyWish(): void {
    const hydration = this.#opened?.hydration;
    if (hydration !== undefined) applyWish(hydration, this.record.hydration);
  }

  connections(): VolumeInfo["connections"] {
    return this.#opened?.volume.info().connections ?? [];
  }

  /**
   * Notes what is read of the image from now on, as what the next disks made from it should fetch first.
   * @param seconds for so long; undefined: for as long as a boot may take, and only when nothing is known yet
   * @returns until when, RFC 3339; null: not @throws UllageError `no-source`
   */
  async recordTrace(seconds?: number): Promise<string | null> {
    const { env, traces } = this.#host;
    const device = await this.device();
    const blob = this.#opened?.blobs[0];
    if (blob === undefined) {
      throw new UllageError("no-source", `volume '${this.record.name}' was made empty: it reads no image`);
    }
    await this.#recording?.end();
    this.#recording =
      seconds === undefined
        ? await TraceRecording.startAutomatic(env, traces, device, blob)
        : TraceRecording.start(env, traces, device, blob, seconds * 1000);
    return this.#recording?.until ?? null;
  }

  async mapRuns(offset: number, length: number, limit: number): Promise<MapRun[]> {
    return (await this.device()).mapRuns(offset, length, limit);
  }

  /** As far as it is known without a wait. */
  view(): VolumeView {
    const { id, name, size, source, blobId, format, origin, settings, createdAt } = this.record;
    const info = this.#opened?.volume.info();
    const { standing } = this.record;
    return {
      id,
      name,
      size: info?.size ?? size,
      ...this.#stateNow(),
      source: source === null ? null : shownSource(source),
      pinned: blobId === null ? null : (this.#host.sources.cache.metaOf(blobId)?.identity.strong ?? null),
      blob: blobId,
      format,
      origin: origin === null ? null : this.#host.originNow(origin),
      fetchedBytes: this.#openBlob()?.readyBytes ?? this.download?.bytes ?? standing?.fetchedBytes ?? 0,
      writtenBytes: info?.writtenBytes ?? standing?.writtenBytes ?? 0,
      hydration: this.hydration(),
      settings,
      connections: info?.connections.length ?? 0,
      createdAt,
    };
  }

  hydration(): HydrationView {
    const { hydration, standing } = this.record;
    if (this.#opened === undefined && this.download === undefined && standing !== null) {
      return closedHydrationView(standing, hydration);
    }
    return hydrationView(this.#opened?.hydration?.status(), hydration, this.download);
  }

  /** What a source of it that is still needed failed somebody with last, and what can be done about it. */
  #failedSource(): string | undefined {
    const known = this.hydration().damagedBytes > 0; // which says more than that one of these places was asked for
    for (const { sourceTrouble, readyBytes, size } of this.#opened?.blobs ?? []) {
      if (sourceTrouble?.final !== true || readyBytes === size) continue;
      if (known && isOfAPlace(sourceTrouble.error)) continue;
      const { hint } = sourceTrouble.error;
      return `${describeError(sourceTrouble.error)}${hint === undefined ? "" : ` (${hint})`}`;
    }
    return undefined;
  }

  /** Its blob, if this or another volume has it open. */
  #openBlob(): SharedBlob | undefined {
    const { blobId } = this.record;
    return blobId === null ? undefined : (this.#opened?.blobs[0] ?? this.#host.sources.cache.ifOpen(blobId));
  }

  #stateNow(): { state: VolumeViewState; reason: string | null } {
    if (this.record.state === "creating") return { state: "creating", reason: null };
    if (this.#opened !== undefined) {
      const { state, reason } = this.#opened.volume.info();
      const hydration = this.hydration();
      if (state === "ok" && hydration.state !== "detached") {
        const failed = this.#failedSource();
        if (failed !== undefined) return { state: "degraded", reason: failed };
        if (hydration.state === "waiting") return { state: "degraded", reason: hydration.reason };
        const { damagedBytes, damaged } = hydration;
        if (damagedBytes > 0) {
          return {
            state: "degraded",
            reason: `there are ${describeDamage(damagedBytes, damaged[0].offset)}: ${damaged[0].reason}`,
          };
        }
      }
      return { state, reason: reason ?? null };
    }
    if (this.#failure === undefined) {
      return this.record.standing?.lostUnflushed === true
        ? { state: "lostUnflushed", reason: unflushedLost }
        : { state: "ok", reason: null };
    }
    const poisoned = this.#failure instanceof UllageError && this.#failure.code === "poisoned";
    return { state: poisoned ? "poisoned" : "failed", reason: describeError(this.#failure) };
  }
}
