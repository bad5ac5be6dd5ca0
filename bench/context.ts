import type { Table } from "./report.ts";

/** What every table gets to know. */
export interface Context {
  /** An empty folder on a disk file system, for images and data directories; removed at the end. */
  folder: string;
  /** Rounds of which the median counts. */
  rounds: number;
  /** Of one fio job, seconds. */
  seconds: number;
  /** Small files and one round: shows that everything runs; the figures mean nothing. */
  quick: boolean;
  /** Servers to measure, by the beginning of their name; all when absent. */
  servers: readonly string[] | undefined;
  log(line: string): void;
}

export interface Benchmark {
  /** As `--only` takes it. */
  name: string;
  run(context: Context): Promise<Table[]>;
}

export function wants(context: Context, server: string): boolean {
  return context.servers === undefined || context.servers.some((name) => server.startsWith(name));
}
