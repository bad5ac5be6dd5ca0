import type { Blob, FetchOptions } from "./blob.ts";
import type { TracedRead } from "./boot-trace.ts";
import { DamagedPieces, fetchAround } from "./damage.ts";

/** Requests under way, and bytes of one: see volume/hydration/hydration.ts, which does the same for what a volume needs. */
const REQUESTS = 16;
const REQUEST_BYTES = 1024 * 1024;

export interface FillOptions {
  signal: AbortSignal;
  room?: (bytes: number) => Promise<void>;
  onProgress?: (bytes: number) => void;
}

/**
 * Fetches everything of a blob that is missing, behind whatever somebody waits for. Durable, and compared with its digest if
 * there is one, when it resolves. What is damaged at the source is left out, and told of when everything else is there.
 * @param options.room asked before every request for one byte more than is under way; ends it by throwing when nothing is
 * @param options.onProgress called with the bytes that are ready
 * @throws SourceError, IoError; what was fetched by then stays
 */
export async function fillBlob(blob: Blob, options: FillOptions): Promise<void> {
  const { signal, onProgress, room } = options;
  const pieces = function* (): Generator<readonly [number, number]> {
    for (let at = 0; at < blob.size; at += REQUEST_BYTES) yield [at, Math.min(REQUEST_BYTES, blob.size - at)];
  };
  await fetchAll(blob, pieces(), { background: true, signal }, room, () => onProgress?.(blob.readyBytes));
  await blob.check?.run(signal);
}

/**
 * Fetches what a trace names, in its order. Durable when it resolves.
 * @param options.room asked before every request for one byte more than is under way; ends it by throwing when nothing is
 * @param options.onProgress called with the bytes of the trace that are done with
 * @throws SourceError, IoError
 */
export async function fillTraced(blob: Blob, reads: readonly TracedRead[], options: FillOptions): Promise<void> {
  const { signal, onProgress, room } = options;
  let done = 0;
  const pieces = function* (): Generator<readonly [number, number]> {
    for (const [, offset, length] of reads) yield [offset, length];
  };
  await fetchAll(blob, pieces(), { soon: true, signal }, room, (length) => onProgress?.((done += length)));
}

/** The first failure ends it, and nothing of it goes on then. */
async function fetchAll(
  blob: Blob,
  pieces: Generator<readonly [number, number]>,
  { signal: outer, ...how }: FetchOptions & { signal: AbortSignal },
  room: FillOptions["room"],
  onDone: (length: number) => void,
): Promise<void> {
  const damage = new DamagedPieces();
  const failed = new AbortController();
  const signal = AbortSignal.any([outer, failed.signal]);
  let underWay = 0;
  let landing = Promise.withResolvers<void>();
  let asking = Promise.resolve();
  /**
   * One asks at a time. What is under way may turn out to be zeros, which take no room; and what lands while somebody asks may
   * have been counted twice.
   */
  const admit = async (length: number): Promise<void> => {
    for (;;) {
      signal.throwIfAborted();
      const asked = underWay;
      try {
        await room?.(asked + 1);
        break;
      } catch (error) {
        if (asked === 0) throw error;
        if (underWay === asked) await landing.promise;
      }
    }
    underWay += length;
  };
  const landed = (length: number): void => {
    underWay -= length;
    landing.resolve();
    landing = Promise.withResolvers();
  };
  const fetchSome = async (): Promise<void> => {
    for (const [offset, length] of pieces) {
      signal.throwIfAborted();
      if (!blob.isReady(offset, length)) {
        const admitted = asking.then(() => admit(length));
        asking = admitted.catch(() => undefined);
        await admitted;
        try {
          damage.note(await fetchAround(blob, offset, length, { ...how, signal }));
        } finally {
          landed(length);
        }
      }
      onDone(length);
    }
  };
  const fetchers = Array.from({ length: REQUESTS }, () => fetchSome().catch((error: unknown) => failed.abort(error)));
  await Promise.all(fetchers);
  failed.signal.throwIfAborted();
  await blob.sync();
  damage.demandNone();
}
