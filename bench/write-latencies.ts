/** Random writes at full speed, with the slowest write of every millisecond: what clients notice of something short. */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import type { DiskServer } from "./peers.ts";
import { run } from "./process.ts";

export class WriteLatencies {
  /** ms since the epoch, and the slowest write that ended in the millisecond before it, ms */
  readonly #slowest: readonly { at: number; ms: number }[];

  private constructor(slowest: readonly { at: number; ms: number }[]) {
    this.#slowest = slowest;
  }

  /** 4k at QD32 for so long; resolves at its end. */
  static async record(folder: string, server: Pick<DiskServer, "uri">, seconds: number): Promise<WriteLatencies> {
    const log = join(folder, "writes");
    const job = ["--name=writes", "--ioengine=nbd", `--uri=${server.uri}`, "--rw=randwrite", "--bs=4k", "--iodepth=32"];
    const time = ["--time_based", `--runtime=${seconds}`];
    const logged = [`--write_lat_log=${log}`, "--log_avg_msec=1", "--log_max_value=1", "--log_unix_epoch=1"];
    await run("fio", [...job, ...time, ...logged], (seconds + 60) * 1000);
    const text = await readFile(`${log}_lat.1.log`, "utf8");
    for (const kind of ["lat", "slat", "clat"]) await rm(`${log}_${kind}.1.log`, { force: true });
    const lines = text.trim().split("\n");
    return new WriteLatencies(
      lines.map((line) => {
        const [at, nanoseconds] = line.split(",").map(Number);
        return { at, ms: nanoseconds / 1e6 };
      }),
    );
  }

  /** The slowest write that ended between two moments (`Date.now()`), ms; undefined when none did. */
  slowestBetween(from: number, to: number): number | undefined {
    const within = this.#slowest.filter(({ at }) => at >= from && at <= to + 1).map(({ ms }) => ms);
    return within.length === 0 ? undefined : Math.max(...within);
  }
}
