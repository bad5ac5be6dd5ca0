import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { pattern } from "../backend/support.ts";
import { EventClient } from "../api/event-client.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { startHttpSource } from "../support/http-source.ts";
import { startFakeStore } from "../support/store-fake.ts";
import { requireTool } from "../support/tools.ts";
import { launch, launchDaemon } from "./support.ts";

const execute = promisify(execFile);
const content = pattern(2 ** 20);
const secret = "cli-test-secret";

void test("source limit shows and changes what sources may deliver; the file sets what holds at the start", async (t) => {
  const config = join(await temporaryDirectory(t), "ullage.toml");
  await writeFile(config, '[sources]\nlimit = "10M"\n');
  const daemon = await launchDaemon(t, undefined, ["--config", config]);
  assert.equal((await daemon.cli(["source", "limit"])).stdout, "10M/s\n");
  assert.equal((await daemon.cli(["source", "limit", "1G"])).stdout, "1G/s\n");
  assert.deepEqual(await daemon.json(["source", "limit", "off"]), { bytesPerSecond: null });
  assert.deepEqual(await daemon.json(["source", "limit"]), { bytesPerSecond: null });
  assert.equal((await daemon.cli(["source", "limit", "fast"])).code, 2);
});

void test("SIGHUP makes a daemon read credentials again; a source that changed is told, and the new one is a new image", async (t) => {
  if (!requireTool(t, "nbdcopy")) return;
  await using store = await startFakeStore("s3");
  store.keys.set("ID", { secret });
  store.put("images", "disk", content);
  const directory = await temporaryDirectory(t);
  const [config, helper, keys] = ["ullage.toml", "helper", "keys"].map((name) => join(directory, name));
  await writeFile(keys, JSON.stringify({ AccessKeyId: "ID", SecretAccessKey: secret }));
  // What a helper said holds for five minutes.
  await writeFile(helper, `#!/bin/sh\ncat ${keys}\n`, { mode: 0o755 });
  await writeFile(
    config,
    `[[sources.match]]\nprefix = "s3://"\nendpoint = "${store.origin}"\ncredentials = "helper:${helper}"\n`,
  );
  const daemon = await launchDaemon(t, undefined, ["--config", config, "--log-level", "debug"]);
  const create = (name: string, ...more: string[]): Promise<VolumeView> =>
    daemon.json<VolumeView>(["volume", "create", name, "--from", "s3://images/disk", ...more]);
  assert.equal((await create("a")).source, "s3://images/disk");

  store.keys.set("NEW", { secret: `${secret}-2` });
  await writeFile(keys, JSON.stringify({ AccessKeyId: "NEW", SecretAccessKey: `${secret}-2` }));
  const before = store.requests.length;
  daemon.child.kill("SIGHUP");
  await create("b");
  while (!store.requests.slice(before).some(({ headers }) => headers.authorization?.includes("Credential=NEW/"))) {
    await daemon.json(["volume", "rm", "b"]).catch(() => daemon.cli(["volume", "rm", "b"]));
    await create("b");
  }

  await create("c", "--hydrate", "off");
  store.put("images", "disk", pattern(2 ** 20, 5));
  const newer = await create("d");
  const copy = join(directory, "d.raw");
  await execute("nbdcopy", [daemon.uri("d"), copy], { timeout: 60_000 });
  assert.ok((await readFile(copy)).equals(pattern(2 ** 20, 5)));
  assert.equal(newer.source, "s3://images/disk");
  const { stderr, stdout } = await daemon.stop();
  const { stdout: found } = await execute("sh", ["-c", `grep -raF -e ${secret} '${daemon.dataDir}' || true`]);
  for (const text of [stderr, stdout, found]) assert.ok(!text.includes(secret));
});

void test("run takes s3 and oss sources by what the environment says", async (t) => {
  if (!requireTool(t, "nbdcopy")) return;
  for (const kind of ["s3", "oss"] as const) {
    await using store = await startFakeStore(kind);
    store.keys.set("ID", { secret });
    store.put("images", "a disk", content);
    const env =
      kind === "s3"
        ? { AWS_ACCESS_KEY_ID: "ID", AWS_SECRET_ACCESS_KEY: secret, AWS_ENDPOINT_URL_S3: store.origin }
        : {
            ALIBABA_CLOUD_ACCESS_KEY_ID: "ID",
            ALIBABA_CLOUD_ACCESS_KEY_SECRET: secret,
            OSS_ENDPOINT: store.origin,
            OSS_REGION: "cn-hangzhou",
          };
    const disk = await launch<{ uri: string }>(t, ["run", `${kind}://images/a disk`, "--nbd", "127.0.0.1:0"], { env });
    const copy = join(await temporaryDirectory(t), "copy.raw");
    await execute("nbdcopy", [disk.announced.uri, copy], { timeout: 60_000 });
    assert.ok((await readFile(copy)).equals(content));
    assert.equal((await disk.stop()).code, 0);
  }
});

void test("show says what is unpinned, and why a volume is degraded; who listens to events hears of it", async (t) => {
  if (!requireTool(t, "qemu-io", "curl")) return;
  await using source = await startHttpSource({ content: pattern(32 * 2 ** 20), etag: null });
  const daemon = await launchDaemon(t);
  await daemon.json(["volume", "create", "v", "--from", source.url, "--unpinned", "--hydrate", "off"]);
  const { stdout: well } = await daemon.cli(["volume", "show", "v"]);
  assert.match(well, /^source +http:.*disk\.img \(unpinned: a change could go unnoticed\)$/m);
  const listener = await EventClient.connect(t, join(daemon.dataDir, "api.sock"));
  const read = (): Promise<boolean> =>
    execute("qemu-io", ["-f", "raw", "-r", "-c", "read 24M 64k", daemon.uri("v")], { timeout: 60_000 }).then(
      () => true,
      () => false,
    );
  source.replace(pattern(20 * 2 ** 20));
  assert.equal(await read(), false);
  const told = await listener.next(({ name, data }) => name === "volume-changed" && data["state"] === "degraded");
  assert.match(String(told.data["reason"]), /had 33554432 bytes and now has 20971520 \(.*create a new volume from /);
  const { stdout: bad } = await daemon.cli(["volume", "show", "v"]);
  assert.match(bad, /^state +degraded: .*create a new volume from /m);
  const health = await daemon.cli(["health"]);
  assert.match(health.stdout, /^volumes +warn +volume 'v' is degraded: /m);
  source.replace(pattern(32 * 2 ** 20));
  assert.equal(await read(), true);
  await listener.next(({ name, data }) => name === "volume-changed" && data["state"] === "ok");
  assert.match((await daemon.cli(["volume", "show", "v"])).stdout, /^state +ok$/m);
});
