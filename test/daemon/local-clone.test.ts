import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { appendFileSync, existsSync, readdirSync, statfsSync, statSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { LoopDisk } from "../support/mounts.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;
const size = 64 * MiB + 1536; // neither whole blocks nor whole units

async function world(t: TestContext, kind: "xfs" | "ext4") {
  const reference = join(await temporaryDirectory(t), "reference.raw"); // first: what is closed at the end is, before that
  const disk = new LoopDisk(t, kind, 600 * MiB);
  const image = join(disk.dir, "image.raw");
  const content = randomBytes(size);
  writeFileSync(reference, content);
  writeFileSync(image, content, { mode: 0o444 });
  const dataDir = join(disk.dir, "data");
  const ullage = await openUllage(t, { dataDir, allowSources: ["any"] });
  const socket = join(disk.dir, "nbd.sock");
  await ullage.serveNbd([{ kind: "unix", path: socket }]);
  const free = () => statfsSync(disk.dir).bfree * statfsSync(disk.dir).bsize;
  const compare = (name: string) =>
    execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", `nbd+unix:///${name}?socket=${socket}`, reference], {
      timeout: 60_000,
    });
  const detached = async (name: string): Promise<void> => {
    for (let tries = 0; (await ullage.showVolume(name)).hydration.state !== "detached"; tries++) {
      assert.ok(tries < 3000, "it does not get detached");
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  return { image, ullage, dataDir, free, compare, detached };
}

void test("a raw file of the same file system becomes a volume without being copied, is detached at once, and may change or go", async (t) => {
  if (!requireTool(t, "root", "mount", "mkfs.xfs", "qemu-img")) return;
  const { image, ullage, dataDir, free, compare, detached } = await world(t, "xfs");
  const before = free();
  await ullage.createVolume({ name: "disk", from: { source: image } });
  const [blob] = await ullage.listBlobs();
  assert.equal(blob.readyBytes, size, "everything is here before anybody reads");
  assert.equal(blob.foregroundBytes + blob.backgroundBytes + blob.readaheadBytes, 0);
  await detached("disk");
  assert.ok(before - free() < 16 * MiB, `${before - free()} bytes were taken`);
  assert.equal(statSync(join(dataDir, "blobs", blob.id, "data")).mode & 0o777, 0o600);
  await execute("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=8", "conv=notrunc"], { timeout: 60_000 });
  await compare("disk");
  unlinkSync(image);
  await compare("disk");
});

void test("a raw file of a file system that shares no space is read as ever; nothing is left of the attempt", async (t) => {
  if (!requireTool(t, "root", "mount", "qemu-img")) return;
  const { image, ullage, dataDir, compare, detached } = await world(t, "ext4");
  await ullage.createVolume({ name: "disk", from: { source: image } });
  await compare("disk");
  await detached("disk");
  const blobs = await ullage.listBlobs();
  assert.deepEqual(
    readdirSync(join(dataDir, "blobs")),
    blobs.map(({ id }) => id),
  );
  assert.ok(blobs[0].foregroundBytes + blobs[0].backgroundBytes + blobs[0].readaheadBytes >= size);
});

void test("a clone of a file that has changed since it was pinned does not count, and one on another file system is not made", async (t) => {
  if (!requireTool(t, "root", "mount", "mkfs.xfs")) return;
  const disk = new LoopDisk(t, "xfs", 600 * MiB);
  const image = join(disk.dir, "image.raw");
  writeFileSync(image, randomBytes(MiB));
  const backend = new LocalFileBackend(image);
  const { identity } = await backend.probe(0);
  const elsewhere = join(await temporaryDirectory(t), "clone");
  assert.equal(await backend.cloneTo(identity, elsewhere), false);
  assert.equal(existsSync(elsewhere), false);
  assert.equal(await backend.cloneTo(identity, join(disk.dir, "clone")), true);
  appendFileSync(image, "more");
  await assert.rejects(backend.cloneTo(identity, join(disk.dir, "late")), { code: "source-changed" });
  await backend.close();
});
