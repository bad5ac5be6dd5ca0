import assert from "node:assert/strict";
import { link, mkdir, mkdtemp, rename, rm, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import type { Backend, Identity, Sink } from "../../src/backend/backend.ts";
import { timedOut } from "../../src/backend/source-errors.ts";
import { AlternativesBackend } from "../../src/backend/wrappers/alternatives.ts";
import { collect, failsWith, openBackend, pattern, readBytes } from "./support.ts";

let directory: string;
let first: string;
let second: string;
let backend: Backend;
const content = pattern(300_001);
const tried = { attempts: 1, baseMs: 0, capMs: 0, timeLimitMs: 0 };

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "ullage-alternatives-"));
  [first, second] = ["first", "second"].map((name) => join(directory, name));
  for (const each of [first, second]) await mkdir(each);
  backend = openBackend(join(first, "disk.img"), {
    settings: [{ prefix: `${first}/`, alternatives: [`${second}/`] }],
    retry: { probe: tried, foreground: tried, background: tried },
  });
});
afterEach(async () => {
  await backend.close();
  await rm(directory, { recursive: true });
});

void test("a file that is not in the first directory is found in the next one", async () => {
  await writeFile(join(second, "disk.img"), content);
  const { identity, head } = await backend.probe(512);
  assert.deepEqual(head, content.subarray(0, 512));
  assert.equal(backend.url, join(first, "disk.img"));
  assert.deepEqual(await readBytes(backend, identity, 7, 200_000), content.subarray(7, 200_007));
});

void test("the first directory goes first", async () => {
  await writeFile(join(first, "disk.img"), content);
  await writeFile(join(second, "disk.img"), "another");
  const { identity } = await backend.probe(512);
  assert.equal(identity.size, content.length);
});

void test("a file that is reached by another path is read on from there, and the one of that name is never taken for it", async () => {
  await writeFile(join(first, "disk.img"), content);
  await link(join(first, "disk.img"), join(second, "disk.img"));
  const { identity } = await backend.probe(512);
  await rename(first, join(directory, "gone"));
  assert.deepEqual(await readBytes(backend, identity, 0, 1000), content.subarray(0, 1000));
  await mkdir(first);
  await writeFile(join(first, "disk.img"), pattern(content.length, 9));
  assert.deepEqual(await readBytes(backend, identity, 0, 1000), content.subarray(0, 1000));
  await unlink(join(second, "disk.img"));
  await writeFile(join(second, "disk.img"), content);
  const error = await failsWith("source-changed", readBytes(backend, identity, 0, 1000));
  assert.match(error.message, /first\/disk\.img has changed/);
  assert.match(error.hint ?? "", /elsewhere: .*second\/disk\.img/);
});

void test("what is in none of them is told with all places", async () => {
  const error = await failsWith("source-not-found", backend.probe(512));
  assert.match(error.message, /first\/disk\.img/);
  assert.match(error.hint ?? "", /elsewhere: .*second\/disk\.img/);
  assert.equal(error.transient, false);
});

/** Answers with as many bytes as it is said, and then not at all. */
function stopsAfter(bytes: number): Backend & { asked: number[] } {
  const asked: number[] = [];
  const read = async (_: Identity, offset: number, length: number, sink: Sink): Promise<void> => {
    asked.push(offset);
    await sink(content.subarray(offset, offset + Math.min(bytes, length)));
    if (bytes < length) throw timedOut("it does not answer");
  };
  const stream = (identity: Identity, sink: Sink): Promise<void> => read(identity, 0, identity.size, sink);
  const probe = (): Promise<never> => Promise.reject(timedOut("it does not answer"));
  return { url: "/disk.img", asked, probe, read, stream, close: () => Promise.resolve() };
}

void test("a read goes on elsewhere behind the last byte that came, and the next one begins there", async () => {
  const places = [stopsAfter(1000), stopsAfter(Infinity)];
  const both = new AlternativesBackend(places);
  const identity = { size: content.length, version: "file:1:2:3", strong: true };
  assert.deepEqual(await readBytes(both, identity, 0, 5000), content.subarray(0, 5000));
  await readBytes(both, identity, 8000, 10);
  assert.deepEqual(
    places.map(({ asked }) => asked),
    [[0], [1000, 8000]],
  );
  const error = await failsWith("source-timeout", new AlternativesBackend([stopsAfter(0), stopsAfter(0)]).probe(1));
  assert.equal(error.transient, true);
});

void test("a stream does not begin anew once there are bytes of it", async () => {
  const places = [stopsAfter(1000), stopsAfter(Infinity)];
  const identity = { size: content.length, version: "file:1:2:3", strong: true };
  const collector = collect();
  await failsWith("source-timeout", new AlternativesBackend(places).stream(identity, collector.sink));
  assert.equal(collector.bytes().length, 1000);
  assert.deepEqual(places[1].asked, []);
});
