import type { ListenAddress } from "../../export/listen-address.ts";
import { openSession, type OurExport } from "./session.ts";

/** The server ends what the probe began, which is nothing. */
const GOODBYE_MS = 5_000;

/** The helper's export under this name is the same one, looked at anew: with the size that it has now. */
export const exportAsItIsNow = "as-it-is-now";

/** What the server says of an export, over a connection of its own. @throws RefusedError, UllageError as `openSession` */
export async function probeExport(
  address: ListenAddress,
  name: string,
  signal: AbortSignal = new AbortController().signal,
): Promise<OurExport> {
  const { connection, info } = await openSession(address, name, signal);
  const ended = new Promise<void>((resolve) => {
    connection.start({ find: () => undefined, settled: () => undefined, ended: () => resolve() });
  });
  connection.goodbye(GOODBYE_MS);
  await ended;
  return info;
}
