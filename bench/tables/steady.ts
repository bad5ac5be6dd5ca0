/** Steady state: everything is local, in the page cache, and owned by whoever will be written to. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Benchmark, Context } from "../context.ts";
import { wants } from "../context.ts";
import { copyImage, makeImage, settle } from "../files.ts";
import type { Workload } from "../fio.ts";
import { type DiskServer, makeOverlay, nbdkitFile, qemuNbd } from "../peers.ts";
import { run } from "../process.ts";
import type { Table, Target } from "../report.ts";
import { interleave, latencyTarget, measurementColumns, measurementRows, throughputTarget } from "../rounds.ts";
import type { Medians } from "../rounds.ts";
import { UllageServer } from "../ullage.ts";

const kilobyte = 1024;
const megabyte = 2 ** 20;

/** Of the lines below, those that write use Ullage's head-only volume, the others the one with two owners per chunk. */
export const workloads: readonly (Workload & { targets?: (medians: Medians, ours: string) => Target[] })[] = [
  {
    name: "4k randread QD32",
    rw: "randread",
    blockBytes: 4 * kilobyte,
    queueDepth: 32,
    targets: (medians, ours) => [
      ...throughputTarget("4k randread QD32", medians, ours, "nbdkit", 1.6),
      ...throughputTarget("4k randread QD32", medians, ours, "qemu-nbd raw", 3),
    ],
  },
  {
    name: "4k randread QD1",
    rw: "randread",
    blockBytes: 4 * kilobyte,
    queueDepth: 1,
    targets: (medians, ours) => latencyTarget("4k randread QD1", medians, ours, "nbdkit", 1.1),
  },
  {
    name: "4k randwrite QD32",
    rw: "randwrite",
    blockBytes: 4 * kilobyte,
    queueDepth: 32,
    targets: (medians, ours) => [
      ...throughputTarget("4k randwrite QD32", medians, ours, "nbdkit", 1.0),
      ...throughputTarget("4k randwrite QD32", medians, ours, "qemu-nbd raw", 3),
    ],
  },
  { name: "4k randwrite QD1", rw: "randwrite", blockBytes: 4 * kilobyte, queueDepth: 1 },
  {
    name: "1M read QD4",
    rw: "read",
    blockBytes: megabyte,
    queueDepth: 4,
    targets: (medians, ours) => [
      ...throughputTarget("1M read QD4", medians, ours, "nbdkit", 1.2),
      ...throughputTarget("1M read QD4", medians, ours, "qemu-nbd raw", 2),
    ],
  },
  {
    name: "1M write QD4",
    rw: "write",
    blockBytes: megabyte,
    queueDepth: 4,
    targets: (medians, ours) => [
      ...throughputTarget("1M write QD4", medians, ours, "nbdkit", 0.95),
      ...throughputTarget("1M write QD4", medians, ours, "qemu-nbd raw", 2),
    ],
  },
  { name: "64k randrw QD16", rw: "randrw", blockBytes: 64 * kilobyte, queueDepth: 16 },
  {
    name: "4k write+flush QD1",
    rw: "randwrite",
    blockBytes: 4 * kilobyte,
    queueDepth: 1,
    flush: true,
    targets: (medians, ours) => throughputTarget("4k write+flush QD1", medians, ours, "qemu-nbd raw", 0.95),
  },
];

const ourName = "Ullage";

export const steady: Benchmark = {
  name: "steady",
  async run(context) {
    const bytes = context.quick ? 128 * megabyte : 1024 * megabyte;
    const peers = await startPeers(context, bytes);
    const ullage = wants(context, ourName) ? await startUllage(context, bytes) : undefined;
    try {
      const rows: string[][] = [];
      const targets: Target[] = [];
      for (const { targets: targetsOf, ...workload } of workloads) {
        const writes = workload.rw === "randwrite" || workload.rw === "write";
        const own = ullage === undefined ? [] : [ullage.disk(writes ? "head" : "mixed", ourName)];
        const medians = await interleave(context, workload, [...own, ...peers]);
        rows.push(...measurementRows(workload, medians, ourName));
        targets.push(...(targetsOf?.(medians, ourName) ?? []));
      }
      return [table(bytes, context, rows, targets)];
    } finally {
      await ullage?.stop();
      for (const peer of peers) await peer.stop();
    }
  },
};

function table(bytes: number, context: Context, rows: string[][], targets: Target[]): Table {
  const size = `${bytes / megabyte} MiB`;
  return {
    title: "Steady state over unix sockets",
    about:
      `fio's nbd engine, ${context.seconds} s per turn, medians of ${context.rounds} interleaved rounds; disks of ${size} ` +
      "on the same file system, all in the page cache. Reads and the mix: alternate 64 KiB runs were overwritten first, on every " +
      "server (Ullage: two owners in every chunk; qcow2: half in the overlay). Writes: blocks that are allocated already (Ullage: " +
      "a head-only volume). `write+flush`: both together are one operation.",
    columns: measurementColumns,
    rows,
    targets,
  };
}

async function startPeers(context: Context, bytes: number): Promise<DiskServer[]> {
  const { folder } = context;
  const image = join(folder, "steady.raw");
  await makeImage(image, bytes);
  const starts: Record<string, () => Promise<DiskServer>> = {
    nbdkit: async () => nbdkitFile(folder, await copyOf(image, "nbdkit")),
    "qemu-nbd raw": async () => qemuNbd(folder, await copyOf(image, "qemu"), "raw"),
    "qemu-nbd qcow2": async () => {
      const overlay = join(folder, "steady.qcow2");
      await makeOverlay(overlay, image);
      return qemuNbd(folder, overlay, "qcow2");
    },
  };
  const servers: DiskServer[] = [];
  for (const [name, start] of Object.entries(starts)) {
    if (!wants(context, name)) continue;
    const server = await start();
    servers.push(server);
    await overwriteAlternateRuns(server.uri);
    await warm(server.uri);
  }
  return servers;
}

async function startUllage(context: Context, bytes: number): Promise<UllageServer> {
  const data = join(context.folder, "steady-ullage");
  await mkdir(data);
  const ullage = await UllageServer.start(data);
  await ullage.create({ name: "mixed", from: { source: join(context.folder, "steady.raw") } });
  await ullage.detached("mixed");
  await overwriteAlternateRuns(ullage.uri("mixed"));
  await ullage.create({ name: "head", size: bytes });
  await run("nbdcopy", [join(context.folder, "steady.raw"), ullage.uri("head")]);
  for (const name of ["mixed", "head"]) await warm(ullage.uri(name));
  return ullage;
}

async function copyOf(image: string, name: string): Promise<string> {
  const copy = `${image}.${name}`;
  await copyImage(image, copy);
  return copy;
}

async function overwriteAlternateRuns(uri: string): Promise<void> {
  // `write:64k` skips 64 KiB behind every write; the number behind rw is how many writes come between two skips.
  const job = ["--name=overwrite", "--ioengine=nbd", `--uri=${uri}`, "--rw=write:64k", "--bs=64k", "--iodepth=8"];
  await run("fio", [...job, "--end_fsync=1"]);
}

async function warm(uri: string): Promise<void> {
  await run("nbdcopy", [uri, "null:"]);
  await settle();
}
