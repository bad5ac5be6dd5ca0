/** The control plane: a thousand volumes made, looked at, stopped and started again, and what an open dashboard costs. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Benchmark, Context } from "../context.ts";
import { DashboardVisit } from "../dashboard-visit.ts";
import { settle } from "../files.ts";
import { fio, type Workload } from "../fio.ts";
import { NbdClient } from "../nbd-client.ts";
import { residentBytes, run } from "../process.ts";
import { type Table, atMost, short } from "../report.ts";
import { median, percentile, timed } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const mebibyte = 2 ** 20;

export const control: Benchmark = {
  name: "control",
  async run(context) {
    return [await crowdTable(context), await dashboardTable(context)];
  },
};

async function fill(ullage: UllageServer, volume: string, bytes?: number): Promise<void> {
  const job = ["--name=fill", "--ioengine=nbd", `--uri=${ullage.uri(volume)}`, "--rw=write", "--bs=1M", "--iodepth=4"];
  await run("fio", [...job, ...(bytes === undefined ? [] : [`--io_size=${bytes}`])]);
}

/** All volumes in pages of 100, as the dashboard reads them. @returns ms of each page */
async function sweep(ullage: UllageServer): Promise<number[]> {
  const times: number[] = [];
  let cursor: string | null = "";
  while (cursor !== null) {
    const path: string = `/v1/volumes?limit=100${cursor === "" ? "" : `&cursor=${encodeURIComponent(cursor)}`}`;
    let page = { next: null as string | null };
    times.push(await timed(async () => (page = (await ullage.api("GET", path)) as { next: string | null })));
    cursor = page.next;
  }
  return times;
}

/** One block of every volume, so that each has something to lose. */
async function writeToEach(ullage: UllageServer, names: readonly string[]): Promise<void> {
  for (const name of names) {
    const client = await NbdClient.connect(ullage.nbdSocket);
    await client.go(name);
    await client.write(0, Buffer.alloc(4096, 1));
    client.close();
  }
}

async function crowdTable(context: Context): Promise<Table> {
  const clones = context.quick ? 50 : 1000;
  const names = Array.from({ length: clones }, (_, n) => `clone${n}`);
  const data = await mkdtemp(join(context.folder, "crowd-"));
  let ullage = await UllageServer.start(data);
  try {
    await ullage.create({ name: "base", size: 1024 * mebibyte });
    await fill(ullage, "base", 64 * mebibyte);
    await ullage.api("POST", "/v1/volumes/base/snapshots", { name: "s" });
    await settle();
    const before = await residentBytes(ullage.pid);
    const seconds =
      (await timed(async () => {
        const waiting = [...names];
        const next = async (): Promise<void> => {
          for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
            await ullage.create({ name, from: { snapshot: "base@s" } });
          }
        };
        await Promise.all(Array.from({ length: 8 }, next));
      })) / 1000;
    const mebibytes = ((await residentBytes(ullage.pid)) - before) / mebibyte;
    context.log(`${clones} clones: ${short(seconds)} s, ${short(mebibytes)} MiB`);
    await settle();
    const firstLooks = await sweep(ullage);
    const openMebibytes = ((await residentBytes(ullage.pid)) - before) / mebibyte;
    const calls = await callTimes(context, ullage, names);
    const worst = Math.max(...Object.values(calls).map((values) => percentile(values, 0.99)));
    await writeToEach(ullage, names);
    const stopWritten = await timed(() => ullage.stop());
    context.log(`stop with ${clones} volumes written to: ${short(stopWritten)} ms`);
    const starts: number[] = [];
    for (let n = 0; n < Math.max(3, context.rounds); n++) {
      await settle();
      starts.push(
        await timed(async () => {
          ullage = await UllageServer.start(data);
          const client = await NbdClient.connect(ullage.nbdSocket);
          await client.go(names[n]);
          await client.read(0, 4096);
          client.close();
        }),
      );
      context.log(`start with ${clones} volumes, to the first reply: ${short(starts[n])} ms`);
      if (n < 2) await ullage.stop();
    }
    const looksAfterStart = await sweep(ullage);
    const stopRead = await timed(() => ullage.stop());
    context.log(`stop with ${clones} volumes looked at: ${short(stopRead)} ms`);
    const row = (what: string, values: readonly number[]): string[] => {
      return [what, `${short(median(values))} ms`, `${short(percentile(values, 0.99))} ms`];
    };
    return {
      title: "A thousand volumes",
      about:
        `${clones} clones of one snapshot, made eight at a time, in one daemon; then single calls of the API, one after the other; a write to each of ` +
        "them, and a stop; starts, from the start of the process to the first answered read of a volume; a look at all of them and another stop.",
      columns: ["what", "median or figure", "p99"],
      rows: [
        ["all clones made", `${short(seconds)} s`, ""],
        ["memory above base", `${short(mebibytes)} MiB`, ""],
        ["memory above base, all looked at", `${short(openMebibytes)} MiB`, ""],
        row("first look at 100 of them", firstLooks),
        ...Object.entries(calls).map(([what, values]) => row(what, values)),
        ["stop, all written to", `${short(stopWritten)} ms`, ""],
        row("start, to the first reply", starts),
        row("first look at 100 of them after a start", looksAfterStart),
        ["stop, all looked at", `${short(stopRead)} ms`, ""],
      ],
      targets: [
        atMost("1,000 clones of one snapshot", seconds, 10, "s"),
        atMost("1,000 clones in memory", mebibytes, 150, "MiB"),
        atMost("API create, list and show with 1,000 volumes, p99", worst, 10, "ms"),
        atMost("start with 1,000 volumes, to the first reply", median(starts), 500, "ms"),
        atMost("stop with 1,000 volumes that were written to", stopWritten / 1000, 5, "s"),
        atMost("stop with 1,000 volumes that were looked at", stopRead / 1000, 2, "s"),
      ],
    };
  } finally {
    await ullage.kill();
    await rm(data, { recursive: true });
  }
}

async function callTimes(
  context: Context,
  ullage: UllageServer,
  names: readonly string[],
): Promise<Record<string, number[]>> {
  const calls: Record<string, number[]> = { list: [], show: [], create: [] };
  for (let n = 0; n < (context.quick ? 20 : 200); n++) {
    calls["list"].push(await timed(() => ullage.api("GET", "/v1/volumes?limit=100")));
    calls["show"].push(await timed(() => ullage.api("GET", `/v1/volumes/${names[(n * 7) % names.length]}`)));
    calls["create"].push(await timed(() => ullage.create({ name: `more${n}`, size: mebibyte })));
  }
  return {
    "list of 100": calls["list"],
    "show of one": calls["show"],
    "create of one": calls["create"],
  };
}

interface Delay {
  p50Ms: number;
  p99Ms: number;
  maxMs: number;
}

async function dashboardTable(context: Context): Promise<Table> {
  const bytes = (context.quick ? 64 : 1024) * mebibyte;
  const others = context.quick ? 10 : 100;
  const seconds = context.quick ? 2 : Math.max(15, 3 * context.seconds);
  const data = await mkdtemp(join(context.folder, "dashboard-"));
  let ullage = await UllageServer.start(data);
  try {
    await ullage.create({ name: "busy", size: bytes });
    await fill(ullage, "busy");
    await ullage.api("POST", "/v1/volumes/busy/snapshots", { name: "s" });
    for (let n = 0; n < others; n++) await ullage.create({ name: `idle${n}`, size: mebibyte });
    await ullage.stop();
    const workloads: Workload[] = [
      { name: "4k randrw QD32", rw: "randrw", blockBytes: 4096, queueDepth: 32 },
      { name: "1M write QD4", rw: "write", blockBytes: mebibyte, queueDepth: 4 },
    ];
    const rows: string[][] = [];
    let worst = 0;
    for (const workload of workloads) {
      for (const visited of [false, true]) {
        await settle();
        // A fresh process each time: the delay it tells is since its start.
        ullage = await UllageServer.start(data);
        const visit = visited ? await DashboardVisit.begin(ullage, "busy", bytes) : undefined;
        const { iops, megabytesPerSecond, othersCpus } = await fio(ullage.disk("busy", "Ullage"), workload, seconds, 1);
        const { eventLoopDelay: delay } = (await ullage.api("GET", "/v1/stats")) as { eventLoopDelay: Delay };
        await visit?.end();
        await ullage.stop();
        if (visited) worst = Math.max(worst, delay.p99Ms);
        const dashboard = visited ? `open, ${visit!.answers} answers` : "closed";
        context.log(`${workload.name}, dashboard ${dashboard}: delay p99 ${short(delay.p99Ms)} ms`);
        const speed = workload.blockBytes >= mebibyte ? `${short(megabytesPerSecond)} MB/s` : short(iops);
        const delays = [delay.p50Ms, delay.p99Ms, delay.maxMs].map((ms) => `${short(ms)} ms`);
        rows.push([workload.name, dashboard, speed, ...delays, othersCpus.toFixed(2)]);
      }
    }
    return {
      title: "The event loop while the dashboard is open",
      about:
        `A volume with a snapshot at full speed for ${seconds} s, ${others} other volumes beside it; the dashboard's requests as its page makes them, the stream of events included, ` +
        "without a browser, which would share the CPUs. The delay is what `/v1/stats` tells of the process from its start on.",
      columns: ["workload", "dashboard", "IOPS or MB/s", "delay p50", "delay p99", "delay max", "others' CPUs"],
      rows,
      targets: [atMost("event-loop delay at full speed with the dashboard open, p99", worst, 5, "ms")],
    };
  } finally {
    await ullage.kill();
    await rm(data, { recursive: true });
  }
}
