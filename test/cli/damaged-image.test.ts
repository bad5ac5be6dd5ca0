import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import type { HealthView, ImageView, VolumeView } from "../../src/daemon/views.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { packSeekable } from "../image/seekable.ts";
import { requireTool } from "../support/tools.ts";
import { launch, launchDaemon, type Daemon } from "./support.ts";

/* A qcow2 of which one compressed cluster can't be unpacked: all else of it is served, fetched and kept. */

const execute = promisify(execFile);
const timeout = 60_000;
const MiB = 2 ** 20;
const CLUSTER = 64 * 1024;
/** Which cluster of the disk. */
const damaged = 75;

async function damagedImage(t: TestContext): Promise<{ image: string; disk: Buffer }> {
  const dir = await temporaryDirectory(t);
  const [raw, image] = [join(dir, "raw"), join(dir, "disk.qcow2")];
  const disk = Buffer.from(randomBytes(8 * MiB).toString("hex"));
  await writeFile(raw, disk);
  await execute("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", raw, image], { timeout });
  const file = await readFile(image);
  const l2 = Number(file.readBigUInt64BE(Number(file.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
  const entry = file.readBigUInt64BE(l2 + 8 * damaged);
  assert.equal(entry >> 62n, 1n, "the cluster is compressed");
  const host = Number(entry & ((1n << 54n) - 1n));
  file.fill(0xff, host + 100, host + 200);
  await writeFile(image, file);
  return { image, disk };
}

/** What a client that goes on behind errors reads: all of the disk but what is damaged, where it reads zeros. */
async function demandAllElse(
  uri: string,
  disk: Buffer,
  folder: string,
  { offset, length } = { offset: damaged * CLUSTER, length: CLUSTER },
): Promise<void> {
  const salvaged = join(folder, "salvaged");
  const args = ["convert", "--salvage", "-f", "raw", "-O", "raw", uri, salvaged];
  const { stderr } = await execute("qemu-img", args, { timeout });
  assert.match(stderr, /error while reading/);
  const expected = Buffer.from(disk);
  expected.fill(0, offset, offset + length);
  assert.ok((await readFile(salvaged)).equals(expected));
}

void test("`ullage run` of an image with a damaged cluster serves all else of it, also when the source is gone", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const { image, disk } = await damagedImage(t);
  const dir = await temporaryDirectory(t);
  const data = join(dir, "data");
  const args = ["run", image, "--data", data, "--nbd", "127.0.0.1:0"];
  const first = await launch<{ uri: string }>(t, args);
  const blobs = join(data, "blobs");
  const [blob] = await readdir(blobs);
  const fetched = async (): Promise<number> => (await stat(join(blobs, blob, "data"))).blocks * 512;
  await until(fetched, (bytes) => bytes >= 16 * MiB - CLUSTER);
  await rename(image, `${image}.gone`);
  await demandAllElse(first.announced.uri, disk, dir);
  assert.equal((await first.stop()).code, 0);

  const daemon = await launchDaemon(t, data);
  await demandAllElse(daemon.uri("disk"), disk, dir);
});

/** Asks until it is so; the runner ends a test that waits for ever. */
async function until<T>(ask: () => Promise<T>, isSo: (answer: T) => boolean): Promise<T> {
  for (;;) {
    const answer = await ask();
    if (isSo(answer)) return answer;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

const show = (daemon: Daemon): Promise<VolumeView> => daemon.json<VolumeView>(["volume", "show", "v"]);

void test("hydration fetches all but a damaged cluster, tells of it everywhere, and what it fetched outlives the source", async (t) => {
  if (!requireTool(t, "qemu-img", "curl")) return;
  const { image, disk } = await damagedImage(t);
  const dir = await temporaryDirectory(t);
  const daemon = await launchDaemon(t);
  const events = await launchEvents(t, daemon);
  await daemon.json(["volume", "create", "v", "--from", image]);
  const { hydration, state, reason } = await until(
    () => show(daemon),
    (volume) => volume.hydration.state === "waiting",
  );
  const { readyBytes, totalBytes, damagedBytes, damaged: pieces } = hydration;
  assert.deepEqual([readyBytes, totalBytes, damagedBytes], [16 * MiB - CLUSTER, 16 * MiB, CLUSTER]);
  assert.deepEqual([pieces.length, pieces[0].offset, pieces[0].length], [1, damaged * CLUSTER, CLUSTER]);
  const told = new RegExp(
    `65536 bytes of the image that can't be had, the first at byte ${damaged * CLUSTER}: the qcow2`,
  );
  assert.equal(state, "degraded");
  assert.match(reason!, told);
  assert.match((await daemon.cli(["volume", "show", "v"])).stdout, told);
  const health = await daemon.json<HealthView>(["health"]);
  assert.ok(health.warnings.some(({ code, message }) => code === "volume-degraded" && told.test(message)));
  assert.ok(events.text().includes(`"damagedBytes":${CLUSTER}`), events.text());
  const waited = await daemon.cli(["volume", "hydrate", "v", "--wait"]);
  assert.equal(waited.code, 1, "who waits for it to be complete is told that it won't be");
  assert.match(waited.stderr, told);
  assert.match(waited.stderr, /volume resume/);
  const socket = join(daemon.dataDir, "api.sock");
  const { stdout: metrics } = await execute("curl", ["-fsS", "--unix-socket", socket, "http://localhost/metrics"]);
  assert.match(metrics, new RegExp(`^ullage_hydration_damaged_bytes\\{volume="v"\\} ${CLUSTER}$`, "m"));

  await rename(image, `${image}.gone`);
  await demandAllElse(daemon.uri("v"), disk, dir);
  assert.notEqual((await show(daemon)).hydration.state, "detached");
});

async function launchEvents(t: TestContext, daemon: Daemon): Promise<{ text(): string }> {
  const socket = join(daemon.dataDir, "api.sock");
  const child = spawn("curl", ["-sN", "--unix-socket", socket, "http://localhost/v1/events"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  let text = "";
  child.stdout.on("data", (chunk: Buffer) => (text += chunk.toString()));
  t.after(() => child.kill());
  await new Promise((resolve) => setTimeout(resolve, 500));
  return { text: () => text };
}

const packings: [string, (raw: string, image: string) => unknown][] = [
  ["zstd frames with checksums", (raw, image) => packSeekable(raw, image, 128 * 1024, true)],
  [
    "xz blocks",
    (raw, image) => execute("sh", ["-c", `xz -0 -T1 --block-size=128KiB -c ${raw} > ${image}`], { timeout }),
  ],
];

for (const [what, pack] of packings) {
  void test(`of an image in ${what} of which one is damaged all others are fetched`, async (t) => {
    if (!requireTool(t, "zstd", "xz", "qemu-img")) return;
    const dir = await temporaryDirectory(t);
    const [raw, image] = [join(dir, "raw"), join(dir, "image")];
    const disk = Buffer.from(randomBytes(8 * MiB).toString("hex"));
    await writeFile(raw, disk);
    await pack(raw, image);
    const file = await readFile(image);
    file[Math.floor(file.length / 2) + 1000] ^= 0xff;
    await writeFile(image, file);
    const daemon = await launchDaemon(t);
    await daemon.json(["volume", "create", "v", "--from", image]);
    const { hydration } = await until(
      () => show(daemon),
      (volume) => volume.hydration.state === "waiting",
    );
    const { readyBytes, damagedBytes, damaged: pieces } = hydration;
    assert.deepEqual([readyBytes, damagedBytes, pieces.length], [disk.length - 128 * 1024, 128 * 1024, 1]);
    await rename(image, `${image}.gone`);
    await demandAllElse(daemon.uri("v"), disk, dir, pieces[0]);
  });
}

void test("`image pull` fetches all but a damaged cluster, and says at its end what it could not fetch", async (t) => {
  if (!requireTool(t, "qemu-img")) return;
  const { image } = await damagedImage(t);
  const daemon = await launchDaemon(t);
  const { code, stderr } = await daemon.cli(["image", "pull", image]);
  assert.equal(code, 1);
  assert.match(
    stderr,
    /all was fetched but 65536 bytes of the image that can't be had, the first at byte 4915200: the qcow2/,
  );
  assert.match(stderr, /qemu-img check/);
  const { images } = await daemon.json<{ images: ImageView[] }>(["image", "ls"]);
  assert.deepEqual(
    images.map(({ readyBytes }) => readyBytes),
    [16 * MiB - CLUSTER],
  );
});
