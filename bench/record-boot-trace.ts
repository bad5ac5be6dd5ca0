/**
 * Records bench/traces/boot.json: every read that a Debian guest sends to its root disk from power-on to the end of a full
 * systemd boot. The disk is served by nbdkit, whose log filter sees each request.
 *
 *     sh bin/node bench/record-boot-trace.ts
 */
import { execFile, spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { debianImage } from "../test/support/debian-image.ts";
import { bootGuest } from "../test/vm/guest.ts";
import type { BootTrace, TracedRead } from "./boot-trace.ts";

const bootTimeoutMs = 5 * 60_000;

const debian = await debianImage();
const folder = await mkdtemp(join(tmpdir(), "ullage-boot-trace-"));
try {
  const disk = join(folder, "disk.raw");
  const log = join(folder, "log");
  const socket = join(folder, "nbd.sock");
  await promisify(execFile)("cp", ["--sparse=always", debian.image, disk]);
  const server = spawn("nbdkit", ["-f", "-U", socket, "--filter=log", "file", disk, `logfile=${log}`], {
    stdio: ["ignore", "inherit", "inherit"],
  });
  const ended = new Promise((resolve) => server.on("close", resolve));
  try {
    const options = {
      rootDisk: `nbd+unix:///?socket=${socket}`,
      consoleFile: join(folder, "console"),
      timeoutMs: bootTimeoutMs,
    };
    const console = await bootGuest(debian, options);
    if (!console.includes("BOOT-OK")) throw new Error(`the guest did not boot:\n${console}`);
  } finally {
    server.kill();
    await ended;
  }
  const reads = readsOf(await readFile(log, "utf8"));
  const trace: BootTrace = {
    description:
      "reads of a Debian 12 guest's full systemd boot and power-off (QEMU TCG, 2 CPUs, 1 GiB of memory): [ms since the first, offset, length]",
    imageBytes: debian.size,
    reads,
  };
  const rows = trace.reads.map((read) => `    [${read.join(", ")}]`).join(",\n");
  const { description, imageBytes } = trace;
  const head = `{\n  "description": ${JSON.stringify(description)},\n  "imageBytes": ${imageBytes},\n`;
  const text = `${head}  "reads": [\n${rows}\n  ]\n}\n`;
  await writeFile(new URL("traces/boot.json", import.meta.url), text);
  const bytes = reads.reduce((sum, [, , length]) => sum + length, 0);
  console.log(`${reads.length} reads, ${(bytes / 2 ** 20).toFixed(1)} MiB, ${reads.at(-1)?.[0]} ms`);
} finally {
  await rm(folder, { recursive: true });
}

/** From the log filter's lines: `2026-01-31 12:00:00.123456 connection=1 Read id=7 offset=0x400 count=0x1000 ...` */
function readsOf(log: string): TracedRead[] {
  const line = /^(\S+ \S+) connection=\d+ Read id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)/gm;
  const reads = [...log.matchAll(line)].map(([, time, offset, length]) => [
    Date.parse(time),
    Number(offset),
    Number(length),
  ]);
  const start = reads[0]?.[0] ?? 0;
  return reads.map(([time, offset, length]): TracedRead => [time - start, offset, length]);
}
