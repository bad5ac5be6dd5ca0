/** A disk from an HTTP image: how soon the first read is answered, and a whole boot's worth of reads. */
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type TracedRead, loadBootTrace } from "../boot-trace.ts";
import type { Benchmark, Context } from "../context.ts";
import { wants } from "../context.ts";
import { makeImage, settle } from "../files.ts";
import { NbdClient } from "../nbd-client.ts";
import { nbdkitCurl, nbdkitFile, qemuNbdCurl } from "../peers.ts";
import { run } from "../process.ts";
import { type Table, type Target, atLeast, atMost, short } from "../report.ts";
import { startSource } from "../source.ts";
import { median } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const latencyMs = 10;
const bytesPerSecond = 50e6;
/** Create: one round trip to the source and one range request, each `latencyMs`, and 20 ms on top. */
const firstReadMostMs = 2 * latencyMs + 20;
/** Where a client reads first: the partition table. And where none does, so that nothing can have been fetched ahead of it. */
const beginning = 0;
const farIn = 300 * 2 ** 20;

/** All times in ms from the moment the disk was asked for. */
interface Times {
  firstRead: number;
  /** The last read of the trace, one after the other without a pause. */
  trace: number;
}

type Contender = (url: string, reads: readonly TracedRead[]) => Promise<Times>;

export const lazy: Benchmark = {
  name: "lazy",
  async run(context) {
    const trace = await loadBootTrace();
    const image = join(context.folder, "lazy.raw");
    await makeImage(image, trace.imageBytes);
    const reads = context.quick ? trace.reads.slice(0, 100) : trace.reads;
    const measured = new Map<string, Times[]>();
    const contenders = contendersOf(context);
    const source = await startSource({ file: image, latencyMs, bytesPerSecond });
    try {
      for (let round = 0; round < context.rounds; round++) {
        for (const [name, contender] of contenders) {
          await settle();
          const times = await contender(source.url, reads);
          measured.set(name, [...(measured.get(name) ?? []), times]);
          context.log(`${name}: first read ${short(times.firstRead)} ms, trace ${short(times.trace)} ms`);
        }
      }
    } finally {
      await source.stop();
    }
    return [table(context, reads, measured)];
  },
};

function table(context: Context, reads: readonly TracedRead[], measured: Map<string, Times[]>): Table {
  const medians = [...measured].map(([name, times]) => ({
    name,
    firstRead: median(times.map((time) => time.firstRead)),
    trace: median(times.map((time) => time.trace)),
  }));
  const own = medians.find(({ name }) => name === "Ullage");
  const mebibytes = reads.reduce((sum, [, , length]) => sum + length, 0) / 2 ** 20;
  return {
    title: "From an HTTP image: first read, and a boot's reads",
    about:
      `A 1 GiB image behind HTTP with ${latencyMs} ms before every answer and ${bytesPerSecond / 1e6} MB/s in all; medians of ` +
      `${context.rounds} rounds. First read: from the request for the disk to its first 4 KiB (Ullage: the daemon runs, as it does on a host; ` +
      `nbdkit and the download start from nothing). Trace: bench/traces/boot.json, ${reads.length} reads, ${mebibytes.toFixed(1)} MiB, ` +
      "one after the other without the guest's own pauses; Ullage hydrates meanwhile.",
    columns: ["way", "first read ms", "boot trace done ms", "Ullage's trace time ÷ it"],
    rows: medians.map(({ name, firstRead, trace }) => [
      name,
      short(firstRead),
      short(trace),
      own === undefined || name.startsWith(own.name) ? "" : `${(own.trace / trace).toFixed(2)} x`,
    ]),
    targets:
      own === undefined
        ? []
        : [
            atMost(
              "create from an HTTP image until the first 4k read is answered",
              own.firstRead,
              firstReadMostMs,
              "ms",
            ),
            ...traceTargets(medians),
          ],
  };
}

/** How much sooner a boot's reads are done than with the best of the peers that need no download first. */
function traceTargets(medians: readonly { name: string; trace: number }[]): Target[] {
  const peers = medians.filter(({ name }) => !name.startsWith("Ullage") && !name.startsWith("download"));
  const best = Math.min(...peers.map(({ trace }) => trace));
  if (!Number.isFinite(best)) return [];
  return (
    [
      ["Ullage", "the first time", 1.5],
      ["Ullage, trace known", "the trace known, the cache empty", 3],
      ["Ullage, in the cache", "in the cache", 10],
    ] as const
  ).flatMap(([contender, how, least]) => {
    const own = medians.find(({ name }) => name === contender);
    return own === undefined ? [] : [atLeast(`boot trace, ${how}, beside the best lazy peer`, best / own.trace, least)];
  });
}

function contendersOf(context: Context): Map<string, Contender> {
  const contenders = new Map<string, Contender>();
  if (wants(context, "Ullage")) {
    contenders.set("Ullage", ullage(context.folder, true));
    contenders.set("Ullage, first read 300 MiB in", ullage(context.folder, true, undefined, farIn));
    contenders.set("Ullage, first volume of a daemon", ullage(context.folder, false));
    contenders.set("Ullage, trace known", ullage(context.folder, true, knowTrace));
    contenders.set("Ullage, in the cache", ullage(context.folder, true, pull));
  }
  if (wants(context, "nbdkit curl"))
    contenders.set("nbdkit curl + cow + readahead + cache", lazyNbdkit(context.folder));
  if (wants(context, "qemu-nbd")) contenders.set("qemu-nbd qcow2 over curl, copy-on-read", lazyQemu(context.folder));
  if (wants(context, "download")) contenders.set("download first (curl), then nbdkit file", download(context.folder));
  return contenders;
}

type Prepare = (daemon: UllageServer, url: string, reads: readonly TracedRead[]) => Promise<void>;

/** The daemon has the image's trace, and nothing of the image. */
const knowTrace: Prepare = async (daemon, url, reads) => {
  await daemon.create({ name: "before", from: { source: url }, settings: { hydrate: "off" } });
  const { images } = (await daemon.api("GET", "/v1/images")) as {
    images: { id: string; source: string; size: number }[];
  };
  const { id, size } = images.find(({ source }) => source === url)!;
  const trace = { imageBytes: size, recordedAt: new Date().toISOString(), reads };
  await daemon.api("POST", `/v1/images/${id}/trace`, trace);
  await daemon.api("DELETE", "/v1/volumes/before");
  await daemon.api("POST", "/v1/cache/evict", {});
};

const pull: Prepare = async (daemon, url) => {
  const { id } = (await daemon.api("POST", "/v1/images", { source: url })) as { id: string };
  for (;;) {
    const { state } = (await daemon.api("GET", `/v1/jobs/${id}`)) as { state: string };
    if (state === "done") return;
    if (state !== "running") throw new Error(`the pull ${state}`);
    await sleep(100);
  }
};

/**
 * @param usedBefore the daemon has made and served a volume from another server: its code has run once
 * @param prepare before the clock starts
 * @param firstRead offset in bytes
 */
function ullage(folder: string, usedBefore: boolean, prepare?: Prepare, firstRead = beginning): Contender {
  return async (url, reads) => {
    // Its own data directory each time: volumes of one daemon share a cache, and a second round would find it full.
    const data = await mkdtemp(join(folder, "lazy-ullage-"));
    const daemon = await UllageServer.start(data);
    try {
      if (usedBefore) await useOnce(folder, daemon);
      await prepare?.(daemon, url, reads);
      // Opens the API connection; the NBD connection has shaken hands and waits for the export to exist.
      await daemon.api("GET", "/v1/volumes");
      const client = await NbdClient.connect(daemon.nbdSocket);
      const start = performance.now();
      await daemon.create({ name: "disk", from: { source: url } });
      return await replay(client, "disk", start, reads, firstRead);
    } finally {
      await daemon.stop();
      await rm(data, { recursive: true });
    }
  };
}

async function useOnce(folder: string, daemon: UllageServer): Promise<void> {
  const file = join(folder, "other.raw");
  if (!existsSync(file)) await makeImage(file, 4 * 2 ** 20);
  const source = await startSource({ file, latencyMs: 0 });
  try {
    const client = await NbdClient.connect(daemon.nbdSocket);
    await daemon.create({ name: "other", from: { source: source.url } });
    await client.go("other");
    await client.read(0, 4096);
    client.close();
    await daemon.detached("other");
  } finally {
    await source.stop();
  }
}

function lazyNbdkit(folder: string): Contender {
  return async (url, reads) => {
    const start = performance.now();
    const server = await nbdkitCurl(folder, url);
    try {
      return await replay(await connectTo(server.uri), "", start, reads);
    } finally {
      await server.stop();
    }
  };
}

function lazyQemu(folder: string): Contender {
  return async (url, reads) => {
    const start = performance.now();
    const server = await qemuNbdCurl(folder, url);
    try {
      return await replay(await connectTo(server.uri), "", start, reads);
    } finally {
      await server.stop();
    }
  };
}

function download(folder: string): Contender {
  return async (url, reads) => {
    const file = join(folder, "downloaded.raw");
    const start = performance.now();
    await run("curl", ["--silent", "--fail", "--output", file, url]);
    const server = await nbdkitFile(folder, file);
    try {
      return await replay(await connectTo(server.uri), "", start, reads);
    } finally {
      await server.stop();
      await rm(file);
    }
  };
}

async function connectTo(uri: string): Promise<NbdClient> {
  return NbdClient.connect(new URL(uri).searchParams.get("socket")!);
}

async function replay(
  client: NbdClient,
  name: string,
  start: number,
  reads: readonly TracedRead[],
  at = beginning,
): Promise<Times> {
  try {
    await client.go(name);
    await client.read(at, 4096);
    const firstRead = performance.now() - start;
    for (const [, offset, length] of reads) await client.read(offset, length);
    return { firstRead, trace: performance.now() - start };
  } finally {
    client.close();
  }
}
