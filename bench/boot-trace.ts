import { readFile } from "node:fs/promises";

/** What a guest read from its disk while it booted; made by record-boot-trace.ts. */
export interface BootTrace {
  description: string;
  /** size of the disk, bytes */
  imageBytes: number;
  reads: TracedRead[];
}

/** ms since the first read, offset and length in bytes */
export type TracedRead = [number, number, number];

export async function loadBootTrace(): Promise<BootTrace> {
  return JSON.parse(await readFile(new URL("traces/boot.json", import.meta.url), "utf8")) as BootTrace;
}
