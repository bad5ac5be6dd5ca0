import { UllageError } from "../../base/errors.ts";
import type { ListenAddress } from "../../export/listen-address.ts";
import { ClientConnection } from "../../nbd/client-connection.ts";
import type { ExportInfo } from "../../nbd/export-info.ts";
import { Info } from "../../nbd/protocol.ts";

/** Opening a volume that was not open yet is part of the handshake. */
const HANDSHAKE_TIMEOUT_MS = 30_000;

/** An export of Ullage's own server. */
export type OurExport = ExportInfo & { lineage: string };

export interface OurSession {
  connection: ClientConnection;
  info: OurExport;
}

/** @throws RefusedError, UllageError `nbd-unreachable`, `nbd-timeout`, `nbd-handshake` */
export async function openSession(
  address: ListenAddress,
  exportName: string,
  signal: AbortSignal,
): Promise<OurSession> {
  const target = address.kind === "unix" ? { path: address.path } : { host: address.host, port: address.port };
  const wish = { exportName, infos: [Info.lineage] };
  const connection = await ClientConnection.open({ target, wish, timeoutMs: HANDSHAKE_TIMEOUT_MS, signal });
  const { info, structured } = connection.negotiated;
  const { lineage } = info;
  if (structured && lineage !== undefined) return { connection, info: { ...info, lineage } };
  connection.destroy("it is no Ullage");
  const missing = structured ? "tells no lineage" : "sends no structured replies";
  throw new UllageError("nbd-handshake", `the NBD server ${missing}: it is no Ullage, or an older one`, {
    hint: "attach needs a daemon of the same release",
  });
}
