import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { describeError, type UllageError } from "../../src/base/errors.ts";
import { pattern } from "../backend/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { requireTool } from "../support/tools.ts";
import { openUllage, temporaryDirectory } from "./support.ts";

const execute = promisify(execFile);
const MiB = 1024 * 1024;

/** Bytes that the caches take on disk. */
function cachedBytes(dataDir: string): number {
  const blobs = join(dataDir, "blobs");
  return readdirSync(blobs).reduce((sum, id) => sum + statSync(join(blobs, id, "data")).blocks * 512, 0);
}

void test("cache=none: the disk is read through, whole and over several connections, and nothing of it is on this disk; writes stay", async (t) => {
  if (!requireTool(t, "nbdcopy", "qemu-io", "qemu-img")) return;
  const directory = await temporaryDirectory(t);
  const content = pattern(200 * MiB + 512);
  await using source = await startHttpSource({ content });
  const dataDir = join(directory, "data");
  const image = join(directory, "image.raw");
  const copy = join(directory, "copy.raw");
  writeFileSync(image, content);
  const serve = async () => {
    const ullage = await openUllage(t, { dataDir, allowSources: ["any"] });
    await ullage.serveNbd([{ kind: "unix", path: join(directory, "nbd.sock") }]);
    return ullage;
  };
  let ullage = await serve();
  const uri = `nbd+unix:///through?socket=${join(directory, "nbd.sock")}`;
  const made = await ullage.createVolume({
    name: "through",
    from: { source: source.url },
    settings: { cache: "none" },
  });
  assert.deepEqual([made.settings.cache, made.settings.hydrate, made.hydration.state], ["none", "off", "none"]);
  await execute("nbdcopy", ["--connections=4", uri, copy], { timeout: 120_000 });
  await execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, copy], { timeout: 120_000 });
  assert.equal(cachedBytes(dataDir), 0);
  const [blob] = await ullage.listBlobs();
  assert.equal(blob.diskBytes, 0);
  assert.ok(blob.readyBytes <= 128 * MiB, `${blob.readyBytes} bytes are kept in memory`);
  await execute("qemu-io", ["-f", "raw", "-c", "write -P 0x77 1049088 512", "-c", "flush", uri], { timeout: 60_000 });
  await ullage.close();
  ullage = await serve();
  const read = ["-c", "read -P 0x77 1049088 512", "-c", "read 150M 1M", uri];
  const { stdout } = await execute("qemu-io", ["-f", "raw", ...read], { timeout: 60_000 });
  assert.doesNotMatch(stdout, /failed|error/i);
  assert.equal((await ullage.showVolume("through")).hydration.state, "none");
  assert.equal(cachedBytes(dataDir), 0);
  // With a cache it is another blob, and the one without stays out of it.
  await ullage.createVolume({ name: "kept", from: { source: source.url }, settings: { hydrate: "off" } });
  const kinds = (await ullage.listBlobs()).map(({ cache, volumes }) => `${cache}: ${volumes.join()}`);
  assert.deepEqual(kinds.sort(), ["none: through", "shared: kept"]);
  await ullage.removeVolume("through");
  assert.equal((await ullage.listBlobs()).length, 1);
});

void test("cache=none: what contradicts it is refused and says why; a clone reads as its origin does", async (t) => {
  const content = pattern(2 * MiB);
  await using source = await startHttpSource({ content });
  await using packed = await startHttpSource({ content: gzipSync(content) });
  const ullage = await openUllage(t, { allowSources: ["any"] });
  const none = { cache: "none" } as const;
  const from = { source: source.url };
  const refused = { code: "not-cached" };
  await assert.rejects(ullage.createVolume({ name: "a", from, settings: { ...none, hydrate: "auto" } }), refused);
  await assert.rejects(ullage.createVolume({ name: "a", from: { ...from, download: true }, settings: none }), refused);
  await assert.rejects(ullage.createVolume({ name: "a", from: { source: packed.url }, settings: none }), refused);
  await assert.rejects(ullage.createVolume({ name: "a", size: MiB, settings: none }), refused);
  await ullage.createVolume({ name: "a", from, settings: none });
  await assert.rejects(ullage.steerHydration("a", { state: "running" }), refused);
  await assert.rejects(ullage.changeVolume("a", { settings: { hydrate: "auto" } }), refused);
  await assert.rejects(ullage.changeVolume("a", { settings: { cache: "shared" } }), refused);
  const [blob] = await ullage.listBlobs();
  await assert.rejects(ullage.cache.setPinned(blob.id, true), refused);
  await assert.rejects(ullage.createVolume({ name: "b", from: { volume: "a" }, settings: none }), refused);
  const clone = await ullage.createVolume({ name: "b", from: { volume: "a" } });
  assert.deepEqual([clone.settings.cache, clone.settings.hydrate], ["none", "off"]);
  assert.equal(
    (await ullage.changeVolume("a", { settings: { cache: "none", sync: "always" } })).settings.sync,
    "always",
  );
});

void test("cache=none for a prefix in the configuration: what is made from there has no cache, unless the request wants one", async (t) => {
  const content = pattern(2 * MiB);
  await using source = await startHttpSource({ content });
  await using packed = await startHttpSource({ content: gzipSync(content) });
  const from = { source: source.url };
  const directory = await temporaryDirectory(t);
  writeFileSync(join(directory, "disk"), content);
  const prefix = `${new URL(source.url).origin}/`;
  const sourceSettings = [
    { prefix, cache: "none" },
    { prefix: packed.url, cache: "none" },
    { prefix: `${source.url}?kept`, cache: "shared" },
    { prefix: directory, cache: "none" },
  ] as const;
  const ullage = await openUllage(t, { allowSources: ["any"], sourceSettings });
  const { settings, hydration } = await ullage.createVolume({ name: "a", from });
  assert.deepEqual([settings.cache, settings.hydrate, hydration.state], ["none", "off", "none"]);
  const wanted = await ullage.createVolume({ name: "b", from, settings: { cache: "shared" } });
  assert.deepEqual([wanted.settings.cache, wanted.settings.hydrate], ["shared", "auto"]);
  const below = await ullage.createVolume({ name: "c", from: { source: `${source.url}?kept` } });
  assert.equal(below.settings.cache, "shared");
  const ofFile = await ullage.createVolume({ name: "file", from: { source: join(directory, "disk") } });
  assert.equal(ofFile.settings.cache, "none");
  // What contradicts it is refused, and says that the configuration is why.
  const refused = (prefixed: string) => (error: UllageError) => {
    assert.match(
      error.message,
      new RegExp(`^the configuration has cache=none for ${prefixed.replaceAll(".", "\\.")}$`),
    );
    assert.match(describeError(error), /: .*with cache=none nothing/);
    assert.match(error.hint!, /cache=shared/);
    return error.code === "not-cached";
  };
  const elsewhere = { source: packed.url };
  await assert.rejects(ullage.createVolume({ name: "d", from, settings: { hydrate: "auto" } }), refused(prefix));
  await assert.rejects(ullage.createVolume({ name: "d", from: { ...from, download: true } }), refused(prefix));
  await assert.rejects(ullage.createVolume({ name: "d", from: elsewhere }), refused(packed.url));
  await assert.rejects(ullage.cache.pull(from, false), {
    code: "not-cached",
    message: `the configuration has cache=none for ${prefix}`,
  });
  const unpacked = await ullage.createVolume({ name: "d", from: elsewhere, settings: { cache: "shared" } });
  assert.equal(unpacked.size, content.length);
  // It is about sources alone.
  assert.equal((await ullage.createVolume({ name: "e", size: MiB })).settings.cache, "shared");
  assert.equal((await ullage.createVolume({ name: "f", from: { volume: "b" } })).settings.cache, "shared");
});
