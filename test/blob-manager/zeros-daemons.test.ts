import assert from "node:assert/strict";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import type { BlobView } from "../../src/daemon/views.ts";
import { launch, launchDaemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import {
  data,
  demandTold,
  grain,
  grains,
  MiB,
  run,
  size,
  writeDisk,
  zeroShare,
  zerosAsNbdinfoTells,
  zerosInBlocks,
} from "../support/sparse-disk.ts";
import { requireTool } from "../support/tools.ts";
import { type Announced, until } from "./support.ts";

/* Zeros of images, as clients of daemons are told that use the cache of a blob manager, with all of them processes. */

const everythingIsData = grains([{ offset: 0, length: size, zero: false }]);

/** A sparse qcow2 image behind HTTP, and ways to start a manager and daemons. */
async function world(t: TestContext) {
  const directory = await temporaryDirectory(t);
  const [raw, image, copy] = ["raw", "image", "copy"].map((file) => join(directory, file));
  writeDisk(raw, data);
  await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image);
  const source = await startHttpSource({ content: image });
  t.after(() => source[Symbol.asyncDispose]());
  const cacheDir = join(directory, "cache");
  const manager = () => launch<Announced>(t, ["blobd", "--data", cacheDir]);
  const serve = (name: string) =>
    launchDaemon(t, join(directory, name), ["--blobs", `unix:${join(cacheDir, "blobd.sock")}`]);
  return { raw, copy, source, manager, serve };
}

void test("the map of a cold volume is its image's own through a blob manager, asked of the source once for all daemons, and a copy fetches what has data", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "nbdcopy")) return;
  const { raw, copy, source, manager, serve } = await world(t);
  await manager();
  const [one, two] = [await serve("one"), await serve("two")];
  for (const daemon of [one, two]) {
    await daemon.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  }
  const told = zerosInBlocks(data, grain);
  await demandTold(one.uri("v"), told);
  const asked = source.requestCount;
  await demandTold(two.uri("v"), told);
  assert.equal(source.requestCount, asked, "the manager knew");
  const [{ readyBytes }] = (await one.json<{ blobs: BlobView[] }>(["cache", "ls"])).blobs;
  assert.equal(readyBytes, 0, "nothing was fetched for it");
  const before = source.bytesServed;
  await run("nbdcopy", one.uri("v"), copy);
  assert.ok(source.bytesServed - before < 32 * MiB, `${source.bytesServed - before}`);
  assert.match(await run("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, copy), /identical/);
  // Zeros can be read without the source, before they were fetched.
  await source.close();
  await run("qemu-io", "-f", "raw", "-r", "-c", `read -P 0 ${2000 * MiB} 4M`, two.uri("v"));
});

void test("kill -9 of the manager in the middle of a question: what it would have told is told as data, reads go on, and the next manager tells", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "qemu-io")) return;
  const { source, manager, serve } = await world(t);
  let blobd = await manager();
  const one = await serve("one");
  await one.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  const read = () => run("qemu-io", "-f", "raw", "-r", "-c", "read 0 64k", one.uri("v"));
  await read();
  await blobd.stop();
  blobd = await manager(); // it has what was read, and knows nothing of the tables
  source.onRequest = () => ({ kind: "stall" });
  const asked = source.requestCount;
  const told = zerosAsNbdinfoTells(one.uri("v"));
  await until("the tables were asked for", () => source.requestCount > asked);
  await blobd.stop("SIGKILL");
  assert.equal(await told, everythingIsData);
  assert.doesNotMatch(await read(), /failed|error/i);
  assert.equal(await zerosAsNbdinfoTells(one.uri("v")), everythingIsData, "while there is no manager");
  source.onRequest = undefined;
  await manager();
  await demandTold(one.uri("v"), zerosInBlocks(data, grain));
});

void test("what a killed manager has told is told on, until the next one is there", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo")) return;
  const { source, manager, serve } = await world(t);
  const blobd = await manager();
  const one = await serve("one");
  await one.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  const told = zerosInBlocks(data, grain);
  await demandTold(one.uri("v"), told);
  await blobd.stop("SIGKILL");
  assert.equal(await zerosAsNbdinfoTells(one.uri("v")), told);
});

void test("while the manager is stopped in its tracks a block status is answered, as data, and cached ranges are read", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo", "qemu-io")) return;
  const { source, manager, serve } = await world(t);
  const blobd = await manager();
  const one = await serve("one");
  await one.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  const read = () => run("qemu-io", "-f", "raw", "-r", "-c", "read 0 64k", one.uri("v"));
  await read();
  const { pid } = blobd.announced;
  process.kill(pid, "SIGSTOP");
  try {
    assert.equal(await zerosAsNbdinfoTells(one.uri("v")), everythingIsData);
    assert.doesNotMatch(await read(), /failed|error/i);
  } finally {
    process.kill(pid, "SIGCONT");
  }
});

void test("of a blob that is complete the next manager tells zeros from its cache, with the source gone", async (t) => {
  if (!requireTool(t, "qemu-img", "nbdinfo")) return;
  const { source, manager, serve } = await world(t);
  const blobd = await manager();
  const one = await serve("one");
  await one.json(["volume", "create", "v", "--from", source.url]);
  const { code, stderr } = await one.cli(["volume", "hydrate", "v", "--wait"]);
  assert.equal(code, 0, stderr);
  await one.stop();
  await blobd.stop("SIGKILL");
  await source.close();
  await manager();
  const again = await serve("one");
  const share = zeroShare(await zerosAsNbdinfoTells(again.uri("v")));
  assert.ok(share > 0.99, `${share}`);
});
