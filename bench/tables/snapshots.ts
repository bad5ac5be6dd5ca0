/** Snapshots and clones: how long they take, what writers notice, and what a deep chain costs readers. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Benchmark, Context } from "../context.ts";
import { settle } from "../files.ts";
import { fio } from "../fio.ts";
import { run } from "../process.ts";
import { type Table, atLeast, atMost, short } from "../report.ts";
import { median, percentile, timed } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const mebibyte = 2 ** 20;
const tebibyte = 2 ** 40;
const chunkBytes = 4 * mebibyte;

export const snapshots: Benchmark = {
  name: "snapshots",
  async run(context) {
    return [await timesTable(context), await depthTable(context)];
  },
};

const take = (ullage: UllageServer, volume: string, name: string): Promise<unknown> =>
  ullage.api("POST", `/v1/volumes/${volume}/snapshots`, { name });

async function timesTable(context: Context): Promise<Table> {
  const size = context.quick ? tebibyte / 64 : tebibyte;
  const times = context.quick ? 5 : 30;
  const data = await mkdtemp(join(context.folder, "snapshots-"));
  const ullage = await UllageServer.start(data);
  try {
    await ullage.create({ name: "big", size });
    await writeIntoEachTenthChunk(ullage.uri("big"), size);
    await ullage.api("POST", "/v1/volumes/big/snapshots", { name: "warm" });
    const calm: number[] = [];
    const cloned: number[] = [];
    for (let n = 0; n < times; n++) {
      calm.push(await timed(() => take(ullage, "big", `calm${n}`)));
      cloned.push(
        await timed(() => ullage.api("POST", "/v1/volumes", { name: `c${n}`, from: { snapshot: `big@calm${n}` } })),
      );
    }
    await ullage.create({ name: "busy", size: 1024 * mebibyte });
    await run("fio", [
      "--name=fill",
      "--ioengine=nbd",
      `--uri=${ullage.uri("busy")}`,
      "--rw=write",
      "--bs=1M",
      "--iodepth=4",
    ]);
    await settle();
    const workload = { name: "busy", rw: "randwrite", blockBytes: 4096, queueDepth: 32 } as const;
    const alone = await fio(ullage.disk("busy", "Ullage"), workload, context.seconds, 1);
    const loaded: number[] = [];
    const writer = { ended: false };
    const load = fio(ullage.disk("busy", "Ullage"), workload, context.seconds, 2).finally(() => (writer.ended = true));
    for (let n = 0; !writer.ended && n < 500; n++) {
      loaded.push(await timed(() => take(ullage, "busy", `busy${n}`)));
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const under = await load;
    const row = (what: string, values: readonly number[]): string[] => [
      what,
      `${short(median(values))} ms`,
      `${short(percentile(values, 0.99))} ms`,
    ];
    return {
      title: "Snapshots and clones: time",
      about:
        `Through the API, from the request to the answer; a volume of ${short(size / tebibyte)} TiB with a tenth of its chunks mixed, nothing dirty; under load: 4k ` +
        "random writes at QD32 to a volume of 1 GiB, a snapshot every 100 ms, each with one data sync. The last row is what the writer saw.",
      columns: ["what", "median", "p99"],
      rows: [
        row("snapshot", calm),
        row("clone of a snapshot", cloned),
        row("snapshot under load", loaded),
        ["4k randwrite QD32 alone", `${short(alone.p50 / 1000)} ms`, `${short(alone.p99 / 1000)} ms`],
        ["4k randwrite QD32 with snapshots", `${short(under.p50 / 1000)} ms`, `${short(under.p99 / 1000)} ms`],
      ],
      targets: [
        atMost("snapshot of 1 TiB with 10 % mixed chunks, nothing dirty", median(calm), 10, "ms"),
        atMost("clone of 1 TiB with 10 % mixed chunks", median(cloned), 10, "ms"),
        atMost("4k writes at QD32 while snapshots are taken, p99", under.p99 / 1000, 20, "ms"),
      ],
    };
  } finally {
    await ullage.stop();
    await rm(data, { recursive: true });
  }
}

/** One block in the middle of every tenth chunk. */
async function writeIntoEachTenthChunk(uri: string, size: number): Promise<void> {
  const stride = 10 * chunkBytes;
  const job = ["--name=chunks", "--ioengine=nbd", `--uri=${uri}`, `--rw=write:${stride - 4096}`, "--bs=4k"];
  const where = [`--offset=${mebibyte}`, `--io_size=${Math.floor(size / stride) * 4096}`];
  await run("fio", [...job, ...where, "--iodepth=32", "--end_fsync=1"]);
}

async function depthTable(context: Context): Promise<Table> {
  const depth = context.quick ? 20 : 1000;
  const bytes = (context.quick ? 64 : 512) * mebibyte;
  const data = await mkdtemp(join(context.folder, "depth-"));
  const ullage = await UllageServer.start(data);
  try {
    for (const name of ["flat", "deep"]) {
      await ullage.create({ name, size: bytes });
      const fill = [
        "--name=fill",
        "--ioengine=nbd",
        `--uri=${ullage.uri(name)}`,
        "--rw=write",
        "--bs=1M",
        "--iodepth=4",
      ];
      await run("fio", fill);
    }
    for (let n = 0; n < depth; n++) {
      await take(ullage, "deep", `s${n}`);
      // Some blocks in every layer, so that reads really come from all of them.
      const job = ["--name=some", "--ioengine=nbd", `--uri=${ullage.uri("deep")}`, "--rw=randwrite", "--bs=64k"];
      if (n % 10 === 0) await run("fio", [...job, "--io_size=4M", `--randseed=${n + 1}`]);
    }
    for (const name of ["flat", "deep"]) await run("nbdcopy", [ullage.uri(name), "null:"]);
    await settle();
    const found = new Map<string, number[]>([
      ["flat", []],
      ["deep", []],
    ]);
    const workload = { name: "depth", rw: "randread", blockBytes: 4096, queueDepth: 32 } as const;
    for (let round = 0; round < Math.max(3, context.rounds); round++) {
      for (const [name, all] of found) {
        all.push((await fio(ullage.disk(name, name), workload, context.seconds, round + 1)).iops);
      }
    }
    const [flat, deep] = [...found.values()].map((all) => median(all));
    return {
      title: "Reads and the depth of the chain",
      about: `4k random reads at QD32 of a volume without snapshots, and of one with ${depth} of them and blocks in a tenth of their layers; all in the page cache.`,
      columns: ["snapshots", "IOPS"],
      rows: [
        ["0", short(flat)],
        [short(depth), short(deep)],
      ],
      targets: [atLeast("4k randread QD32, 1,000 snapshots deep, beside none", deep / flat, 0.95)],
    };
  } finally {
    await ullage.stop();
    await rm(data, { recursive: true });
  }
}
