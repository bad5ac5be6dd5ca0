/**
 * The metadata store: names, states and references, never data. Every method is one durable step on one entity and may
 * be repeated with the same effect; nothing spans entities, so that the store can later live on other machines. What a
 * crash leaves between two steps is repaired at start (durability rule 17).
 */
export interface MetadataStore {
  /** Why nothing can be changed until the next start; undefined while all is well. */
  readonly readOnlyReason: string | undefined;

  /** Durable when it resolves. The same id again changes nothing. @throws UllageError `name-taken`, `catalog-read-only` */
  insertVolume(volume: VolumeRecord): Promise<void>;
  /** @returns false when there is no such id @throws UllageError `name-taken`, `catalog-read-only` */
  updateVolume(id: string, change: VolumeChange): Promise<boolean>;
  /** A power cut may undo it. Missing is not an error. @throws UllageError `catalog-read-only` */
  noteStanding(id: string, standing: Standing): Promise<void>;
  /** Missing is not an error. */
  deleteVolume(id: string): Promise<void>;
  /** In any state, ordered by id, starting behind `afterId`; at most `limit`. */
  listVolumes(afterId: string, limit: number): Promise<VolumeRecord[]>;

  /** Durable when it resolves. The same id again changes nothing. @throws UllageError `name-taken`, `catalog-read-only` */
  insertSnapshot(snapshot: SnapshotRecord): Promise<void>;
  /** @returns false when there is no such id @throws UllageError `catalog-read-only` */
  updateSnapshot(id: string, change: SnapshotChange): Promise<boolean>;
  /** Missing is not an error. */
  deleteSnapshot(id: string): Promise<void>;
  /** In any state, ordered by id, starting behind `afterId`; at most `limit`. */
  listSnapshots(afterId: string, limit: number): Promise<SnapshotRecord[]>;

  /** Durable when it resolves. The same id again changes nothing. @throws UllageError `name-taken`, `catalog-read-only` */
  insertExport(added: ExportRecord): Promise<void>;
  /** Missing is not an error. */
  deleteExport(id: string): Promise<void>;
  /** Ordered by id, starting behind `afterId`; at most `limit`. */
  listExports(afterId: string, limit: number): Promise<ExportRecord[]>;

  close(): Promise<void>;
}

/**
 * - ready: complete
 * - deleting: no longer a snapshot; what is left of its files is removed when found at start
 */
export type SnapshotState = "ready" | "deleting";

/** A name is only ever taken away. */
export type SnapshotChange = { state: "deleting" } | { name: null };

export interface SnapshotRecord {
  /** 32 hex digits; its frozen map has the same */
  id: string;
  volumeId: string;
  /** unique among the snapshots of the volume; null: only clones need it */
  name: string | null;
  state: SnapshotState;
  /** bytes */
  size: number;
  /** RFC 3339 */
  createdAt: string;
  /** `Idempotency-Key` of the request that made it, with a digest of that request; null as well when its name is gone */
  requestKey: string | null;
  requestDigest: string | null;
}

/** A further name under which a volume or a snapshot is exported. It goes when what it names goes. */
export interface ExportRecord {
  /** 32 hex digits */
  id: string;
  /** unique among exports; that it is no volume's name either is seen to by whoever gives names */
  name: string;
  volumeId: string;
  /** null: the volume itself */
  snapshotId: string | null;
  options: ExportOptions;
  /** RFC 3339 */
  createdAt: string;
  /** `Idempotency-Key` of the request that made it, with a digest of that request */
  requestKey: string | null;
  requestDigest: string | null;
}

export interface ExportOptions {
  readOnly: boolean;
  /** for people */
  description: string | null;
}

/** What a clone began as; names as they were then. */
export interface Origin {
  volumeId: string;
  volume: string;
  /** null: the volume as it was at that moment */
  snapshotId: string | null;
  snapshot: string | null;
}

/**
 * - creating: its files may be incomplete; removed when found at start
 * - ready: complete
 * - deleting: no longer a volume; what is left of its files is removed when found at start
 */
export type RecordState = "creating" | "ready" | "deleting";

export interface VolumeRecord {
  /** 32 hex digits */
  id: string;
  name: string;
  state: RecordState;
  /** bytes; mirrors the volume's own files, which decide */
  size: number;
  /** the image it was made from, as given but without credentials; null for an empty disk */
  source: string | null;
  /** image format of the source */
  format: string | null;
  blobId: string | null;
  settings: Settings;
  hydration: HydrationWish;
  /** RFC 3339 */
  createdAt: string;
  /** `Idempotency-Key` of the request that made it, with a digest of that request */
  requestKey: string | null;
  requestDigest: string | null;
  /** null: it is no clone, or one of a version that did not note it */
  origin: Origin | null;
  /** null: it was never closed, or by a version that did not note it */
  standing: Standing | null;
}

export type VolumeChange = Partial<
  Pick<VolumeRecord, "name" | "state" | "size" | "format" | "blobId" | "settings" | "hydration" | "standing">
>;

/**
 * What a volume was like when it was closed, so that it can be shown without being opened. It only mirrors the volume's
 * files, and is believed while they are as they were then.
 */
export interface Standing {
  /** number of the checkpoint that it was closed with */
  checkpoint: number;
  lostUnflushed: boolean;
  /** from its source */
  detached: boolean;
  /** bytes, as in VolumeView */
  writtenBytes: number;
  fetchedBytes: number;
  /** of what hydration is to bring, bytes that were here, and all */
  readyBytes: number;
  totalBytes: number;
}

/** What a user can set on a volume. */
export interface Settings {
  hydrate: "auto" | "off";
  sync: "normal" | "always";
  remoteAfterPowerLoss: "refuse" | "serve";
  /** none: what is read of the image is not kept on disk. Stays as the volume was made. */
  cache: "shared" | "none";
}

export const defaultSettings: Settings = {
  hydrate: "auto",
  sync: "normal",
  remoteAfterPowerLoss: "refuse",
  cache: "shared",
};

/** How a user steered hydration, so that a restart goes on the same way. */
export interface HydrationWish {
  /** false: `hydrate: off` and never started by hand */
  wanted: boolean;
  paused: boolean;
  /** bytes per second; null: no limit */
  rate: number | null;
  priority: number;
}
