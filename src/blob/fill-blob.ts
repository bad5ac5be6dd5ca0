import type { Blob, FetchOptions } from "./blob.ts";
import type { TracedRead } from "./boot-trace.ts";

/** Requests under way, and bytes of one: see volume/hydration/hydration.ts, which does the same for what a volume needs. */
const REQUESTS = 16;
const REQUEST_BYTES = 1024 * 1024;

/**
 * Fetches everything of a blob that is missing, behind whatever somebody waits for. Durable, and compared with its digest if
 * there is one, when it resolves.
 * @param options.onProgress called with the bytes that are ready
 * @throws SourceError, IoError; what was fetched by then stays
 */
export async function fillBlob(
  blob: Blob,
  options: { signal: AbortSignal; onProgress?: (readyBytes: number) => void },
): Promise<void> {
  const { signal, onProgress } = options;
  const pieces = function* (): Generator<readonly [number, number]> {
    for (let at = 0; at < blob.size; at += REQUEST_BYTES) yield [at, Math.min(REQUEST_BYTES, blob.size - at)];
  };
  await fetchAll(blob, pieces(), { background: true, signal }, () => onProgress?.(blob.readyBytes));
  await blob.check?.run(signal);
}

/**
 * Fetches what a trace names, in its order. Durable when it resolves.
 * @param options.onProgress called with the bytes of the trace that are done with
 * @throws SourceError, IoError
 */
export async function fillTraced(
  blob: Blob,
  reads: readonly TracedRead[],
  options: { signal: AbortSignal; onProgress?: (bytes: number) => void },
): Promise<void> {
  const { signal, onProgress } = options;
  let done = 0;
  const pieces = function* (): Generator<readonly [number, number]> {
    for (const [, offset, length] of reads) yield [offset, length];
  };
  await fetchAll(blob, pieces(), { soon: true, signal }, (length) => onProgress?.((done += length)));
}

async function fetchAll(
  blob: Blob,
  pieces: Generator<readonly [number, number]>,
  options: FetchOptions,
  onDone: (length: number) => void,
): Promise<void> {
  const fetchSome = async (): Promise<void> => {
    for (const [offset, length] of pieces) {
      if (!blob.isReady(offset, length)) await blob.fetch(offset, length, options);
      onDone(length);
    }
  };
  await Promise.all(Array.from({ length: REQUESTS }, fetchSome));
  await blob.sync();
}
