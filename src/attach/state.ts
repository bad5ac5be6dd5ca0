import type { ListenAddress } from "../export/listen-address.ts";
import type { ProcessIdentity } from "./processes.ts";
import type { ClientState } from "./nbd-client/client.ts";

/** What brings a volume to this host: the kernel's own NBD client, or nbdfuse and, for a device, a loop device. */
export type Via = "kernel" | "fuse";

/** What `attach` was asked for. */
export interface AttachRecord {
  /** as the user called it: the volume's name at that time */
  name: string;
  /** what the daemon is asked for: by the volume's id, which outlives a rename */
  exportName: string;
  /** the daemon's data directory */
  dataDirectory: string;
  /** of the daemon's NBD server */
  address: ListenAddress;
  readOnly: boolean;
  timeoutMs: number;
  via: Via;
  /** RFC 3339 */
  since: string;
}

/** How the helper is doing. */
export interface HelperStatus {
  helper: ProcessIdentity;
  /** null: not started, or not used */
  nbdfuse: ProcessIdentity | null;
  /** somebody was told that it is there: requests may have come */
  served: boolean;
  state: ClientState;
  /** why it is not `connected`; "" when it is */
  reason: string;
  /** RFC 3339, of the state */
  since: string;
  /** bytes */
  size: number;
  /** of the export, whatever was asked for */
  readOnly: boolean;
  /** requests that were answered with EIO because the daemon was away */
  failures: number;
  /** at its end: why the last flush failed; null: it did not */
  lastFlush: string | null;
}

/** What the helper tells the `attach` that started it, once. */
export type HelperMessage = { ready: true } | { code: string; message: string; hint: string | undefined };

/**
 * - attached: requests are served
 * - reconnecting, failing, lost: see ClientState
 * - broken: the helper, nbdfuse or the kernel's connection is gone; only `detach` is left
 */
export type AttachmentState = "attached" | "reconnecting" | "failing" | "lost" | "broken";

/** An attachment as users see it. */
export interface AttachmentView {
  /** that it was made under; the volume may have another one by now */
  name: string;
  /** what the daemon is asked for, see AttachRecord */
  exportName: string;
  state: AttachmentState;
  /** why it is not `attached` */
  reason: string | null;
  via: Via;
  /** null: none; the volume is the file */
  device: string | null;
  /** nbdfuse's; null: the kernel's NBD client has none */
  file: string | null;
  /** where the device, or a partition of it, is mounted */
  mounts: string[];
  /** bytes */
  size: number;
  readOnly: boolean;
  since: string;
  /** of the daemon */
  dataDirectory: string;
  helperPid: number | null;
}
