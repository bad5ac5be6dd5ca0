/**
 * Makes the fixture of the present format version, test/format/fixtures/v<version>: a data directory with a volume that
 * was closed, two snapshots of it and two clones, further names of some, and a volume whose daemon was killed with a
 * snapshot in its log only, and what their disks hold. Run it once per format version, when a new one comes, and never again: what an older version
 * wrote must stay as that version wrote it.
 *
 *     sh bin/node test/format/make-fixture.ts 3
 */
import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { missingTools } from "../support/tools.ts";
import { readVolumeToFile, type ReadOptions } from "./reader.ts";

const mostBytes = 200_000;
const ullage = join(import.meta.dirname, "../../bin/ullage");
const base = mkdtempSync(join(tmpdir(), "ullage-fixture-"));
const data = join(base, "data");
const socket = join(data, "nbd.sock");

function command(name: string, ...args: string[]): void {
  execFileSync(name, args, { stdio: ["ignore", "ignore", "inherit"], timeout: 60_000 });
}

function cli(...args: string[]): void {
  command("sh", ullage, ...args, "--api", `unix:${data}/api.sock`);
}

function nbdsh(volume: string, script: string): void {
  command("nbdsh", "-u", `nbd+unix:///${volume}?socket=${socket}`, "-c", script);
}

function truth(volume: string): Buffer {
  const path = join(base, "truth");
  command("nbdcopy", `nbd+unix:///${volume}?socket=${socket}`, path);
  return readFileSync(path);
}

/** Ends the daemon that `work` was done with. */
async function serving(end: NodeJS.Signals, work: () => Promise<void>): Promise<void> {
  rmSync(socket, { force: true });
  const daemon = spawn(
    "sh",
    [ullage, "serve", "--data", data, "--nbd", `unix:${socket}`, "--api", `unix:${data}/api.sock`],
    {
      stdio: "ignore",
    },
  );
  const ended = new Promise((resolve) => daemon.once("close", resolve));
  try {
    for (let tries = 0; !existsSync(socket) && tries < 300; tries++) await sleep(100);
    await work();
  } finally {
    daemon.kill(end);
    await ended;
  }
}

/** Something that is everywhere different, and compresses well. */
function content(bytes: number): Buffer {
  let text = "";
  for (let line = 0; text.length < bytes; line++) text += `line ${line} of the image\n`;
  return Buffer.from(text.slice(0, bytes));
}

function demandSame(volume: string, disk: Buffer, options: ReadOptions = {}): void {
  const path = join(base, "read");
  rmSync(path, { force: true });
  readVolumeToFile(data, volume, path, options);
  if (!readFileSync(path).equals(disk)) throw new Error(`${volume} does not read back as it should: run it again`);
}

try {
  const [version] = process.argv.slice(2);
  const target = join(import.meta.dirname, "fixtures", `v${version}`);
  if (version === undefined || existsSync(target)) throw new Error(`${target} must be named, and must not exist`);
  if (missingTools("nbdsh", "nbdcopy").length > 0) throw new Error("needs libnbd-bin and python3-libnbd");
  const image = join(base, "image.raw");
  writeFileSync(image, content(300_001));

  const disks: Record<string, Buffer> = {};
  await serving("SIGTERM", async () => {
    cli("volume", "create", "closed", "--from", image, "--size", "6M");
    cli("volume", "create", "killed", "--from", image, "--size", String((9 << 20) + 512));
    cli("volume", "hydrate", "closed", "--wait");
    cli("volume", "hydrate", "killed", "--wait");
    nbdsh("closed", `h.pwrite(b"closed" * 1000, 4 << 20)\nh.pwrite(b"x" * 100, 10000)\nh.trim(8192, 40960)`);
    cli("snapshot", "create", "closed@first");
    disks["closed@first"] = truth("closed");
    nbdsh("closed", `for b in range(0, 1024, 2): h.pwrite(bytes([b % 251]) * 4096, b * 4096)`);
    cli("snapshot", "create", "closed@second");
    disks["closed@second"] = truth("closed");
    nbdsh("closed", `h.pwrite(b"later" * 1000, 100)\nh.trim(1 << 20, 1 << 20)`);
    cli("volume", "resize", "closed", "7M");
    cli("volume", "create", "clone", "--snapshot", "closed@second", "--size", String((6 << 20) + 1536));
    nbdsh("clone", `h.pwrite(b"clone" * 1000, 6000)\nh.pwrite(b"end" * 100, (6 << 20) + 1000)`);
    nbdsh("killed", `h.pwrite(b"killed" * 1000, 5000)`);
    disks.closed = truth("closed");
    disks.clone = truth("clone");
    cli("volume", "create", "unopened", "--snapshot", "closed@first", "--hydrate", "off");
    disks.unopened = disks["closed@first"];
    cli("export", "add", "closed@first", "--nbd", "as-it-began", "--description", "before anything else");
    cli("export", "add", "clone", "--nbd", "twin", "--read-only");
  });
  const maps = join(data, "maps");
  await serving("SIGKILL", async () => {
    nbdsh("killed", `h.pwrite(b"flushed" * 1000, 8 << 20)\nh.trim(4096, 8192)\nh.zero(70000, 100001)`);
    disks["killed@logged"] = truth("killed");
    renameSync(maps, `${maps}.aside`);
    writeFileSync(maps, "nothing can be put here");
    cli("snapshot", "create", "killed@logged");
    nbdsh("killed", `h.pwrite(b"new head" * 1000, 6000)\nh.flush()`);
    disks.killed = truth("killed");
    nbdsh("killed", `h.pwrite(b"not flushed" * 1000, 3 << 20)`);
    const later = truth("killed");
    demandSame("killed", later, { rule: "all" });
  });
  rmSync(maps);
  renameSync(`${maps}.aside`, maps);
  for (const [name, disk] of Object.entries(disks)) demandSame(name, disk);
  if (readdirSync(maps).length !== 2) throw new Error(`${maps} must have the maps of the closed volume only`);

  mkdirSync(target, { recursive: true });
  const archive = join(target, "data.tar.gz");
  const files = ["--exclude=*.sock", "--exclude=lock", `--directory=${base}`, "data"];
  command("tar", "--create", "--gzip", "--sparse", `--file=${archive}`, ...files);
  const { size } = statSync(archive);
  if (size > mostBytes) throw new Error(`${archive} has ${size} bytes, more than ${mostBytes}`);
  const expected = Object.entries(disks).map(([name, disk]) => ({
    name,
    size: disk.length,
    sha256: createHash("sha256").update(disk).digest("hex"),
  }));
  writeFileSync(join(target, "disks.json"), `${JSON.stringify(expected, undefined, 2)}\n`);
  const names = [
    { name: "as-it-began", of: "closed@first", description: "before anything else" },
    { name: "twin", of: "clone", description: null },
  ];
  writeFileSync(join(target, "exports.json"), `${JSON.stringify(names, undefined, 2)}\n`);
  console.log(`${archive}: ${size} bytes`);
} finally {
  rmSync(base, { recursive: true, force: true });
}
