import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { NbdBackend, type NbdOptions } from "../../src/backend/nbd.ts";
import { parseNbdSource } from "../../src/backend/nbd-address.ts";
import { systemClock } from "../../src/base/clock.ts";
import { pattern } from "./support.ts";

export const MiB = 1024 * 1024;

/** Without RetryBackend; time-outs that a loaded machine keeps. */
export function nbdBackend(uri: string, options: NbdOptions = {}): NbdBackend & AsyncDisposable {
  const backend = new NbdBackend(parseNbdSource(uri), systemClock, options);
  return Object.assign(backend, { [Symbol.asyncDispose]: () => backend.close() });
}

/** A sparse file: `dataBytes` at each of these offsets, nothing in between. */
export function sparseFile(path: string, size: number, dataBytes: number, offsets: readonly number[]): void {
  const file = openSync(path, "w");
  ftruncateSync(file, size);
  for (const offset of offsets) writeSync(file, pattern(dataBytes, offset + 1), 0, dataBytes, offset);
  closeSync(file);
}

export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
