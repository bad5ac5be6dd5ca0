import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { BlobView, CacheView, ImageView, VolumeView } from "../../src/daemon/views.ts";
import { type HttpSource, startHttpSource } from "../support/http-source.ts";
import { launchDaemon, type Daemon } from "./support.ts";

const MiB = 2 ** 20;

/** Reads the first 4 MiB, which must all be `byte`. */
async function read(daemon: Daemon, byte: number): Promise<void> {
  await promisify(execFile)("qemu-io", ["-r", "-f", "raw", "-c", `read -P ${byte} 0 4M`, daemon.uri("v")]);
}

async function blobs(daemon: Daemon): Promise<BlobView[]> {
  return (await daemon.json<{ blobs: BlobView[] }>(["cache", "ls"])).blobs;
}

void test("an image is pulled before a volume is made from it, which then asks the source for nothing", async (t) => {
  const daemon = await launchDaemon(t);
  await using source = await startHttpSource({ content: Buffer.alloc(4 * MiB, 7) });
  const image = await daemon.json<ImageView>(["image", "pull", source.url]);
  assert.deepEqual([image.readyBytes, image.volumes], [4 * MiB, []]);
  const { bytesServed } = source;
  assert.ok(bytesServed >= 4 * MiB);
  await daemon.json(["volume", "create", "v", "--from", source.url]);
  await read(daemon, 7);
  assert.ok(source.bytesServed < bytesServed + 64 * 1024, "but for the look at what the source is now");
  assert.match((await daemon.cli(["image", "rm", source.url])).stderr, /volumes v were made from this image/);
  await daemon.json(["volume", "rm", "v"]);
  assert.equal((await blobs(daemon)).length, 1, "it stays for the next volume");
  assert.match((await daemon.cli(["image", "rm", source.url])).stdout, /gone from the cache/);
  assert.deepEqual(await blobs(daemon), []);
});

void test("the cache is bounded, live, and what is kept stays beyond the volumes that needed it", async (t) => {
  const daemon = await launchDaemon(t);
  const sources: HttpSource[] = [];
  for (let each = 0; each < 3; each++) {
    const source = await startHttpSource({ content: Buffer.alloc(2 * MiB, each + 1) });
    sources.push(source);
    await daemon.json(["image", "pull", source.url]);
  }
  t.after(() => Promise.all(sources.map((source) => source[Symbol.asyncDispose]())));
  const before = await daemon.json<CacheView>(["cache", "stat"]);
  assert.deepEqual([before.blobs, before.capacityBytes], [3, null]);
  assert.ok(before.diskBytes >= 6 * MiB);
  const oldest = (await blobs(daemon)).find((blob) => blob.source === sources[0].url)!;
  const kept = await daemon.json<BlobView>(["cache", "pin", oldest.id.slice(0, 12)]);
  assert.equal(kept.kept, true);
  assert.match((await daemon.cli(["cache", "evict", oldest.id])).stderr, /keeps or reads blob/);
  const limited = await daemon.json<CacheView>(["cache", "limit", "--capacity", "5M"]);
  assert.equal(limited.capacityBytes, 5 * MiB);
  const left = await blobs(daemon);
  assert.deepEqual(left.map((blob) => blob.source).sort(), [sources[0].url, sources[2].url].sort());
  await daemon.json(["cache", "unpin", oldest.id]);
  const { freedBytes } = await daemon.json<{ freedBytes: number }>(["cache", "evict"]);
  assert.ok(freedBytes >= 4 * MiB);
  assert.deepEqual(await blobs(daemon), []);
});

void test("a pull throws out what nobody needs, and ends where the cache has no room, with what it has", async (t) => {
  const daemon = await launchDaemon(t);
  await using small = await startHttpSource({ content: Buffer.alloc(4 * MiB, 1) });
  await using large = await startHttpSource({ content: Buffer.alloc(64 * MiB, 2) });
  await daemon.json(["image", "pull", small.url]);
  await daemon.json(["cache", "limit", "--capacity", "8M"]);
  const pulled = await daemon.cli(["image", "pull", large.url]);
  assert.equal(pulled.code, 1);
  assert.match(pulled.stderr, /the cache has as many bytes as its capacity allows/);
  assert.match(pulled.stderr, /cache limit/);
  const left = await blobs(daemon);
  assert.deepEqual(
    left.map(({ source }) => source),
    [large.url],
  );
  assert.ok(left[0].readyBytes >= 4 * MiB && left[0].readyBytes <= 24 * MiB, `${left[0].readyBytes}`);
});

void test("of a volume that wants only what it reads ranges go, and are fetched again; of others none do", async (t) => {
  const daemon = await launchDaemon(t);
  await using source = await startHttpSource({ content: Buffer.alloc(4 * MiB, 9) });
  await daemon.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  await read(daemon, 9);
  const [blob] = await blobs(daemon);
  const { freedBytes } = await daemon.json<{ freedBytes: number }>(["cache", "evict", blob.id]);
  assert.ok(freedBytes >= 3 * MiB, `${freedBytes}`);
  await read(daemon, 9);
  await daemon.json(["volume", "hydrate", "v", "--wait"]);
  assert.match((await daemon.cli(["cache", "evict", blob.id])).stderr, /volumes v need blob/);
  assert.equal((await daemon.json<VolumeView>(["volume", "show", "v"])).fetchedBytes, 4 * MiB);
});

void test("hydration pauses at the cache's capacity and goes on when there is more", async (t) => {
  const daemon = await launchDaemon(t, undefined, ["--cache-capacity", "1M"]);
  await using source = await startHttpSource({ content: Buffer.alloc(128 * MiB, 3) });
  await daemon.json(["volume", "create", "v", "--from", source.url]);
  const hydration = async (): Promise<string> => {
    const { state, reason } = (await daemon.json<VolumeView>(["volume", "show", "v"])).hydration;
    return `${state} ${reason}`;
  };
  for (let tries = 0; (await hydration()) !== "paused no-space"; tries++) assert.ok(tries < 200, await hydration());
  await daemon.json(["cache", "limit", "--capacity", "none"]);
  await daemon.json(["volume", "hydrate", "v", "--wait"]);
});

void test("what is wrong with a change of the cache is said, and nothing changes", async (t) => {
  const daemon = await launchDaemon(t);
  const cases: [string[], number, RegExp][] = [
    [["cache", "limit"], 2, /nothing to change/],
    [["cache", "limit", "--capacity", "lots"], 2, /is not a size/],
    [["cache", "limit", "--reserve", "101"], 2, /percentage/],
    [["cache", "evict", "abcd"], 1, /no blob 'abcd'/],
    [["cache", "pin", "abcd"], 1, /no blob 'abcd'/],
    [["image", "rm", "nothing"], 1, /no image 'nothing'/],
    [["image", "pull", "/no/such/file"], 1, /no such file|does not exist|ENOENT/i],
  ];
  for (const [args, code, message] of cases) {
    const result = await daemon.cli(args);
    assert.equal(result.code, code, `${args.join(" ")}: ${result.stderr}`);
    assert.match(result.stderr, message);
  }
  assert.ok(!existsSync(join(daemon.dataDir, "blobs", "abcd")));
});
