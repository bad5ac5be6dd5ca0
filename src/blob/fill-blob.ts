import type { Blob } from "./blob.ts";

/** Requests under way, and bytes of one: see volume/hydration.ts, which does the same for what a volume needs. */
const REQUESTS = 16;
const REQUEST_BYTES = 1024 * 1024;

/**
 * Fetches everything of a blob that is missing, behind whatever somebody waits for. Durable when it resolves.
 * @param options.onProgress called with the bytes that are ready
 * @throws SourceError, IoError; what was fetched by then stays
 */
export async function fillBlob(
  blob: Blob,
  options: { signal: AbortSignal; onProgress?: (readyBytes: number) => void },
): Promise<void> {
  const { signal, onProgress } = options;
  let next = 0;
  const fetchNext = async (): Promise<void> => {
    while (next < blob.size) {
      const offset = next;
      const length = Math.min(REQUEST_BYTES, blob.size - offset);
      next += length;
      if (blob.isReady(offset, length)) continue;
      await blob.fetch(offset, length, { background: true, signal });
      onProgress?.(blob.readyBytes);
    }
  };
  await Promise.all(Array.from({ length: REQUESTS }, fetchNext));
  await blob.sync();
}
