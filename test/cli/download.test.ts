import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import type { JobObject } from "../../src/api/job-object.ts";
import type { VolumeView } from "../../src/daemon/views.ts";
import { startHttpSource } from "../support/http-source.ts";
import { launchDaemon } from "./support.ts";

const ullage = join(import.meta.dirname, "../../bin/ullage");
const content = Buffer.alloc(2 ** 20, 1);

void test("Ctrl-C cancels a download, and nothing of it is left", async (t) => {
  await using source = await startHttpSource({ content });
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "stall", after: 2 ** 19 });
  const daemon = await launchDaemon(t);
  const child = spawn("sh", [ullage, "volume", "create", "v", "--from", source.url, "--download"], {
    env: { ...process.env, ULLAGE_API: `unix:${daemon.dataDir}/api.sock` },
  });
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (chunk: Buffer) => (stdout += chunk.toString()));
  child.stderr.on("data", (chunk: Buffer) => (stderr += chunk.toString()));
  while (!stdout.includes("of 1M")) await once(child.stdout, "data");
  child.kill("SIGINT");
  const [code] = (await once(child, "close")) as [number | null];
  assert.equal(code, 1);
  assert.match(stderr, /^ullage: cancelled: nothing is left of 'v'\n$/);
  assert.deepEqual((await daemon.json<{ volumes: VolumeView[] }>(["volume", "ls"])).volumes, []);
  assert.deepEqual(await readdir(join(daemon.dataDir, "blobs")), []);
});

void test("a download prints its volume with --json, and its problem when it fails", async (t) => {
  await using source = await startHttpSource({ content });
  source.onRequest = () => ({ kind: "ignore-range" });
  const daemon = await launchDaemon(t);
  const volume = await daemon.json<VolumeView>(["volume", "create", "v", "--from", source.url, "--download"]);
  assert.deepEqual([volume.name, volume.state, volume.fetchedBytes], ["v", "ok", content.length]);
  // The image is here: there is nothing to wait for.
  const again = await daemon.json<VolumeView | JobObject>([
    "volume",
    "create",
    "w",
    "--from",
    source.url,
    "--download",
  ]);
  assert.deepEqual([(again as VolumeView).name, (again as VolumeView).state], ["w", "ok"]);

  source.etag = '"another"';
  source.onRequest = ({ ranged }) => (ranged ? { kind: "ignore-range" } : { kind: "status", status: 404 });
  const failed = await daemon.cli(["volume", "create", "x", "--from", source.url, "--download"]);
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /^ullage: http:\S+ answered 404\n +check the address\n$/);
});
