/** From the worst to what only developers read. */
export type LogLevel = "error" | "warn" | "info" | "debug";

/**
 * What a message is about, as machines find it: `--log-format json` prints each as a key of its own. A message says
 * everything to people by itself, so text lines leave these out. Never credentials.
 */
export interface LogFields {
  /** what one request to the API caused */
  requestId?: string;
  /** name of the volume; engine and cache know its id only, see `volumeId` */
  volume?: string;
  volumeId?: string;
  blobId?: string;
  /** of the client: `127.0.0.1:5123`, `unix` */
  address?: string;
  /** stable code of the error or the warning */
  code?: string;
  durationMs?: number;
  [further: string]: string | number | boolean | null | undefined;
}

/** Where the daemon's messages go. */
export type Log = (level: LogLevel, message: string, fields?: LogFields) => void;
