import type { Blob } from "../blob/blob.ts";
import type { FileSystem } from "../base/file-system.ts";
import type { Clock } from "../base/clock.ts";
import type { EngineObserver } from "./engine-observer.ts";
import type { VolumeLimits } from "./limits.ts";

/** How the engine reaches the world; everything is replaced in the crash model. */
export interface VolumeEnvironment {
  fs: FileSystem;
  clock: Clock;
  /** Cryptographically random bytes (ids, generations). */
  randomBytes(length: number): Buffer;
  /** The data directory. */
  dataDir: string;
  /** Where a second copy of the poison mark goes, in case the data disk takes nothing; undefined: nowhere. */
  runtimeDir: string | undefined;
  /** Other bounds than the defaults. */
  limits?: Partial<VolumeLimits>;
  /** Hears of flush rounds and checkpoints, for metrics. */
  observer?: EngineObserver;
  log(level: "info" | "warn" | "error", message: string): void;
}

export interface OpenVolumeOptions {
  id: string;
  name: string;
  settings: VolumeSettings;
  /** Resolves the blob ids in the owner table. */
  openBlob(id: string): Promise<Blob>;
  /** A checkpoint has given up these layers (ids); somebody else may still need them. */
  onLayersUnused?(layers: string[]): void;
  /** `volume reopen`: open although poisoned, by the power-loss rule, and clear `lostUnflushed`. */
  acceptLoss?: boolean;
  /** With `acceptLoss`: the volume was poisoned in this process, even if no mark could be written. */
  distrustCache?: boolean;
}

export interface VolumeSettings {
  /** `always`: every write is durable before it is answered */
  sync: "normal" | "always";
  /** What a volume with remote writers does after a power cut: durability rule 16. */
  remoteAfterPowerLoss: "refuse" | "serve";
}

/**
 * - ok
 * - degraded: serves, but something is wrong (source unreachable)
 * - poisoned: a sync failed; writes and flushes answer EIO until `volume reopen`
 * - lostUnflushed: recovery may have dropped acknowledged writes that clients still rely on; writers are refused
 */
export type VolumeState = "ok" | "degraded" | "poisoned" | "lostUnflushed";

export interface VolumeInfo {
  id: string;
  size: number;
  state: VolumeState;
  /** why, when the state is not `ok` */
  reason: string | undefined;
  lineage: string;
  /** bytes of the blocks that its map has in layers, its own or shared; what they take on disk is another question */
  writtenBytes: number;
  logBytes: number;
  /** bytes of the newest checkpoint's file */
  mapBytes: number;
  connections: { protocol: string; address: string; remote: boolean; writable: boolean }[];
}

/** A run of the block map, for `volume map`. */
export interface MapRun {
  offset: number;
  length: number;
  kind: "local" | "remote" | "written" | "zero";
  /** id of the layer or blob; undefined for zeros */
  owner: string | undefined;
}
