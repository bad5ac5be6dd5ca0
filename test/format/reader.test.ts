import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { requireTool } from "../support/tools.ts";
import { readVolume, type ReadOptions } from "./reader.ts";
import { NotFetched } from "./reader-owners.ts";
import { difference, mixedWrites, World } from "./world.ts";

/** What a stranger reads from the files with docs/FORMAT.md in hand is what clients of the real program saw. */

const tools = ["nbdsh", "nbdcopy"] as const;
const megabyte = 1 << 20;

function same(read: Buffer, truth: Buffer): void {
  assert.equal(difference(read, truth), undefined);
}

/** Every sector has its content as of one of the two. */
function between(read: Buffer, older: Buffer, newer: Buffer): void {
  assert.equal(read.length, newer.length);
  for (let at = 0; at < read.length; at += 512) {
    const sector = read.subarray(at, at + 512);
    const known = [older, newer].some((disk) => sector.equals(disk.subarray(at, at + 512)));
    assert.ok(known, `the sector at byte ${at} was never like that`);
  }
}

const disks = [
  { title: "an empty disk whose last block is cut", image: 0, size: 9 * megabyte + 512 },
  { title: "an image that ends inside a sector, with room behind it", image: 5_000_001, size: 12 * megabyte },
  { title: "an image that is the whole disk", image: 6 * megabyte + 1536, size: undefined },
];

for (const [seed, { title, image, size }] of disks.entries()) {
  void test(`after kill -9 and after a clean stop the files hold the disk: ${title}`, async (t) => {
    if (!requireTool(t, ...tools)) return;
    const world = await World.create(t);
    const bytes = size ?? image;
    await world.serve();
    const from = image > 0 ? ["--from", world.image(image)] : [];
    await world.cli("volume", "create", "v", ...from, ...(size === undefined ? [] : ["--size", String(size)]));
    if (image > 0) await world.cli("volume", "hydrate", "v", "--wait");

    await world.nbdsh("v", `${mixedWrites(seed, 0, bytes)}h.flush()`);
    const flushed = await world.truth("v");
    await world.nbdsh("v", mixedWrites(seed + 100, 0, bytes));
    const acknowledged = await world.truth("v");
    await world.stop("SIGKILL");
    same(world.read("v", { rule: "all" }), acknowledged);
    between(world.read("v"), flushed, acknowledged);

    await world.serve();
    same(await world.truth("v"), acknowledged);
    await world.nbdsh("v", mixedWrites(seed + 200, 0, bytes));
    const last = await world.truth("v");
    await world.stop("SIGTERM");
    same(world.read("v"), last);
    same(world.read("v", { rule: "all" }), last);
  });
}

void test("several lives that were all killed leave what was acknowledged in every one of them", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  await world.cli("volume", "create", "v", "--size", "8M");
  for (let life = 0; life < 3; life++) {
    if (life > 0) await world.serve();
    await world.nbdsh("v", mixedWrites(life, 0, 8 * megabyte));
    const truth = await world.truth("v");
    await world.stop("SIGKILL");
    same(world.read("v", { rule: "all" }), truth);
  }
});

void test("snapshots and clones read as they were taken, after kill -9 and after a clean stop", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  const bytes = 7 * megabyte + 512;
  await world.serve();
  await world.cli("volume", "create", "v", "--from", world.image(3_000_001), "--size", String(bytes));
  await world.cli("volume", "hydrate", "v", "--wait");
  const taken = new Map<string, Buffer>();
  const take = async (name: string): Promise<void> => {
    const [volume] = name.split("@");
    taken.set(name, await world.truth(volume));
    await world.cli("snapshot", "create", name);
  };
  const check = (...options: ReadOptions[]): void => {
    for (const [name, disk] of taken) for (const option of options) same(world.read(name, option), disk);
  };
  await world.nbdsh("v", mixedWrites(1, 0, bytes));
  await take("v@a");
  await world.nbdsh("v", mixedWrites(2, 0, bytes));
  await take("v@b");
  await world.cli("volume", "create", "c", "--snapshot", "v@a", "--size", "8M");
  await world.nbdsh("c", mixedWrites(3, 0, 8 * megabyte));
  await take("c@of-a-clone");
  await world.cli("volume", "resize", "v", "9M");
  await world.nbdsh("v", mixedWrites(4, 0, 9 * megabyte));
  const [volume, clone] = [await world.truth("v"), await world.truth("c")];
  await world.stop("SIGKILL");
  check({ rule: "cut" }, { rule: "all" });
  same(world.read("v", { rule: "all" }), volume);
  same(world.read("c", { rule: "all" }), clone);

  await world.serve();
  same(await world.truth("v"), volume);
  await world.cli("snapshot", "rm", "v@b");
  taken.delete("v@b");
  await world.nbdsh("c", mixedWrites(5, 0, 8 * megabyte));
  const later = await world.truth("c");
  for (const [name, disk] of taken) same(await world.truth(name), disk);
  await world.stop("SIGTERM");
  check({ rule: "cut" });
  same(world.read("v"), volume);
  same(world.read("c"), later);
  assert.throws(() => world.read("v@b"), /0 of the snapshots/);
  await world.check();
});

void test("a map in which every block has another owner than its neighbour is read", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  await world.cli("volume", "create", "v", "--from", world.image(6 * megabyte), "--size", "16M");
  await world.cli("volume", "hydrate", "v", "--wait");
  await world.nbdsh("v", `for b in range(0, 2048, 2): h.pwrite(bytes([b % 251]) * 4096, b * 4096)`);
  await world.nbdsh("v", `for b in range(3000, 4096, 37): h.pwrite(bytes([b % 251]) * 4096, b * 4096)`);
  const truth = await world.truth("v");
  await world.stop("SIGTERM");
  same(world.read("v"), truth);
});

void test("durability rule 4: what a trim freed before it was flushed reads as before or as zeros, nothing else", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  await world.cli("volume", "create", "v", "--from", world.image(2 * megabyte), "--size", "4M");
  await world.cli("volume", "hydrate", "v", "--wait");
  await world.nbdsh("v", "import os\nh.pwrite(os.urandom(3 << 20), 512 << 10)\nh.flush()");
  const before = await world.truth("v");
  await world.nbdsh("v", "h.trim(3 << 20, 512 << 10)");
  const after = await world.truth("v");
  assert.equal(
    after.subarray(512 << 10, 3584 << 10).findIndex((byte) => byte !== 0),
    -1,
    "trimmed: zeros",
  );
  await world.stop("SIGKILL");
  between(world.read("v"), before, after);
  same(world.read("v", { rule: "all" }), after);
});

void test("durability rule 27: a new volume has all its files when its creation is answered", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  await world.cli("volume", "create", "v", "--size", "3000320");
  await world.stop("SIGKILL");
  same(world.read("v"), Buffer.alloc(3_000_320));
  const [layer] = readdirSync(join(world.dataDir, "layers"));
  rmSync(join(world.dataDir, "layers", layer));
  await assert.rejects(world.check(), /layer/);
});

void test("bytes that were never fetched are refused, naming them and their source; those that were are read", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  const image = world.image(2 * megabyte);
  await world.serve();
  await world.cli("volume", "create", "v", "--from", image, "--hydrate", "off");
  await world.nbdsh("v", "h.pread(512 << 10, 0)");
  await world.stop("SIGTERM");
  assert.throws(() => world.read("v"), new RegExp(`bytes \\d+ to \\d+ were not fetched yet: get them from .*${image}`));

  let fetched = 0;
  const read = (): number => readVolume(world.dataDir, "v", (_, bytes) => (fetched += bytes.length));
  assert.throws(read, NotFetched);
  assert.ok(fetched >= 512 << 10, `${fetched} bytes came before`);

  await world.serve();
  await world.nbdsh("v", "h.pwrite(bytes(4096) * 512, 0)");
  await world.stop("SIGTERM");
  same(world.read("v"), Buffer.alloc(2 * megabyte));
});

void test("a full copy is read when the reader is told that it is one", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  const image = world.image(megabyte);
  await world.cli("volume", "create", "v", "--from", image, "--size", "2M");
  await world.cli("volume", "hydrate", "v", "--wait");
  await world.nbdsh("v", mixedWrites(1, 700_000, 2 * megabyte));
  const truth = await world.truth("v");
  await world.stop("SIGTERM");
  const copy = join(world.base, "copy");
  execFileSync("cp", ["-a", "--sparse=always", world.dataDir, copy]);
  rmSync(image);
  assert.throws(() => world.read("v", {}, copy), /range map is of another blob, source or data file/);
  assert.throws(() => world.read("v", { rule: "all", fullCopy: true }, copy), /another boot or is a copy/);
  same(world.read("v", { fullCopy: true }, copy), truth);
});

void test("a volume is found by its id or the name it was created with; a poisoned one is refused", async (t) => {
  if (!requireTool(t, ...tools)) return;
  const world = await World.create(t);
  await world.serve();
  await world.cli("volume", "create", "a", "--size", "4k");
  await world.cli("volume", "create", "b", "--size", "8k");
  await world.stop("SIGTERM");
  assert.equal(world.read("b").length, 8192);
  assert.throws(() => world.read("c"), /0 of the volumes in .* were created as 'c'/);
  for (const id of readdirSync(join(world.dataDir, "volumes"))) {
    const size = readVolume(world.dataDir, id, () => assert.fail("an empty disk has no bytes"));
    assert.ok([4096, 8192].includes(size));
    writeFileSync(join(world.dataDir, "volumes", id, "poison"), "");
  }
  assert.throws(() => world.read("b"), /b is poisoned/);
});
