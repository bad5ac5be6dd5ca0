/**
 * Ullage as a library: a data directory is opened in this process, without a daemon. See `Ullage`.
 *
 * One process at a time has a data directory; a daemon's is in use until it stops. Everything that is flushed is durable
 * as docs/DURABILITY.md says, and a process that is killed loses nothing that was answered. libuv's thread pool carries
 * the reads that miss the page cache and the syncs: start the process with UV_THREADPOOL_SIZE=18 (a sync never takes the
 * last two threads).
 *
 * Offsets, lengths and sizes are bytes, as Numbers below 2^53. Errors that Ullage raises on purpose are `UllageError`s
 * with a stable `code`.
 */
export { Ullage, type UllageOptions } from "./daemon/ullage.ts";
export type { CreateOptions } from "./daemon/volumes/volumes.ts";
export type { RequestKey } from "./daemon/request-key.ts";
export type { MadeVolume } from "./daemon/volumes/volume-jobs.ts";
export type { ContentFormat, ContentReader, DataRuns, VolumeContent } from "./daemon/volumes/contents.ts";
export type { ImportContent } from "./daemon/volumes/volume-import.ts";
export type { Piece } from "./image/sparse-stream.ts";
export type { Run } from "./base/zero-blocks.ts";
export type { JobProgress, Jobs, JobState, JobView } from "./daemon/jobs.ts";
export type { ConnectionEventView, Events, UllageEvent } from "./daemon/events.ts";
export type { Measured } from "./daemon/health/measured.ts";
export type { VolumeTraffic } from "./daemon/volumes/volume-traffic.ts";
export type { ListenTarget, NbdOptions } from "./daemon/exports/nbd-listeners.ts";
export type * from "./daemon/views.ts";
export { volumeViewStates } from "./daemon/views.ts";
export type { HealthCheck, HealthStatus, Warning } from "./daemon/health/health.ts";
export type { Log, LogFields, LogLevel } from "./daemon/log.ts";
export type { MetadataStore, Settings } from "./catalog/metadata-store.ts";
export type { CacheControl } from "./daemon/cache/cache-control.ts";
export type { CacheLimits } from "./blob/cache-space.ts";
export { type BlobManagerConnection, connectBlobManager } from "./blob/remote/connect.ts";
export type { Blob, BlobStats, FetchOptions } from "./blob/blob.ts";
export type { DamagedRange } from "./blob/damage.ts";
export type { Resolver } from "./backend/source-guard.ts";
export type { SourceSettings } from "./backend/source-settings.ts";

export { type Attachment, type BlockDevice, type Client, type Extent, ExtentState } from "./export/block-device.ts";
export {
  formatListenAddress,
  parseListenAddress,
  type ListenAddress,
  type SocketAccess,
} from "./export/listen-address.ts";
export { loadTls, type TlsMode, type TlsSettings } from "./export/nbd/tls.ts";

export { CorruptionError, describeError, errnoOf, IoError, SourceError, UllageError } from "./base/errors.ts";
export type { Clock } from "./base/clock.ts";
export type { FileSystem, ReadableFile } from "./base/file-system.ts";
export { IoBuffer } from "./base/io-buffer.ts";
export { formatSize, parseSize } from "./base/units.ts";
