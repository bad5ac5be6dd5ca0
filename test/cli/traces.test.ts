import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { BootTrace } from "../../src/blob/boot-trace.ts";
import type { ImageView, VolumeView } from "../../src/daemon/views.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { launchDaemon, type Daemon } from "./support.ts";

const MiB = 2 ** 20;

async function read(daemon: Daemon, ...offsets: number[]): Promise<void> {
  const commands = offsets.flatMap((offset) => ["-c", `read ${offset * MiB} 4k`]);
  await promisify(execFile)("qemu-io", ["-r", "-f", "raw", ...commands, daemon.uri("v")]);
}

void test("what one disk read first is what the next one fetches first, in that order, on another host too", async (t) => {
  const directory = await temporaryDirectory(t);
  await using source = await startHttpSource({ content: Buffer.alloc(64 * MiB, 5) });
  const first = await launchDaemon(t, join(directory, "one"));
  await first.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  await first.json(["image", "trace", "record", "v", "--seconds", "600"]);
  await read(first, 50, 10, 30, 10);
  await first.json(["volume", "rm", "v"]); // ends the recording
  const file = join(directory, "boot.json");
  assert.match((await first.cli(["image", "trace", "export", source.url, file])).stdout, /3 reads are in/);
  const trace = JSON.parse(await readFile(file, "utf8")) as BootTrace;
  assert.deepEqual(
    trace.reads.map(([, offset]) => offset / MiB),
    [50, 10, 30],
  );

  const second = await launchDaemon(t, join(directory, "two"));
  await second.json(["volume", "create", "other", "--from", source.url, "--hydrate", "off"]);
  const before = source.requestCount;
  await second.json<ImageView>(["image", "trace", "replay", source.url, file]);
  assert.deepEqual(new Set(source.requests.slice(before).map(({ start }) => start / MiB)), new Set([50, 10, 30]));

  const third = await launchDaemon(t, join(directory, "three"));
  await third.json(["image", "pull", source.url]);
  await third.json(["image", "trace", "replay", source.url, file]);
  await third.json(["cache", "evict"]); // the trace is the image's, not the blob's
  source.latencyMs = 5;
  const from = source.requestCount;
  await third.json(["volume", "create", "v", "--from", source.url]);
  await third.json(["volume", "hydrate", "v", "--wait"]);
  const starts = source.requests.slice(from).map(({ start }) => start / MiB);
  const asked = starts.filter((start) => start > 1);
  assert.deepEqual(new Set(asked.slice(0, 3)), new Set([50, 10, 30]), asked.slice(0, 8).join(" "));
});

void test("a new volume's first reads are noted by themselves, when nothing is known of its image", async (t) => {
  const daemon = await launchDaemon(t);
  await using source = await startHttpSource({ content: Buffer.alloc(64 * MiB, 5) });
  await daemon.json(["volume", "create", "v", "--from", source.url]);
  await read(daemon, ...Array.from({ length: 20 }, (_, index) => 60 - 3 * index));
  await daemon.json(["volume", "hydrate", "v", "--wait"]);
  assert.equal((await daemon.json<VolumeView>(["volume", "show", "v"])).hydration.state, "detached");
  assert.match((await daemon.cli(["image", "trace", "export", source.url, "-"])).stderr, /nothing is known/);
  await daemon.json(["volume", "rm", "v"]);
  const { stdout } = await daemon.cli(["image", "trace", "export", source.url, "-"]);
  const { reads } = JSON.parse(stdout) as BootTrace;
  assert.deepEqual(
    reads.map(([, offset]) => offset / MiB),
    Array.from({ length: 20 }, (_, index) => 60 - 3 * index),
  );
});

void test("a trace that is none, or of another image, is refused, and nothing changes", async (t) => {
  const daemon = await launchDaemon(t);
  const directory = await temporaryDirectory(t);
  await using source = await startHttpSource({ content: Buffer.alloc(MiB, 5) });
  await daemon.json(["volume", "create", "v", "--from", source.url, "--hydrate", "off"]);
  await daemon.json(["volume", "create", "empty", "--size", "1M"]);
  const file = join(directory, "t.json");
  const recordedAt = new Date().toISOString();
  const cases: [unknown, RegExp][] = [
    ["{", /can't be read as a trace/],
    [{ imageBytes: 2 * MiB, recordedAt, reads: [] }, /image of 2097152 bytes/],
    [{ imageBytes: MiB, recordedAt, reads: [[0, MiB, 1]] }, /no read of the image/],
    [{ imageBytes: MiB, recordedAt, reads: [[0, 0]] }, /must NOT have fewer than 3 items/],
    [{ imageBytes: MiB, recordedAt: "yesterday", reads: [] }, /format "date-time"|not what/],
  ];
  for (const [content, message] of cases) {
    await writeFile(file, typeof content === "string" ? content : JSON.stringify(content));
    const { code, stderr } = await daemon.cli(["image", "trace", "replay", source.url, file]);
    assert.equal(code, 1, stderr);
    assert.match(stderr, message);
  }
  assert.match((await daemon.cli(["image", "trace", "record", "empty"])).stderr, /was made empty/);
  assert.match((await daemon.cli(["image", "trace", "record", "nobody"])).stderr, /no volume 'nobody'/);
  assert.equal((await daemon.cli(["image", "trace", "record", "v", "--seconds", "0"])).code, 2);
});
