/** How fast a volume becomes independent of its source, beside what the source can give. */
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Benchmark, Context } from "../context.ts";
import { wants } from "../context.ts";
import { makeImage, settle } from "../files.ts";
import { run } from "../process.ts";
import { type Target, atLeast, short } from "../report.ts";
import { startSource } from "../source.ts";
import { median } from "../statistics.ts";
import { UllageServer } from "../ullage.ts";

const limitedBytesPerSecond = 200e6;
const latenciesMs = [0, 5, 20];
const parallelRequests = 16;

export const hydration: Benchmark = {
  name: "hydration",
  async run(context) {
    const bytes = (context.quick ? 64 : 1024) * 2 ** 20;
    const image = join(context.folder, "hydration.raw");
    await makeImage(image, bytes);
    const rows: string[][] = [];
    const targets: Target[] = [];
    for (const bytesPerSecond of [limitedBytesPerSecond, undefined]) {
      for (const latencyMs of latenciesMs) {
        const limit = bytesPerSecond === undefined ? "unlimited" : `${bytesPerSecond / 1e6} MB/s`;
        const source = await startSource({ file: image, latencyMs, ...(bytesPerSecond && { bytesPerSecond }) });
        const ours: number[] = [];
        const curls: Throughput[] = [];
        try {
          for (let round = 0; round < context.rounds; round++) {
            if (wants(context, "curl")) curls.push(await curlThroughput(context, source.url, bytes));
            if (wants(context, "Ullage")) ours.push(await ullageThroughput(context, source.url, bytes));
          }
        } finally {
          await source.stop();
        }
        const own = medianOf(ours);
        const written = medianOf(curls.map((each) => each.written));
        const durable = medianOf(curls.map((each) => each.durable));
        const ratio = own === undefined || written === undefined ? undefined : own / written;
        const figures = [own, written, durable].map((value) => (value === undefined ? "" : `${short(value)} MB/s`));
        rows.push([limit, `${latencyMs} ms`, ...figures, ratio === undefined ? "" : `${ratio.toFixed(2)} x`]);
        context.log(`hydration, ${limit}, ${latencyMs} ms: ${figures.join(" beside curl's ")}`);
        if (ratio !== undefined && bytesPerSecond !== undefined) {
          const what = `hydration at ${latencyMs} ms from a source of ${limit}, beside 16 parallel curl requests`;
          targets.push(atLeast(what, ratio, 0.95));
        }
      }
    }
    return [
      {
        title: "Hydration: what of the source's throughput arrives",
        about:
          `A ${bytes / 2 ** 20} MiB image over HTTP, the source's latency before every answer, medians of ${context.rounds} rounds. Ullage: from the ` +
          "request for the volume until its state is `detached`, everything durable. curl: 16 range requests at once, each a " +
          "sixteenth of the image written to a file, until the last has ended (the figure that Ullage is compared with), and until " +
          "these files are on disk.",
        columns: [
          "source gives",
          "latency",
          "Ullage, durable",
          "16 x curl, written",
          "16 x curl, durable",
          "Ullage ÷ curl, written",
        ],
        rows,
        targets,
      },
    ];
  },
};

/** MB/s */
async function ullageThroughput(context: Context, url: string, bytes: number): Promise<number> {
  const data = await mkdtemp(join(context.folder, "hydration-ullage-"));
  const ullage = await UllageServer.start(data);
  try {
    await settle();
    const start = performance.now();
    await ullage.create({ name: "disk", from: { source: url } });
    await ullage.detached("disk");
    return bytes / 1e3 / (performance.now() - start);
  } finally {
    await ullage.stop();
    await rm(data, { recursive: true });
  }
}

/** MB/s */
interface Throughput {
  written: number;
  durable: number;
}

function medianOf(values: readonly number[]): number | undefined {
  return values.length === 0 ? undefined : median(values);
}

async function curlThroughput(context: Context, url: string, bytes: number): Promise<Throughput> {
  const folder = await mkdtemp(join(context.folder, "curl-"));
  const part = bytes / parallelRequests;
  const files = Array.from({ length: parallelRequests }, (_, index) => join(folder, String(index)));
  try {
    await settle();
    const start = performance.now();
    await Promise.all(
      files.map((file, index) => {
        const range = `${index * part}-${(index + 1) * part - 1}`;
        return run("curl", ["--silent", "--fail", "--range", range, "--output", file, url]);
      }),
    );
    const written = bytes / 1e3 / (performance.now() - start);
    await run("sync", ["--data", ...files]);
    return { written, durable: bytes / 1e3 / (performance.now() - start) };
  } finally {
    await rm(folder, { recursive: true });
  }
}
