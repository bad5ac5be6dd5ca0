/** The shared cache: many readers of one cold unit, compressed images, other processes, and how a large one opens. */
import { randomBytes, randomFillSync } from "node:crypto";
import { mkdir, mkdtemp, open, rm, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { systemClock } from "../../src/base/clock.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { encodeBlobMeta } from "../../src/blob/blob-meta.ts";
import { BlobCache } from "../../src/blob/cache.ts";
import { ManagerClient } from "../../src/blob/remote/manager-client.ts";
import { RemoteBlob } from "../../src/blob/remote/remote-blob.ts";
import { startHttpSource } from "../../test/support/http-source.ts";
import type { Benchmark, Context } from "../context.ts";
import { dropPageCache, makeImage } from "../files.ts";
import { NbdClient } from "../nbd-client.ts";
import { run } from "../process.ts";
import { type Table, type Target, atLeast, atMost, short } from "../report.ts";
import { median } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

export const sources: Benchmark = {
  name: "sources",
  async run(context) {
    return [
      await oneUnit(context),
      await compressedImage(context),
      await otherProcess(context),
      await largeCache(context),
    ];
  },
};

async function withServer<T>(context: Context, work: (server: UllageServer) => Promise<T>): Promise<T> {
  const data = await mkdtemp(join(context.folder, "sources-ullage-"));
  const server = await UllageServer.start(data);
  try {
    return await work(server);
  } finally {
    await server.stop();
    await rm(data, { recursive: true });
  }
}

// ---- one cold unit, a hundred clones ---------------------------------------------------------------------------------

const clones = 100;
const unitLatencyMs = 20;

async function oneUnit(context: Context): Promise<Table> {
  const alone: number[] = [];
  const last: number[] = [];
  let requests = 0;
  for (let round = 0; round < context.rounds; round++) {
    await withServer(context, async (server) => {
      await using source = await startHttpSource({ content: randomBytes(64 * 2 ** 20), latencyMs: unitLatencyMs });
      await server.create({ name: "base", from: { source: source.url }, settings: { hydrate: "off" } });
      await server.api("POST", "/v1/volumes/base/snapshots", { name: "s" });
      const clients: NbdClient[] = [];
      for (let each = 0; each < clones; each++) {
        await server.create({ name: `c${each}`, from: { snapshot: "base@s" }, settings: { hydrate: "off" } });
        const client = await NbdClient.connect(server.nbdSocket);
        await client.go(`c${each}`);
        clients.push(client);
      }
      // Two units that nobody reads ahead to: one for the reader that is alone, one for all of them.
      let start = performance.now();
      await clients[0].read(20 * 2 ** 20, 4096);
      alone.push(performance.now() - start);
      const before = source.requestCount;
      start = performance.now();
      await Promise.all(clients.map((client) => client.read(40 * 2 ** 20, 4096)));
      last.push(performance.now() - start);
      requests = Math.max(requests, source.requestCount - before);
      for (const client of clients) client.close();
    });
  }
  const ratio = median(last) / median(alone);
  return {
    title: "A hundred clones read one cold block",
    about:
      `${clones} clones of one volume from an HTTP image with ${unitLatencyMs} ms before every answer, all asking for the same 4 KiB at ` +
      `once, on ${clones} connections; medians of ${context.rounds} rounds, the most requests of any.`,
    columns: ["what", "figure"],
    rows: [
      ["one reader alone", `${short(median(alone))} ms`],
      [`the last of ${clones}`, `${short(median(last))} ms`],
      ["requests to the source", String(requests)],
    ],
    targets: [
      atMost(`requests to the source when ${clones} clones read one cold block at once`, requests, 1, ""),
      atMost(`the last of ${clones} answers, beside one reader`, ratio, 1.5, "x"),
    ],
  };
}

// ---- compressed qcow2 ------------------------------------------------------------------------------------------------

async function compressedImage(context: Context): Promise<Table> {
  const bytes = (context.quick ? 64 : 1024) * 2 ** 20;
  const raw = join(context.folder, "half.raw");
  await makeHalfRandom(raw, bytes);
  const used = join(context.folder, "used.raw");
  await makeImage(used, 4 * 2 ** 20);
  const rows: string[][] = [];
  const targets: Target[] = [];
  for (const type of ["zlib", "zstd"]) {
    const image = join(context.folder, `half-${type}.qcow2`);
    await run("qemu-img", ["convert", "-c", "-o", `compression_type=${type}`, "-O", "qcow2", raw, image]);
    const fromStart = (read: (uri: string) => Promise<void>): Promise<number> =>
      withServer(context, async (server) => {
        await useOnce(server, used);
        await dropPageCache();
        return megabytesPerSecond(bytes, async () => {
          await server.create({ name: "disk", from: { source: image }, settings: { hydrate: "off" } });
          await read(server.uri("disk"));
        });
      });
    const ways: Record<string, () => Promise<number>> = {
      "qemu-img convert": async () => {
        await dropPageCache();
        return megabytesPerSecond(bytes, () => convert(context, image, "qcow2"));
      },
      read: () => fromStart(async (uri) => void (await run("nbdcopy", ["--connections=1", uri, "null:"]))),
      "read and written again": () => fromStart((uri) => convert(context, uri, "raw")),
    };
    const rates = await interleaved(context.rounds, ways);
    const [theirs, read, copied] = Object.values(rates).map(median);
    const ratio = read / theirs;
    rows.push([
      type,
      ...[theirs, read, copied].map((rate) => `${short(rate)} MB/s`),
      `${ratio.toFixed(2)} x`,
      `${(copied / theirs).toFixed(2)} x`,
    ]);
    targets.push(
      atLeast(`cold sequential read of a qcow2 compressed with ${type}, beside qemu-img convert`, ratio, 0.8),
    );
    context.log(`qcow2 ${type}: ${rows.at(-1)!.slice(1).join(" beside ")}`);
    await rm(image);
  }
  await rm(raw);
  return {
    title: "A compressed qcow2, read from its beginning to its end",
    about:
      `${bytes / 2 ** 20} MiB, half of it random; a local file, the page cache emptied before. \`qemu-img convert\` unpacks it into a raw ` +
      "file. Ullage, whose daemon has served another volume before: from the request for the volume until `nbdcopy --connections=1` has read it from its beginning to its end, " +
      "by which it is unpacked into the cache file; and the same with `qemu-img convert` as the reader, which writes it to a " +
      "second file.",
    columns: [
      "compression",
      "qemu-img convert",
      "read",
      "read and written again",
      "read ÷ it",
      "and written again ÷ it",
    ],
    rows,
    targets,
  };
}

/** The daemon has made and served a volume from another image: its code has run once, as on a host. */
async function useOnce(server: UllageServer, image: string): Promise<void> {
  await server.create({ name: "before", from: { source: image } });
  await run("nbdcopy", [server.uri("before"), "null:"]);
  await server.detached("before");
}

/** The ways take turns, and every round begins with another one. @returns MB/s, per way */
async function interleaved(
  rounds: number,
  ways: Record<string, () => Promise<number>>,
): Promise<Record<string, number[]>> {
  const names = Object.keys(ways);
  const rates = Object.fromEntries(names.map((name): [string, number[]] => [name, []]));
  for (let turn = 0; turn < rounds * names.length; turn++) {
    const name = names[(turn + Math.floor(turn / names.length)) % names.length];
    rates[name].push(await ways[name]());
  }
  return rates;
}

async function megabytesPerSecond(bytes: number, work: () => Promise<void>): Promise<number> {
  const start = performance.now();
  await work();
  return bytes / 1e3 / (performance.now() - start);
}

async function convert(context: Context, from: string, format: string): Promise<void> {
  const to = join(context.folder, "converted.raw");
  await run("qemu-img", ["convert", "-f", format, "-O", "raw", from, to]);
  await rm(to);
}

/** Every second 32 KiB are random, the others repeat. */
async function makeHalfRandom(path: string, bytes: number): Promise<void> {
  const file = await open(path, "wx");
  const piece = Buffer.alloc(4 * 2 ** 20);
  try {
    for (let offset = 0; offset < bytes; offset += piece.length) {
      for (let at = 0; at < piece.length; at += 65_536) {
        randomFillSync(piece, at, 32_768);
        piece.fill(`line ${offset + at} of a log file; `, at + 32_768, at + 65_536);
      }
      await file.write(piece, 0, piece.length, offset);
    }
    await file.datasync();
  } finally {
    await file.close();
  }
}

// ---- from a second process -------------------------------------------------------------------------------------------

const readsPerRound = 200_000;

async function otherProcess(context: Context): Promise<Table> {
  const bytes = 256 * 2 ** 20;
  const image = join(context.folder, "passed.raw");
  await makeImage(image, bytes);
  const figures = await withServer(context, async (server) => {
    await server.create({ name: "disk", from: { source: image } });
    await server.detached("disk");
    const { blobs } = (await server.api("GET", "/v1/blobs")) as { blobs: { id: string }[] };
    const client = new ManagerClient({
      path: join(server.folder, "blobd.sock"),
      clock: systemClock,
      random: Math.random,
      log: () => undefined,
    });
    const blob = await RemoteBlob.open({ client, clock: systemClock, id: blobs[0].id, log: () => undefined });
    const file = realFileSystem.openNow(join(server.folder, "blobs", blobs[0].id, "data"));
    const buffer = new IoBuffer(4096);
    const passed: number[] = [];
    const direct: number[] = [];
    const count = context.quick ? 5000 : readsPerRound;
    const pages = bytes / 4096;
    for (let round = -1; round < context.rounds * 2; round++) {
      const ofFile = nanosecondsEach(count, (index) => {
        file.tryRead(buffer, 0, 4096, 4096 * ((index * 7919) % pages));
      });
      const ofBlob = nanosecondsEach(count, (index) => {
        const offset = 4096 * ((index * 7919) % pages);
        const { losses } = blob;
        if (!blob.isReady(offset, 4096)) throw new Error("not ready");
        blob.file.tryRead(buffer, 0, 4096, offset);
        if (blob.losses !== losses) throw new Error("lost");
      });
      if (round < 0) continue; // cold code
      direct.push(ofFile);
      passed.push(ofBlob);
    }
    await file.close();
    await blob.close();
    await client.close();
    return { passed: median(passed), direct: median(direct) };
  });
  await rm(image);
  const ratio = figures.passed / figures.direct;
  return {
    title: "Ready ranges, read by a second process",
    about:
      "Random reads of 4 KiB from the page cache, one thread: of the cache file itself, and as a volume in another process reads a blob " +
      "through the blob manager (readiness in shared memory, then the descriptor that was passed); interleaved, medians.",
    columns: ["read", "ns each"],
    rows: [
      ["the file itself", short(figures.direct)],
      ["through the blob manager's descriptor", short(figures.passed)],
    ],
    targets: [atMost("a ready 4 KiB through the blob manager's descriptor, beside the file itself", ratio, 1.05, "x")],
  };
}

function nanosecondsEach(count: number, work: (index: number) => void): number {
  const start = performance.now();
  for (let index = 0; index < count; index++) work(index);
  return ((performance.now() - start) * 1e6) / count;
}

// ---- a large cache ---------------------------------------------------------------------------------------------------

async function largeCache(context: Context): Promise<Table> {
  const count = context.quick ? 500 : 10_000;
  const dataDir = join(context.folder, "large-cache");
  await makeBlobs(dataDir, count);
  const options = {
    fs: realFileSystem,
    clock: systemClock,
    dataDir,
    randomBytes,
    log: () => undefined,
    openSource: () => Promise.reject(new Error("there is no source")),
  };
  const openIt = async (): Promise<number> => {
    const start = performance.now();
    const cache = await BlobCache.open(options);
    const ms = performance.now() - start;
    if (cache.list().length !== count) throw new Error("blobs are missing");
    await cache.close();
    return ms;
  };
  const without = await openIt(); // and writes the index
  const times: number[] = [];
  for (let round = 0; round < context.rounds; round++) times.push(await openIt());
  await rm(dataDir, { recursive: true });
  return {
    title: "A cache of many blobs opens",
    about: `${count} blobs; medians of ${context.rounds} rounds. Without the index (after a crash before it was first written) every blob is looked at.`,
    columns: ["how", "ms"],
    rows: [
      ["with its index", short(median(times))],
      ["without", short(without)],
    ],
    targets: [atMost(`a cache of ${count} blobs opens`, median(times), 200, "ms")],
  };
}

/** As they are on disk, without the syncs of a real creation. */
async function makeBlobs(dataDir: string, count: number): Promise<void> {
  await mkdir(join(dataDir, "blobs"), { recursive: true });
  for (let each = 0; each < count; each++) {
    const id = randomBytes(16).toString("hex");
    const dir = join(dataDir, "blobs", id);
    await mkdir(join(dir, "pins"), { recursive: true });
    const size = 10 * 2 ** 30;
    const meta = {
      id,
      url: `https://images.example.org/${each}.raw`,
      imageFormat: "raw",
      identity: { size, version: `etag:"${each}"`, strong: true },
      size,
      unitBytes: 262_144,
      createdAt: new Date().toISOString(),
    };
    await writeFile(join(dir, "meta.json"), encodeBlobMeta(meta));
    await writeFile(join(dir, "data"), "");
    await truncate(join(dir, "data"), size);
  }
}
