import type { CacheLimits } from "../blob/cache-space.ts";
import type { DamagedRange } from "../blob/damage.ts";
import type { Settings } from "../catalog/metadata-store.ts";
import type { HealthCheck, HealthStatus, Warning } from "./health/health.ts";

/*
 * What users see of things: the objects of the REST API, of `--json` and of the library. Sizes are bytes, times RFC 3339.
 */

/**
 * - creating: being made; not served yet
 * - ok, degraded, poisoned, lostUnflushed: see VolumeState
 * - failed: can't be opened; `reason` says why
 */
export const volumeViewStates = ["creating", "ok", "degraded", "poisoned", "lostUnflushed", "failed"] as const;
/** How a volume is; see `volumeViewStates`. */
export type VolumeViewState = (typeof volumeViewStates)[number];

/** A volume. */
export interface VolumeView {
  /** 32 hex digits */
  id: string;
  name: string;
  size: number;
  state: VolumeViewState;
  /** why the state is not `ok` */
  reason: string | null;
  /** without what is secret in an address, its query; null: made empty */
  source: string | null;
  /** A change of the source can't go unnoticed. null: made empty */
  pinned: boolean | null;
  /** id of the blob that it was made from: `BlobView` says how much of it is here, and whether it was verified. null: made empty, or not known yet */
  blob: string | null;
  format: string | null;
  /** null: it is no clone, or was made by a version that did not note it */
  origin: OriginView | null;
  /** of the source, in the local cache */
  fetchedBytes: number;
  /** in blocks of 4096 that were written here, or in what it was cloned from, and were not trimmed since */
  writtenBytes: number;
  hydration: HydrationView;
  settings: Settings;
  /** open connections */
  connections: number;
  createdAt: string;
}

/**
 * What a clone began as. The volume is named as it is now, or, when it is there no more, as it was when the clone was made.
 */
export interface OriginView {
  volume: string;
  /** null: the volume as it was at that moment */
  snapshot: string | null;
  /** The snapshot, or the volume, is there no more; something new may have its name. */
  removed: boolean;
}

/**
 * - none: nothing to fill, or not wanted
 * - running, paused
 * - waiting: wants to run and can't (the source fails, or all is here but what is damaged there); `reason` says why
 * - detached: everything is here, the source is not needed any more
 */
export type HydrationViewState = "none" | "running" | "paused" | "waiting" | "detached";

/** How far the filling of a volume's local cache is. */
export interface HydrationView {
  state: HydrationViewState;
  reason: string | null;
  readyBytes: number;
  totalBytes: number;
  /** of these, what can't be had though the source answers, as far as it was asked for since the volume was opened */
  damagedBytes: number;
  /** where that is, the first places */
  damaged: readonly DamagedRange[];
  rateBytesPerSecond: number;
  /** null: unknown */
  etaSeconds: number | null;
  /** null: as fast as it goes */
  limitBytesPerSecond: number | null;
  /** among volumes that are filled at the same time; more is sooner */
  priority: number;
}

/** How a user steers hydration; what is left out stays. */
export interface HydrationChange {
  state?: "running" | "paused";
  limitBytesPerSecond?: number | null;
  priority?: number;
}

/** A client of a volume. */
export interface ConnectionView {
  protocol: string;
  address: string;
  /** over TCP, from another machine */
  remote: boolean;
  writable: boolean;
}

/** A run of a volume's bytes that are in one place. */
export interface MapRunView {
  offset: number;
  length: number;
  /** where the bytes are: in the image's cache, at the source only, written here, or nowhere (they read as zeros) */
  kind: "local" | "remote" | "written" | "zero";
  /** id of the layer or blob; null for zeros */
  owner: string | null;
}

/** What is open, and what an operator should know about. */
export interface HealthView {
  /** the worst of the checks */
  status: HealthStatus;
  checks: HealthCheck[];
  /** everything that the checks found */
  warnings: Warning[];
  version: string;
  pid: number;
  dataDirectory: string;
  listeners: ListenerView[];
}

/** Where a server listens. */
export interface ListenerView {
  protocol: "api" | "nbd" | "blobs";
  /** `127.0.0.1:10809`, `unix:/path` */
  address: string;
  /** NBD: the URI of the default export; append a volume's name */
  uri: string | null;
}

/** Figures of the process. */
export interface StatsView {
  uptimeSeconds: number;
  cpuSeconds: number;
  residentBytes: number;
  heapUsedBytes: number;
  /** how late timers ran since the start of the process */
  eventLoopDelay: { p50Ms: number; p99Ms: number; maxMs: number };
  volumes: { known: number; open: number };
  connections: number;
}

/** What a new volume is made from, and how. */
export interface CreateVolumeRequest {
  name: string;
  /** bytes; absent: the image's size, rounded up to 512 */
  size?: number;
  from?: SourceRequest | CloneRequest;
  settings?: Partial<Settings>;
}

/** A snapshot, `VOL@SNAP`, or a volume as it is now. */
export type CloneRequest = { snapshot: string } | { volume: string };

/** How a volume is to change; what is left out stays. */
export interface VolumeChangeRequest {
  name?: string;
  /** bytes; less than now only with `force` and where nothing is */
  size?: number;
  /** close read-write connections when that is needed */
  force?: boolean;
  settings?: Partial<Settings>;
}

/** Bytes on disk, in all of the data directory: what `du` says of the files in layers/ and of the caches in blobs/. */
export interface AllSpaceView {
  /** in layers that one volume, with its snapshots, needs: the sum over all volumes */
  exclusiveBytes: number;
  /** in layers that several volumes need, each counted once */
  sharedBytes: number;
  /** in layers that nothing needs: about to be removed, or left by a removal that failed */
  unusedBytes: number;
  /** of images, each counted once */
  cachedBytes: number;
}

/** Bytes on disk. What several volumes use is in the figures of each of them. */
export interface SpaceView {
  /** in layers that only this volume and its snapshots need */
  exclusiveBytes: number;
  /** in layers that other volumes need as well */
  sharedBytes: number;
  /** in the cache of the image that it was made from, which all volumes made from that share */
  cachedBytes: number;
}

/** What reclaim did. */
export interface ReclaimView {
  /** freed on disk */
  reclaimedBytes: number;
  /** layers of which it is known now what they need */
  layers: number;
  /** layers that were left alone */
  leftAlone: number;
  /** why, the first ten */
  reasons: string[];
}

/** Bytes that may differ. */
export interface DiffRunView {
  offset: number;
  length: number;
}

/** A frozen state of a volume. */
export interface SnapshotView {
  /** 32 hex digits */
  id: string;
  name: string;
  /** name of its volume */
  volume: string;
  size: number;
  createdAt: string;
}

/** What all sources of the host together may do. */
export interface SourceLimitsView {
  /** null: no limit */
  bytesPerSecond: number | null;
}

/**
 * How the source of a blob is, by the last request to it.
 * - notNeeded: everything is here
 * - notAsked: not since the blob was opened; one that nobody uses is closed
 * - ok, failing: what the last request came to; `reason` and `at` say what failed, and when
 */
export interface SourceStateView {
  state: "notNeeded" | "notAsked" | "ok" | "failing";
  reason: string | null;
  /** RFC 3339 */
  at: string | null;
}

/** One version of an image in the local cache, which all volumes made from it share. */
export interface BlobView {
  /** 32 hex digits */
  id: string;
  /** id of its image */
  image: string;
  /** as `VolumeView.source` */
  source: string;
  format: string;
  /** by what a change of the source is noticed, e.g. `etag:"5f3c"`; null: by nothing */
  identity: string | null;
  /** A change can't go unnoticed. */
  pinned: boolean;
  /** All of it was compared with the digest that pins it; null: there is no digest of what the cache file has. */
  verified: boolean | null;
  /** none: it is read through for volumes that are made so, and nothing of it is kept on disk */
  cache: Settings["cache"];
  /** of the image */
  size: number;
  /** what is fetched at least */
  unitBytes: number;
  /** of the image, here */
  readyBytes: number;
  /** that the cache file takes on disk, as `du` counts them */
  diskBytes: number;
  /** received because somebody waited for them, by readahead, and by hydration, since it was made */
  foregroundBytes: number;
  readaheadBytes: number;
  backgroundBytes: number;
  /** Open volumes and snapshots that read it; 0: it is closed. */
  users: number;
  /** names of volumes that were made from it, clones included */
  volumes: string[];
  /** names of volumes that are detached from the source: they can't do without it */
  detached: string[];
  /** somebody wants it to be kept, whether a volume needs it or not */
  kept: boolean;
  /** when it was opened or closed last; null: unknown */
  usedAt: string | null;
  sourceState: SourceStateView;
  createdAt: string;
}

/** The cache that all volumes share. */
export interface CacheView extends CacheLimits {
  /** versions of images in it */
  blobs: number;
  /** on disk */
  diskBytes: number;
  /** since the process started */
  evictedBytes: number;
}

/** What is left out stays. */
export type CacheChange = Partial<CacheLimits>;

/** What to throw out; nothing named: all that no volume needs. */
export interface EvictRequest {
  /** id */
  blob?: string;
  /** at least, as far as there is so much */
  bytes?: number;
}

/** A source that something was fetched from. What differs between versions is that of the newest. */
export interface ImageView {
  /** 32 hex digits, by source and format */
  id: string;
  /** as `VolumeView.source` */
  source: string;
  format: string;
  size: number;
  /** as in BlobView */
  identity: string | null;
  pinned: boolean;
  /** as in BlobView */
  verified: boolean | null;
  /** ids, the newest version first */
  blobs: string[];
  /** names of volumes that were made from any version */
  volumes: string[];
  /** of all versions */
  readyBytes: number;
  diskBytes: number;
  /** when the newest version was first asked for */
  createdAt: string;
}

/** A name under which a disk is exported. */
export interface ExportView {
  /** 32 hex digits; of the volume or the snapshot when it is their own name */
  id: string;
  name: string;
  protocol: "nbd";
  /** name of the volume that it is, or that it is a snapshot of */
  volume: string;
  /** null: the volume itself */
  snapshot: string | null;
  readOnly: boolean;
  description: string | null;
  /** It is the volume's or snapshot's own name, and comes and goes with it. */
  implicit: boolean;
  /** where clients reach it, one for each listener */
  uris: string[];
  createdAt: string;
}

/** A further name for a volume or a snapshot. */
export interface AddExportRequest {
  name: string;
  /** `VOL` or `VOL@SNAP` */
  target: string;
  /** Default: as the daemon and the target are. */
  readOnly?: boolean;
  description?: string | null;
}

/** Which image, and how it is read. */
export interface SourceRequest {
  /** URL or absolute path */
  source: string;
  /** `auto`: by its first bytes (the default) */
  format?: string;
  /** Fetch all of it before the volume is there; for servers that can't serve ranges. */
  download?: boolean;
  /** Accept a source that offers nothing to notice a change by. */
  unpinned?: boolean;
  /** Read what the image says that it lies on (qcow2's backing files), too. */
  allowBacking?: boolean;
}
