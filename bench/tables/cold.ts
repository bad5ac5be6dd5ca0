/** What is not warm: the first write to each block of a lazily filled disk, and reads that miss the page cache. */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { Benchmark, Context } from "../context.ts";
import { wants } from "../context.ts";
import { dropPageCache, makeImage, settle } from "../files.ts";
import { type Measurement, type Workload, fio } from "../fio.ts";
import { type DiskServer, makeOverlay, nbdkitFile, qemuNbd } from "../peers.ts";
import { type Table, short } from "../report.ts";
import { interleave, measurementColumns, measurementRows, throughputTarget } from "../rounds.ts";
import { summarize } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const ourName = "Ullage";
const overlayName = "qemu-nbd qcow2";
const firstTouch: Workload = {
  name: "4k randwrite QD32, first touch",
  rw: "randwrite",
  blockBytes: 4096,
  queueDepth: 32,
};
const coldRead: Workload = { name: "4k randread QD32, cold cache", rw: "randread", blockBytes: 4096, queueDepth: 32 };

export const cold: Benchmark = {
  name: "cold",
  async run(context) {
    const bytes = (context.quick ? 256 : 2048) * 2 ** 20;
    const image = join(context.folder, "cold.raw");
    await makeImage(image, bytes);
    const data = join(context.folder, "cold-ullage");
    await mkdir(data);
    const ullage = wants(context, ourName) ? await UllageServer.start(data) : undefined;
    try {
      // First touch goes first: hydrating the cold volume fills the cache that all volumes of the image share.
      return [await firstTouchTable(context, image, ullage), await coldReadTable(context, image, ullage)];
    } finally {
      await ullage?.stop();
    }
  },
};

/** Every round has a fresh disk, or the blocks would have been touched. */
async function firstTouchTable(context: Context, image: string, ullage: UllageServer | undefined): Promise<Table> {
  const measured = new Map<string, Measurement[]>();
  const measure = async (server: DiskServer, round: number): Promise<void> => {
    await settle();
    const result = await fio(server, firstTouch, context.seconds, round);
    measured.set(server.name, [...(measured.get(server.name) ?? []), result]);
    context.log(`${firstTouch.name}, round ${round}, ${server.name}: ${short(result.iops)}`);
  };
  const ours = async (round: number): Promise<void> => {
    if (ullage === undefined) return;
    // Nothing is removed before all rounds are over: freeing so many small extents can go on for minutes (`discard` mounts)
    // and would fall into the peer's turn.
    const name = `touched-${round}`;
    await ullage.create({ name, from: { source: image }, settings: { hydrate: "off" } });
    await measure(ullage.disk(name, ourName), round);
  };
  const theirs = async (round: number): Promise<void> => {
    if (!wants(context, overlayName)) return;
    const overlay = join(context.folder, `touched-${round}.qcow2`);
    await makeOverlay(overlay, image);
    const server = await qemuNbd(context.folder, overlay, "qcow2");
    await measure(server, round);
    await server.stop();
  };
  for (let round = 1; round <= context.rounds; round++) {
    for (const turn of round % 2 === 1 ? [ours, theirs] : [theirs, ours]) await turn(round);
  }
  const order = [ourName, overlayName].filter((name) => measured.has(name));
  const medians = new Map(order.map((name) => [name, summarize(measured.get(name)!)]));
  return {
    title: "First touch: writes to a cold, lazily filled disk",
    about:
      "A fresh disk over the same local raw file in every round, nothing fetched. Ullage: `--hydrate off`; qemu-nbd: a fresh qcow2 " +
      "overlay with clusters of 64 KiB, so that a first write of 4 KiB copies its cluster.",
    columns: measurementColumns,
    rows: measurementRows(firstTouch, medians, ourName),
    targets: throughputTarget("4k first-touch write", medians, ourName, overlayName, 3),
  };
}

async function coldReadTable(context: Context, image: string, ullage: UllageServer | undefined): Promise<Table> {
  const servers: DiskServer[] = [];
  if (ullage !== undefined) {
    await ullage.create({ name: "cold", from: { source: image } });
    await ullage.detached("cold");
    servers.push(ullage.disk("cold", ourName));
  }
  if (wants(context, "nbdkit")) servers.push(await nbdkitFile(context.folder, image));
  if (wants(context, "qemu-nbd raw")) servers.push(await qemuNbd(context.folder, image, "raw"));
  try {
    const medians = await interleave(context, coldRead, servers, dropPageCache);
    return {
      title: "Reads that miss the page cache",
      about:
        "The page cache of the whole machine is emptied before every turn. Random reads of blocks that were not read yet in that turn.",
      columns: measurementColumns,
      rows: measurementRows(coldRead, medians, ourName),
      targets: throughputTarget("4k randread QD32, page cache cold", medians, ourName, "nbdkit", 1.0),
    };
  } finally {
    for (const server of servers) await server.stop();
  }
}
