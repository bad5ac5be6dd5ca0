import { availableParallelism } from "node:os";

/** Bounds of the NBD server. Memory that clients can make it use is the sum of what is named here. */

const KiB = 1024;
const MiB = 1024 * KiB;

/** Announced in NBD_INFO_BLOCK_SIZE. */
export const MIN_BLOCK_BYTES = 1;
export const PREFERRED_BLOCK_BYTES = 4096;
export const MAX_PAYLOAD_BYTES = 32 * MiB;

/** Data bytes of a recycled buffer; it also has room for the headers that go before them. */
export const CHUNK_DATA_BYTES = 256 * KiB;
export const CHUNK_BYTES = CHUNK_DATA_BYTES + 4 * KiB;
/** Chunks that are kept for reuse when nobody needs them. */
export const CHUNKS_KEPT = 64;
/**
 * Above this many bytes in use every connection is held to `SCARCE_OUTPUT_BYTES` of queued replies and to one slow
 * operation at a time, so that it keeps moving while clients that never read cannot take the memory of all.
 */
export const SCARCITY_BYTES = 256 * MiB;
export const SCARCE_OUTPUT_BYTES = 256 * KiB;

/** A connection that writes in large requests receives into a buffer of this size (most clients stop at 2 MiB). */
export const LARGE_RECEIVE_BYTES = 2 * MiB + 4 * KiB;
export const LARGE_RECEIVES_KEPT = 8;
/**
 * While a payload is being received, the server looks for more of it for so long before it lets go: its sender needs a
 * few microseconds to fill the socket again. Not where the sender would have to wait for this very processor.
 */
export const RECEIVE_PATIENCE_MS = availableParallelism() > 1 ? 0.02 : 0;
/** Other connections wait no longer than this for one that receives. */
export const RECEIVE_LONGEST_MS = 0.5;
/** Payloads above that, and replies that must not be fragmented, get a buffer of their own out of this, in turn. */
export const PAYLOAD_BUDGET_BYTES = 8 * MAX_PAYLOAD_BYTES;
/** Who holds a part of the budget that others wait for must move so much in each `payloadStallMs`. */
export const PAYLOAD_PROGRESS_BYTES = 1 * MiB;

/** Reads above this are answered in fragments of this size, each sent when the client took the ones before. */
export const FRAGMENT_BYTES = 1 * MiB;
/** A fragment that waits for the device has a buffer of its own; so many are kept for reuse. */
export const FRAGMENT_BUFFER_BYTES = FRAGMENT_BYTES + 4 * KiB;
export const FRAGMENT_BUFFERS_KEPT = 16;
/** Larger operations are not done on the event loop even if the device could: copying 2 MiB takes a good part of 1 ms. */
export const SYNC_BYTES = 2 * MiB;
/** Replies are handed to the kernel when so many bytes are ready, so that the client starts while we go on. */
export const SEND_BYTES = 512 * KiB;
/** Segments of one sendmsg(2). */
export const SEND_SEGMENTS = 64;
/** A connection with more unsent reply bytes than this is not read from until they are below half of it. */
export const OUTPUT_LIMIT_BYTES = 4 * MiB;

/** What one connection may do before the others get their turn. */
export const TURN_REQUESTS = 256;
export const TURN_BYTES = 4 * MiB;

/** Operations of one connection that wait for the device. */
export const INFLIGHT_REQUESTS = 1024;
export const INFLIGHT_BYTES = 64 * MiB;

/** Runs in one block status reply: 32 KiB. */
export const BLOCK_STATUS_EXTENTS = 4096;

/** "Conventions": no string is longer. */
export const MAX_STRING_BYTES = 4096;
/** A longer option is answered with NBD_REP_ERR_TOO_BIG, its data skipped. */
export const MAX_OPTION_BYTES = 64 * KiB;
/** Far more than any client needs; then the connection is dropped. */
export const MAX_OPTIONS = 1000;
/** Data of refused options that is skipped before the client is dropped. */
export const MAX_SKIPPED_BYTES = 32 * MiB;

export interface NbdLimits {
  /** Connections in all; the next ones are refused with a reason. */
  maxConnections: number;
  /** How long the client may take for each step of the handshake. */
  handshakeTimeoutMs: number;
  /** Who holds memory that others wait for, and makes no progress for so long, is cut off. */
  payloadStallMs: number;
}

export const DEFAULT_LIMITS: NbdLimits = {
  maxConnections: 1024,
  handshakeTimeoutMs: 30_000,
  payloadStallMs: 10_000,
};

/** Connections beyond the maximum that are told why; further ones are closed at once. */
export const MAX_REFUSALS = 64;
export const REFUSAL_TIMEOUT_MS = 5_000;
/** After our last byte, how long the client may take to close before its remaining bytes are cut off. */
export const LINGER_MS = 2_000;
/** How long a connection that the device asked to end may take to finish what it started. */
export const CLOSE_GRACE_MS = 5_000;
