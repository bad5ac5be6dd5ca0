/** Size: reopening after a crash with a long log, memory per volume, and mkfs on a disk of terabytes. */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Benchmark, Context } from "../context.ts";
import { wants } from "../context.ts";
import { settle } from "../files.ts";
import { mountDisk } from "../mounted-disk.ts";
import { NbdClient } from "../nbd-client.ts";
import { type DiskServer, qemuNbd } from "../peers.ts";
import { residentBytes, run } from "../process.ts";
import { type Table, type Target, atMost, short } from "../report.ts";
import { median } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const mebibyte = 2 ** 20;
const tebibyte = 2 ** 40;
const chunkBytes = 4 * mebibyte;

export const scale: Benchmark = {
  name: "scale",
  async run(context) {
    const tables: Table[] = [];
    if (wants(context, "Ullage")) tables.push(await reopenTable(context), await memoryTable(context));
    tables.push(await mkfsTable(context));
    return tables;
  },
};

/** ms */
interface Reopening {
  /** from the start of the process until it listens */
  start: number;
  /** from the start of the process to the first reply */
  firstReply: number;
}

/**
 * kill -9 with many records in the intent log: how long until the volume answers again. A daemon opens its volumes by
 * itself once it listens, so a clock that starts at the client's connection would miss the recovery that it is for. The
 * whole way counts, less the shortest time in which any of these daemons began to listen: rather too much than too little.
 */
async function reopenTable(context: Context): Promise<Table> {
  const records = context.quick ? 20_000 : 1_000_000;
  const full: Reopening[] = [];
  const empty: Reopening[] = [];
  for (let round = 0; round < context.rounds; round++) {
    empty.push(await reopen(context, records, 0));
    full.push(await reopen(context, records, records));
  }
  const middle = (all: readonly Reopening[], key: keyof Reopening): number =>
    median(all.map((each) => each[key])) / 1000;
  const shortestStart = Math.min(...[...empty, ...full].map(({ start }) => start)) / 1000;
  const seconds = middle(full, "firstReply") - shortestStart;
  const row = (count: number, all: readonly Reopening[]): string[] => {
    return [count.toLocaleString("en"), short(middle(all, "start")), short(middle(all, "firstReply"))];
  };
  return {
    title: "Reopen after kill -9",
    about:
      `Writes of 4 KiB, each block of the volume once in random order, one record each; then kill -9 and a new daemon; medians of ${context.rounds} rounds, each with a fresh ` +
      "volume. The promise is judged by the first reply less the shortest time in which any of these daemons began to listen.",
    columns: ["records", "process start until it listens, s", "process start to first reply, s"],
    rows: [row(0, empty), row(records, full)],
    targets: [atMost("reopen after kill -9 with 1,000,000 records, to the first reply", seconds, 1, "s")],
  };
}

async function reopen(context: Context, capacity: number, records: number): Promise<Reopening> {
  const data = await mkdtemp(join(context.folder, "reopen-"));
  const writer = await UllageServer.start(data);
  await writer.create({ name: "disk", size: capacity * 4096 });
  if (records > 0) await writeEachBlock(writer.uri("disk"), records);
  const { writtenBytes } = (await writer.api("GET", "/v1/volumes/disk")) as { writtenBytes: number };
  if (writtenBytes < records * 4096) throw new Error(`${writtenBytes} bytes written, expected ${records} blocks`);
  await writer.kill();
  await settle();
  const begin = performance.now();
  const ullage = await UllageServer.start(data);
  const start = performance.now() - begin;
  const client = await openVolume(ullage, "disk");
  const firstReply = performance.now() - begin;
  context.log(
    `reopen with ${records} records: listens after ${short(start)} ms, replies after ${short(firstReply)} ms`,
  );
  client.close();
  await ullage.stop();
  await rm(data, { recursive: true });
  return { start, firstReply };
}

async function memoryTable(context: Context): Promise<Table> {
  const size = context.quick ? tebibyte / 64 : tebibyte;
  const rows: string[][] = [];
  const fresh: number[] = [];
  const control: number[] = [];
  for (let round = 0; round < context.rounds; round++) {
    fresh.push(await memoryOf(context, size, async () => {}));
    control.push(await memoryOf(context, chunkBytes, async () => {}));
  }
  rows.push(["fresh", short(median(fresh) / mebibyte)]);
  rows.push(["for comparison: a fresh one of 4 MiB", short(median(control) / mebibyte)]);
  // One block written in each chunk: every entry of the owner map is an array.
  const mixed = await memoryOf(context, size, (uri) => writeIntoEachChunk(uri, size));
  rows.push(["one block written in each of its chunks", short(mixed / mebibyte)]);
  return {
    title: `Memory of a volume of ${size === tebibyte ? "1 TiB" : `${size / 2 ** 30} GiB`}`,
    about: `Resident memory of the daemon with the volume open, above the same daemon with a volume of 4 MiB open; fresh: median of ${context.rounds} daemons.`,
    columns: ["volume", "MiB above base"],
    rows,
    targets: [atMost("a fresh 1 TiB volume in memory, above base", median(fresh) / mebibyte, 2, "MiB")],
  };
}

/** Bytes that opening and filling the volume adds to a daemon that has already served a small one. */
async function memoryOf(context: Context, size: number, fill: (uri: string) => Promise<void>): Promise<number> {
  const data = await mkdtemp(join(context.folder, "memory-"));
  const ullage = await UllageServer.start(data);
  try {
    await ullage.create({ name: "small", size: chunkBytes });
    const small = await openVolume(ullage, "small");
    const before = await settledMemory(ullage.pid);
    await ullage.create({ name: "big", size });
    const big = await openVolume(ullage, "big");
    await fill(ullage.uri("big"));
    const after = await settledMemory(ullage.pid);
    big.close();
    small.close();
    return after - before;
  } finally {
    await ullage.stop();
    await rm(data, { recursive: true });
  }
}

async function openVolume(ullage: UllageServer, name: string): Promise<NbdClient> {
  const client = await NbdClient.connect(ullage.nbdSocket);
  await client.go(name);
  await client.read(0, 4096);
  return client;
}

/** The collector gives memory back when nothing happens; the smallest of a few looks is what is needed. */
async function settledMemory(pid: number): Promise<number> {
  const looks: number[] = [];
  for (let look = 0; look < 5; look++) {
    await sleep(500);
    looks.push(await residentBytes(pid));
  }
  return Math.min(...looks);
}

/** Random order keeps writes from being neighbours in time; no block stays unwritten, so that the file has few extents. */
async function writeEachBlock(uri: string, blocks: number): Promise<void> {
  const job = ["--name=each", "--ioengine=nbd", `--uri=${uri}`, "--rw=randwrite", "--bs=4k", "--iodepth=32"];
  await run("fio", [...job, `--io_size=${blocks * 4096}`, "--end_fsync=1"]);
}

/**
 * One block in every chunk: 8 KiB across every other border between chunks. Each write is an extent of the layer's file,
 * and freeing one takes a millisecond on a file system that is mounted with `discard`; this way there are half as many.
 */
async function writeIntoEachChunk(uri: string, size: number): Promise<void> {
  const [bytes, stride] = [8192, 2 * chunkBytes];
  const job = ["--name=chunks", "--ioengine=nbd", `--uri=${uri}`, `--rw=write:${stride - bytes}`, `--bs=${bytes}`];
  const where = [`--offset=${chunkBytes - 4096}`, `--io_size=${(size / stride) * bytes}`];
  await run("fio", [...job, ...where, "--iodepth=32", "--end_fsync=1"]);
}

async function mkfsTable(context: Context): Promise<Table> {
  const size = context.quick ? tebibyte / 64 : 2 * tebibyte;
  const measured = new Map<string, number[]>();
  const note = (name: string, seconds: number): void => {
    measured.set(name, [...(measured.get(name) ?? []), seconds]);
    context.log(`mkfs.ext4, ${name}: ${short(seconds)} s`);
  };
  for (let round = 0; round < context.rounds; round++) {
    if (wants(context, "Ullage")) {
      const data = await mkdtemp(join(context.folder, "mkfs-"));
      const ullage = await UllageServer.start(data);
      await ullage.create({ name: "disk", size });
      note("Ullage", await mkfsSeconds(context, ullage.disk("disk", "Ullage")));
      await ullage.stop();
      await rm(data, { recursive: true });
    }
    if (wants(context, "qemu-nbd raw")) {
      const file = join(context.folder, "mkfs.raw");
      await writeFile(file, "");
      await truncate(file, size);
      const server = await qemuNbd(context.folder, file, "raw");
      note(server.name, await mkfsSeconds(context, server));
      await server.stop();
      await rm(file);
    }
  }
  const [own, peer] = ["Ullage", "qemu-nbd raw"].map((name) => measured.get(name)).map((all) => all && median(all));
  const ratio = own === undefined || peer === undefined ? undefined : own / peer;
  const targets: Target[] =
    ratio === undefined ? [] : [atMost("mkfs.ext4 on 2 TiB, beside qemu-nbd on a sparse raw file", ratio, 1.2, "x")];
  return {
    title: `mkfs.ext4 on ${size === 2 * tebibyte ? "2 TiB" : `${size / 2 ** 30} GiB`}`,
    about: `Through nbdfuse with the same options (mkfs.ext4 -q -F and its defaults, discard included); medians of ${context.rounds} rounds.`,
    columns: ["server", "s", "Ullage ÷ it"],
    rows: [...measured].map(([name, all]) => {
      return [name, short(median(all)), name === "Ullage" || ratio === undefined ? "" : `${ratio.toFixed(2)} x`];
    }),
    targets,
  };
}

async function mkfsSeconds(context: Context, server: DiskServer): Promise<number> {
  const disk = await mountDisk(context.folder, server.uri);
  try {
    await settle();
    const start = performance.now();
    await run("mkfs.ext4", ["-q", "-F", disk.file]);
    return (performance.now() - start) / 1000;
  } finally {
    await disk.unmount();
  }
}
