/** Snapshots and clones: how long they take, what writers notice, and what a deep chain costs readers. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Benchmark, type Context, wants } from "../context.ts";
import { makeImage, settle } from "../files.ts";
import { fio, type Measurement } from "../fio.ts";
import { NbdClient } from "../nbd-client.ts";
import { type DiskServer, qemuNbd } from "../peers.ts";
import { run } from "../process.ts";
import { QemuStorageDaemon } from "../qemu-storage-daemon.ts";
import { interleave } from "../rounds.ts";
import { type Table, atLeast, atMost, short } from "../report.ts";
import { median, percentile, timed } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";
import { WriteLatencies } from "../write-latencies.ts";

const mebibyte = 2 ** 20;
const tebibyte = 2 ** 40;
const chunkBytes = 4 * mebibyte;

export const snapshots: Benchmark = {
  name: "snapshots",
  async run(context) {
    const tables = [await timesTable(context), await depthTable(context)];
    if (wants(context, "qemu-nbd qcow2")) tables.push(await qemuTimesTable(context), await qemuDepthTable(context));
    return tables;
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
    const { alone, snapshots: loaded, flushes, gate } = await underLoad(context, ullage);
    const row = (what: string, values: readonly number[]): string[] => [
      what,
      `${short(median(values))} ms`,
      `${short(percentile(values, 0.99))} ms`,
    ];
    const beyondFlush = median(loaded.times) - median(flushes.times);
    return {
      title: "Snapshots and clones: time",
      about:
        `Through the API, from the request to the answer; a volume of ${short(size / tebibyte)} TiB with a tenth of its chunks mixed, nothing dirty. Under load: 4k random ` +
        `writes at QD32 to a volume of 1 GiB, and by turns a snapshot (${loaded.times.length} of them) and an NBD flush, which is the data sync that a snapshot needs as well. How long ` +
        "the write gate was closed for each snapshot is what `ullage_snapshot_gate_seconds` says; the slowest write that ended while a snapshot was under way is what clients notice " +
        "of the gate and of the file system together.",
      columns: ["what", "median", "p99"],
      rows: [
        row("snapshot", calm),
        row("clone of a snapshot", cloned),
        row("snapshot under load", loaded.times),
        row("flush under load", flushes.times),
        row("write gate closed", gate),
        row("slowest write while a snapshot is taken", loaded.slowest),
        row("slowest write while a flush runs", flushes.slowest),
        ["4k randwrite QD32 alone", `${short(alone.p50 / 1000)} ms`, `${short(alone.p99 / 1000)} ms`],
      ],
      targets: [
        atMost("snapshot of 1 TiB with 10 % mixed chunks, nothing dirty", median(calm), 10, "ms"),
        atMost("clone of 1 TiB with 10 % mixed chunks", median(cloned), 10, "ms"),
        atMost("snapshot under load, beyond one data sync", beyondFlush, 10, "ms"),
        atMost("write gate closed under 4k writes at QD32, p99", percentile(gate, 0.99), 20, "ms"),
      ],
    };
  } finally {
    await ullage.stop();
    await rm(data, { recursive: true });
  }
}

/** ms: how long each took, and the slowest write that ended meanwhile. */
interface Noticed {
  times: number[];
  slowest: number[];
}

async function underLoad(
  context: Context,
  ullage: UllageServer,
): Promise<{ alone: Measurement; snapshots: Noticed; flushes: Noticed; gate: number[] }> {
  const disk = ullage.disk("busy", "Ullage");
  const workload = { name: "busy", rw: "randwrite", blockBytes: 4096, queueDepth: 32 } as const;
  const alone = await fio(disk, workload, context.seconds, 1);
  const client = await NbdClient.connect(ullage.nbdSocket);
  await client.go("busy");
  const windows = { snapshots: [] as [number, number][], flushes: [] as [number, number][] };
  const gate: number[] = [];
  const gateSeconds = (): Promise<number> => ullage.metric('ullage_snapshot_gate_seconds_sum{volume="busy"}');
  const writer = { ended: false };
  const load = WriteLatencies.record(context.folder, disk, context.quick ? 3 : 30).finally(() => (writer.ended = true));
  const around = async (windowsOf: [number, number][], work: () => Promise<unknown>): Promise<void> => {
    await sleep(100);
    const from = Date.now();
    await work();
    windowsOf.push([from, Date.now()]);
  };
  await Promise.race([sleep(500), load]);
  for (let n = 0; !writer.ended && n < 500; n++) {
    const before = await gateSeconds();
    await around(windows.snapshots, () => take(ullage, "busy", `busy${n}`));
    gate.push(1000 * ((await gateSeconds()) - before));
    await around(windows.flushes, () => client.flush());
  }
  const latencies = await load;
  client.close();
  const noticed = (all: readonly [number, number][]): Noticed => ({
    times: all.map(([from, to]) => to - from),
    slowest: all.flatMap(([from, to]) => latencies.slowestBetween(from, to) ?? []),
  });
  return { alone, snapshots: noticed(windows.snapshots), flushes: noticed(windows.flushes), gate };
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

async function filledImage(context: Context, bytes: number): Promise<string> {
  const raw = join(context.folder, "filled.raw");
  const file = join(context.folder, "filled.qcow2");
  await makeImage(raw, bytes);
  await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, file]);
  await rm(raw);
  return file;
}

/** The same volume of 1 GiB, full, as qcow2: snapshots inside the file and as files over it, at rest and served. */
async function qemuTimesTable(context: Context): Promise<Table> {
  const times = context.quick ? 3 : 20;
  const file = await filledImage(context, (context.quick ? 64 : 1024) * mebibyte);
  const overlay = (n: number): string => join(context.folder, `overlay${n}.qcow2`);
  const found: Record<string, number[]> = { inside: [], over: [], liveInside: [], liveOver: [] };
  for (let n = 0; n < times; n++) {
    found["inside"].push(await timed(() => run("qemu-img", ["snapshot", "-c", `s${n}`, file])));
    const create = ["create", "-q", "-f", "qcow2", "-b", file, "-F", "qcow2", overlay(n)];
    found["over"].push(await timed(() => run("qemu-img", create)));
    await rm(overlay(n));
  }
  const daemon = await QemuStorageDaemon.start(context.folder, file);
  try {
    for (let n = 0; n < times; n++) {
      const args = { device: "disk", name: `live${n}` };
      found["liveInside"].push(await timed(() => daemon.command("blockdev-snapshot-internal-sync", args)));
    }
    for (let n = 0; n < times; n++) {
      const below = n === 0 ? "disk" : `over${n - 1}`;
      const args = {
        "node-name": below,
        "snapshot-node-name": `over${n}`,
        "snapshot-file": overlay(n),
        format: "qcow2",
      };
      found["liveOver"].push(await timed(() => daemon.command("blockdev-snapshot-sync", args)));
    }
  } finally {
    await daemon.stop();
    for (let n = 0; n < times; n++) await rm(overlay(n), { force: true });
    await rm(file);
  }
  const names: Record<string, string> = {
    inside: "in the file, at rest (qemu-img snapshot -c)",
    over: "a file over it, at rest (qemu-img create -b)",
    liveInside: "in the file, served (blockdev-snapshot-internal-sync)",
    liveOver: "a file over it, served (blockdev-snapshot-sync)",
  };
  return {
    title: "For comparison: snapshots of a qcow2 disk",
    about:
      "A full disk of 1 GiB, nothing dirty; served by qemu-storage-daemon, over its QMP monitor. At rest, the start of qemu-img is part of it. A snapshot in the file is not " +
      "durable by itself and can't be read while the disk is in use.",
    columns: ["what", "median", "p99"],
    rows: Object.entries(found).map(([what, values]) => {
      return [names[what], `${short(median(values))} ms`, `${short(percentile(values, 0.99))} ms`];
    }),
    targets: [],
  };
}

/** Reads through qcow2 files over each other, blocks in twenty of them at most. */
async function qemuDepthTable(context: Context): Promise<Table> {
  const bytes = (context.quick ? 64 : 512) * mebibyte;
  const depths = context.quick ? [1, 20] : [1, 50, 200, 1000];
  const files = [await filledImage(context, bytes)];
  const servers: DiskServer[] = [];
  const failures = new Map<number, string>();
  try {
    for (const depth of depths) {
      for (let n = files.length; n <= depth; n++) {
        const file = join(context.folder, `depth${n}.qcow2`);
        const under = ["-u", "-b", files[n - 1], "-F", "qcow2"];
        await run("qemu-img", ["create", "-q", "-f", "qcow2", ...under, file, String(bytes)]);
        files.push(file);
        if (n % Math.max(1, depth / 20) !== 0) continue;
        const at = Math.floor((n * 5 * mebibyte) % (bytes - 4 * mebibyte));
        await run("qemu-io", ["-f", "qcow2", file, "-c", `write -q ${at} 4M`]).catch((error: Error) => {
          failures.set(depth, error.message.trim().split("\n").at(-1)!);
        });
      }
      try {
        if (!failures.has(depth))
          servers.push({ ...(await qemuNbd(context.folder, files[depth], "qcow2", true)), name: `${depth}` });
      } catch (error) {
        failures.set(depth, (error as Error).message.trim().split("\n").at(-1)!);
      }
    }
    for (const { uri } of servers) await run("nbdcopy", [uri, "null:"]);
    const workload = { name: "depth", rw: "randread", blockBytes: 4096, queueDepth: 32 } as const;
    const medians = await interleave(context, workload, servers);
    const flat = medians.get("1")?.iops;
    return {
      title: "For comparison: reads and the depth of a chain of qcow2 files",
      about:
        "4k random reads at QD32 through qemu-nbd; a full disk below, files over each other above, blocks in twenty of them; all in the page cache.",
      columns: ["files over the disk", "IOPS", "beside one"],
      rows: depths.map((depth) => {
        const found = medians.get(`${depth}`);
        if (found === undefined) return [short(depth), failures.get(depth) ?? "not served", ""];
        return [short(depth), short(found.iops), flat === undefined ? "" : `${(found.iops / flat).toFixed(2)} x`];
      }),
      targets: [],
    };
  } finally {
    for (const server of servers) await server.stop();
    for (const file of files) await rm(file, { force: true });
  }
}
