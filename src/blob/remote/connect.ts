import { systemClock } from "../../base/clock.ts";
import type { Blob } from "../blob.ts";
import { ManagerClient } from "./manager-client.ts";
import { RemoteBlob } from "./remote-blob.ts";

/** A connection to the blob manager of a cache on this host. It comes back by itself when the manager was restarted. */
export interface BlobManagerConnection {
  /**
   * A blob that the manager caches, by its id.
   * @throws UllageError `not-found`, IoError when the manager stays away
   */
  open(id: string): Promise<Blob & { close(): Promise<void> }>;
  /** Ends it; close the blobs first. */
  close(): Promise<void>;
}

/**
 * Reads the cache of another process: `ullage serve` and `ullage blobd` offer theirs on `<data>/blobd.sock`. Asks for
 * nothing yet: the first `open` waits for the manager.
 * @param options.patienceMs how long a request waits for a manager that is away; default one minute
 */
export function connectBlobManager(
  path: string,
  options: { log?: (level: "info" | "warn", message: string) => void; patienceMs?: number } = {},
): BlobManagerConnection {
  const { log = () => undefined, patienceMs } = options;
  const clock = systemClock;
  const patience = patienceMs === undefined ? {} : { patienceMs };
  const client = new ManagerClient({ path, clock, random: Math.random, log, ...patience });
  return { open: (id) => RemoteBlob.open({ client, clock, id, log }), close: () => client.close() };
}
