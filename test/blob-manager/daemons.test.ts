import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import type { JobObject } from "../../src/api/job-object.ts";
import { Backends } from "../../src/backend/backends.ts";
import { defaultSourceEntries, sourcePolicy } from "../../src/backend/source-guard.ts";
import { systemClock } from "../../src/base/clock.ts";
import { realFileSystem } from "../../src/base/real-file-system.ts";
import { BlobClaims } from "../../src/daemon/cache/blob-claims.ts";
import { BlobListener } from "../../src/daemon/cache/blob-listener.ts";
import { BlobDaemon } from "../../src/daemon/cache/blob-daemon.ts";
import { BlobService } from "../../src/daemon/cache/blob-service.ts";
import { Sources } from "../../src/daemon/sources/sources.ts";
import type { BlobView, VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { type Daemon, launch, launchDaemon, run } from "../cli/support.ts";
import { atEnd, openUllage, temporaryDirectory } from "../daemon/support.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { type HttpSource, startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import type { Announced } from "./support.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;
const UNIT = 256 * 1024;

async function world(t: TestContext) {
  const directory = await temporaryDirectory(t);
  const cacheDir = join(directory, "cache");
  const manager = () => launch<Announced>(t, ["blobd", "--data", cacheDir]);
  const serve = (name: string) =>
    launchDaemon(t, join(directory, name), ["--blobs", `unix:${join(cacheDir, "blobd.sock")}`]);
  return { directory, cacheDir, manager, serve };
}

const show = (daemon: Daemon, name: string): Promise<VolumeView> => daemon.json(["volume", "show", name]);

async function detached(daemon: Daemon, name: string): Promise<void> {
  const { code, stderr } = await daemon.cli(["volume", "hydrate", name, "--wait"]);
  assert.equal(code, 0, stderr);
}

const compare = (uri: string, file: string) =>
  execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", uri, file], { timeout: 60_000 });

/** How often each unit was sent; the look at an image's beginning when it is found is none of the cache's. */
function timesSent(source: HttpSource, units: number): number[] {
  const times = Array.from({ length: units }, () => 0);
  for (const { start, end, ranged } of source.requests) {
    if (!ranged || end - start < UNIT) continue;
    for (let unit = Math.floor(start / UNIT); unit * UNIT < end; unit++) times[unit]++;
  }
  return times;
}

void test("two daemons on one blob manager read an image at once: the source sends every unit once, and both disks are right", async (t) => {
  if (!requireTool(t, "nbdcopy", "qemu-img")) return;
  const { directory, cacheDir, manager, serve } = await world(t);
  const content = pattern(32 * MiB);
  const image = join(directory, "image.raw");
  writeFileSync(image, content);
  await using source = await startHttpSource({ content, latencyMs: 10, credentials: "user:se-cret" });
  const secret = source.url.replace("http://", "http://user:se-cret@");
  const blobd = await manager();
  const [one, two] = await Promise.all([serve("one"), serve("two")]);
  const create = (daemon: Daemon) =>
    daemon.json<VolumeView>(["volume", "create", "disk", "--from", secret, "--hydrate", "off"]);
  const made = await Promise.all([create(one), create(two)]);
  assert.deepEqual(
    made.map(({ size, state }) => [size, state]),
    [
      [content.length, "ok"],
      [content.length, "ok"],
    ],
  );
  await Promise.all([one, two].map((daemon) => compare(daemon.uri("disk"), image)));
  assert.deepEqual(new Set(timesSent(source, 128)), new Set([1]), "a unit was asked for again, or not at all");
  const blobs = readdirSync(join(cacheDir, "blobs"));
  assert.equal(blobs.length, 1, "one blob for both");
  assert.deepEqual(readdirSync(join(one.dataDir, "blobs")), []);
  const listed = await one.json<{ blobs: BlobView[] }>(["cache", "ls"]);
  assert.deepEqual(
    listed.blobs.map(({ id, volumes, readyBytes }) => ({ id, volumes, readyBytes })),
    [{ id: blobs[0], volumes: ["disk"], readyBytes: content.length }],
  );
  await Promise.all([one, two].map((daemon) => detached(daemon, "disk")));
  // Of the two, the first volume goes; the other one keeps its image, and reads it with the source gone.
  await source.close();
  assert.equal((await one.cli(["volume", "rm", "disk"])).code, 0);
  await compare(two.uri("disk"), image);
  const ends = await Promise.all([one.stop(), two.stop(), blobd.stop()]);
  for (const { code, stdout, stderr } of ends) {
    assert.equal(code, 0, stderr);
    assert.doesNotMatch(stdout + stderr, /se-cret/);
  }
});

void test("kill -9 of the blob manager in the middle is invisible to clients of two daemons, and what they detached stays", async (t) => {
  if (!requireTool(t, "nbdcopy", "qemu-img")) return;
  const { directory, manager, serve } = await world(t);
  const content = pattern(48 * MiB);
  const image = join(directory, "image.raw");
  writeFileSync(image, content);
  await using source = await startHttpSource({ content, latencyMs: 20, bytesPerSecond: 24 * MiB });
  let blobd = await manager();
  const daemons = [await serve("one"), await serve("two")];
  for (const daemon of daemons)
    await daemon.json(["volume", "create", "disk", "--from", source.url, "--hydrate", "off"]);
  const reading = Promise.all(daemons.map((daemon) => compare(daemon.uri("disk"), image)));
  reading.catch(() => undefined);
  for (let kill = 0; kill < 2; kill++) {
    const { bytesServed } = source;
    while (source.bytesServed < bytesServed + 4 * MiB) await new Promise((resolve) => setTimeout(resolve, 10));
    await blobd.stop("SIGKILL");
    blobd = await manager();
  }
  await reading;
  await Promise.all(daemons.map((daemon) => detached(daemon, "disk")));
  await source.close();
  await blobd.stop("SIGKILL");
  blobd = await manager();
  for (const daemon of daemons) {
    await compare(daemon.uri("disk"), image);
    assert.equal((await show(daemon, "disk")).hydration.state, "detached");
  }
});

void test("clones claim the image too; when the last volume of all daemons goes and nothing was read, the blob goes", async (t) => {
  const { cacheDir, manager, serve } = await world(t);
  await using source = await startHttpSource({ content: pattern(4 * MiB) });
  await manager();
  const [one, two] = [await serve("one"), await serve("two")];
  const blobs = () => readdirSync(join(cacheDir, "blobs"));
  await one.json(["volume", "create", "a", "--from", source.url, "--hydrate", "off"]);
  await two.json(["volume", "create", "b", "--from", source.url, "--hydrate", "off"]);
  await one.json(["volume", "create", "c", "--clone", "a"]);
  const claimed = (): string[] => {
    const { claims } = JSON.parse(readFileSync(join(cacheDir, "blob-claims.json"), "utf8")) as {
      claims: Record<string, string[]>;
    };
    return Object.values(claims).flat();
  };
  assert.equal(claimed().length, 3);
  for (const [daemon, name] of [
    [one, "a"],
    [two, "b"],
  ] as const) {
    assert.equal((await daemon.cli(["volume", "rm", name])).code, 0);
    assert.equal(blobs().length, 1, `${name} was not the last one`);
  }
  assert.equal((await one.cli(["volume", "rm", "c"])).code, 0);
  assert.deepEqual(claimed(), []);
  assert.deepEqual(blobs(), []);
});

void test("durability rule 36: a registry's image in a blob manager's cache is compared before a daemon's volume is detached", async (t) => {
  await using registry = await startFakeRegistry();
  const content = pattern(4 * MiB);
  registry.putManifest("disks/vm", "1", artifact(registry.putBlob(content)));
  const directory = await temporaryDirectory(t);
  const log: string[] = [];
  const manager = await BlobDaemon.open({
    dataDir: join(directory, "cache"),
    log: (level, message) => void log.push(`${level} ${message}`),
  });
  atEnd(t, () => manager.close());
  const ullage = await openUllage(t, { blobs: manager.socket });
  content[2 * MiB] ^= 1;
  const from = { source: `oci://${registry.host}/disks/vm:1` };
  await ullage.createVolume({ name: "vm", from });
  const state = async () => (await ullage.showVolume("vm")).hydration.state;
  const until = async (what: string): Promise<void> => {
    for (let tries = 0; (await state()) !== what; tries++) {
      assert.ok(tries < 3000, `never ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
  await until("waiting");
  const { reason, state: volumeState } = await ullage.showVolume("vm");
  assert.equal(volumeState, "degraded");
  assert.match(reason ?? "", /has the digest sha256:[0-9a-f]+, not/);
  assert.match(JSON.stringify(ullage.health()), /"code":"source-wrong-bytes"/);
  while (log.filter((line) => line.includes("not sha256:")).length < 3) {
    await ullage.steerHydration("vm", { state: "running" });
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  content[2 * MiB] ^= 1;
  for (let tries = 0; (await state()) !== "detached"; tries++) {
    assert.ok(tries < 300, "never detached");
    if ((await state()) === "waiting") await ullage.steerHydration("vm", { state: "running" }); // it was given up, perhaps
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  const [blob] = await ullage.listBlobs();
  assert.equal(blob.verified, true);
});

void test("who is let in without being trusted names sources as over TCP; questions are bounded and checked", async (t) => {
  const directory = await temporaryDirectory(t);
  const image = join(directory, "secret.raw");
  writeFileSync(image, pattern(MiB));
  const sources = await Sources.open(
    { fs: realFileSystem, clock: systemClock, dataDir: directory, randomBytes, log: () => undefined },
    new Backends({ policy: sourcePolicy(defaultSourceEntries) }),
  );
  atEnd(t, () => sources.close());
  const claims = await BlobClaims.open(realFileSystem, directory);
  const service = new BlobService(sources, claims, { mayRemove: true });
  const { signal } = new AbortController();
  const asked = { request: { source: image }, guarded: false };
  await assert.rejects(service.answer("find", asked, { trusted: false, signal }), { code: "source-forbidden" });
  assert.deepEqual(((await service.answer("find", asked, { trusted: true, signal })) as { size: number }).size, MiB);
  await assert.rejects(service.answer("toString", {}, { trusted: true, signal }), { code: "not-supported" });
  const stray = { blob: "../../etc", volume: "a".repeat(32) };
  await assert.rejects(service.answer("isPinned", stray, { trusted: true, signal }), { code: "not-found" });
  await assert.rejects(service.answer("claim", stray, { trusted: true, signal }), { code: "not-found" });
  const outside = { volume: "../meta.json", blob: "b".repeat(32) };
  await assert.rejects(service.answer("forget", outside, { trusted: true, signal }), { code: "not-found" });
  await assert.rejects(service.answer("about", stray, { trusted: true, signal }), { code: "not-found" });
});

void test("an image that the manager fetches as a whole shows its progress, as a job that can be cancelled", async (t) => {
  if (!requireTool(t, "curl")) return;
  const { cacheDir, manager, serve } = await world(t);
  const content = randomBytes(6 * MiB);
  await using whole = await startHttpSource({ content, bytesPerSecond: MiB });
  whole.onRequest = () => ({ kind: "ignore-range" });
  await using packed = await startHttpSource({ content: gzipSync(content), bytesPerSecond: MiB });
  await manager();
  const one = await serve("one");
  const ask = async <T>(path: string, method = "GET"): Promise<T> => {
    const socket = join(one.dataDir, "api.sock");
    const { stdout } = await execute("curl", ["-sS", "-X", method, "--unix-socket", socket, `http://x${path}`]);
    return JSON.parse(stdout) as T;
  };
  const jobs = async () => (await ask<{ jobs: JobObject[] }>("/v1/jobs")).jobs;
  for (const [name, source, more] of [
    ["whole", whole, ["--download"]],
    ["packed", packed, []],
  ] as const) {
    const seen = new Set<number>();
    const making = one.json<VolumeView>(["volume", "create", name, "--from", source.url, ...more]);
    making.catch(() => undefined); // met below
    const over = making.then(
      () => true,
      () => true,
    );
    while (!(await Promise.race([over, Promise.resolve(false)]))) {
      const job = (await jobs()).find(({ target }) => target === name);
      if (job?.state === "running") seen.add(job.progress.done);
      if (seen.size > 2) source.limitTo(100 * MiB);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.equal((await making).size, content.length);
    assert.ok(seen.size > 2, `${name}: ${[...seen].join()}`);
    assert.ok([...seen].every((done) => done <= content.length + 64 * 1024));
  }
  const before = readdirSync(join(cacheDir, "blobs")).length;
  await using another = await startHttpSource({ content: gzipSync(randomBytes(6 * MiB)), bytesPerSecond: MiB / 4 });
  const cancelled = one.cli(["volume", "create", "never", "--from", another.url]);
  for (;;) {
    const job = (await jobs()).find(({ target, progress }) => target === "never" && progress.done > 0);
    if (job !== undefined) {
      await ask(`/v1/jobs/${job.id}`, "DELETE");
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.match((await cancelled).stderr, /cancelled: nothing is left of 'never'/);
  // The manager clears away what it had begun, whoever waits for that.
  while (readdirSync(join(cacheDir, "blobs")).length > before) await new Promise((resolve) => setTimeout(resolve, 20));
});

void test("a manager that knows no progress makes images as before", async (t) => {
  const directory = await temporaryDirectory(t);
  const sources = await Sources.open(
    { fs: realFileSystem, clock: systemClock, dataDir: directory, randomBytes, log: () => undefined },
    new Backends({ policy: sourcePolicy(defaultSourceEntries) }),
  );
  atEnd(t, () => sources.close());
  const service = new BlobService(sources, await BlobClaims.open(realFileSystem, directory), { mayRemove: true });
  let asked = 0;
  const answer: BlobService["answer"] = (name, ...more) => {
    if (name === "progress") asked++;
    return service.answer(name === "progress" ? "unknown" : name, ...more);
  };
  const path = join(directory, "blobd.sock");
  const log = (): void => undefined;
  const listener = await BlobListener.open({
    store: sources.cache,
    answerer: { answer },
    dataDir: directory,
    path,
    allowedUsers: [],
    log,
  });
  atEnd(t, () => listener.close());
  await using source = await startHttpSource({ content: gzipSync(randomBytes(2 * MiB)), bytesPerSecond: 2 * MiB });
  const ullage = await openUllage(t, { blobs: path });
  const { size } = await ullage.createVolume({ name: "v", from: { source: source.url } });
  assert.deepEqual([size, asked], [2 * MiB, 1]);
});

void test("a manager that may keep less than the last one throws out at its start what no volume claims", async (t) => {
  const { cacheDir, directory, manager, serve } = await world(t);
  await using first = await startHttpSource({ content: randomBytes(4 * MiB), path: "/a.raw" });
  await using second = await startHttpSource({ content: randomBytes(4 * MiB), path: "/b.raw" });
  const blobd = await manager();
  const one = await serve("one");
  for (const [name, { url }] of [
    ["gone", first],
    ["stays", second],
  ] as const) {
    await one.json(["volume", "create", name, "--from", url]);
    await detached(one, name);
  }
  await one.json(["volume", "rm", "gone"]).catch(() => undefined); // it prints nothing
  assert.equal(readdirSync(join(cacheDir, "blobs")).length, 2);
  await blobd.stop();
  const config = join(directory, "ullage.toml");
  writeFileSync(config, '[cache]\ncapacity = "6M"\n');
  await launch<Announced>(t, ["blobd", "--data", cacheDir, "--config", config]);
  const [{ id }] = (await one.json<{ blobs: BlobView[] }>(["cache", "ls"])).blobs.filter(
    ({ volumes }) => volumes[0] === "stays",
  );
  assert.deepEqual(readdirSync(join(cacheDir, "blobs")), [id]);
});

void test("a data directory's volumes keep to one cache: --blobs can't be left out or put in later", async (t) => {
  const { directory, cacheDir, manager, serve } = await world(t);
  await using source = await startHttpSource({ content: pattern(MiB) });
  await manager();
  const one = await serve("one");
  await one.json(["volume", "create", "a", "--from", source.url]);
  const [{ id }] = (await one.json<{ blobs: BlobView[] }>(["cache", "ls"])).blobs;
  for (const [command, hint] of [
    [["cache", "evict"], /smaller `cache.capacity`.*ullage blobd --config/],
    [["cache", "evict", id], /smaller `cache.capacity`/],
    [["cache", "limit", "--capacity", "1G"], /set `cache.capacity`.*ullage blobd --config/],
    [["cache", "pin", id], /it keeps what volumes need/],
    [["source", "limit", "1M"], /set `sources.limit`.*ullage blobd --config/],
  ] as const) {
    const { code, stderr } = await one.cli([...command]);
    assert.equal(code, 1, command.join(" "));
    assert.match(stderr, /blob manager('s)? at/);
    assert.match(stderr, hint);
  }
  const refused = await one.cli(["volume", "create", "n", "--from", source.url, "--set", "cache=none"]);
  assert.match(refused.stderr, /cache=none is not for a daemon whose cache is a blob manager's/);
  await one.stop();
  const api = ["--api", `unix:${directory}/x.sock`, "--nbd", `unix:${directory}/y.sock`];
  const without = await run(["serve", "--data", one.dataDir, ...api]);
  assert.match(without.stderr, /use the cache of the blob manager at .*\n.*--blobs unix:/);
  const local = join(directory, "local");
  const daemon = await launchDaemon(t, local);
  await daemon.json(["volume", "create", "a", "--from", source.url]);
  await daemon.stop();
  const later = await run(["serve", "--data", local, "--blobs", `unix:${cacheDir}/blobd.sock`, ...api]);
  assert.match(later.stderr, /have their caches in it/);
  assert.equal(existsSync(join(local, "blobs-elsewhere")), false);
  const again = await serve("one");
  await detached(again, "a");
  assert.ok(statSync(cacheDir).isDirectory());
});
