import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import type { VolumeView } from "../../src/daemon/views.ts";
import { collect, failsWith, openBackend, pattern, readBytes } from "../backend/support.ts";
import { launch, launchDaemon } from "../cli/support.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { startCeph } from "./ceph.ts";
import { s3Put } from "./s3-put.ts";

const execute = promisify(execFile);
const content = pattern(16 * 2 ** 20 + 512);

void test("s3: a real Ceph cluster", { timeout: 280_000 }, async (t) => {
  if (!requireTool(t, "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "ceph", "nbdcopy", "root")) return;
  await using ceph = await startCeph();
  const { origin, accessKeyId, secretAccessKey } = ceph;
  await s3Put(ceph, "images");
  await s3Put(ceph, "images", "disk.raw", content);
  const env = { K_ACCESS_KEY_ID: accessKeyId, K_SECRET_ACCESS_KEY: secretAccessKey };
  const settings = [{ prefix: "s3://", endpoint: origin, credentials: "env:K_" }];
  const open = (source = "s3://images/disk.raw", more = {}): ReturnType<typeof openBackend> =>
    openBackend(source, { env, settings: [{ ...settings[0], ...more }] });

  await t.test("ranges and the whole, pinned; a replaced object is source-changed", async () => {
    const backend = open();
    const { identity, head, ranges } = await backend.probe(4096);
    assert.deepEqual([identity.size, identity.strong, ranges], [content.length, true, true]);
    assert.deepEqual(head, content.subarray(0, 4096));
    const reads = Array.from({ length: 16 }, async (_, n) => {
      assert.deepEqual(
        await readBytes(backend, identity, n * 2 ** 20 + 7, 2 ** 20),
        content.subarray(n * 2 ** 20 + 7, (n + 1) * 2 ** 20 + 7),
      );
    });
    await Promise.all(reads);
    const whole = collect();
    await backend.stream(identity, whole.sink);
    assert.ok(whole.bytes().equals(content));
    await s3Put(ceph, "images", "other", content);
    const other = open("s3://images/other");
    const pinned = await other.probe(1);
    await s3Put(ceph, "images", "other", pattern(content.length, 5));
    await failsWith("source-changed", readBytes(other, pinned.identity, 0, 100));
    for (const each of [backend, other]) await each.close();
  });

  await t.test("keys with every kind of character", async () => {
    for (const key of ["a b+c/ä漢😀.raw", "100%25/!'()*;:@&=$,[]~.raw", "double//slash"]) {
      await s3Put(ceph, "images", key, key);
      const backend = open(`s3://images/${key}`);
      assert.equal((await backend.probe(1000)).head.toString(), key);
      await backend.close();
    }
  });

  await t.test("versions: the one that was named is read, whatever came later", async () => {
    await s3Put(ceph, "versioned");
    const configuration =
      '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>Enabled</Status></VersioningConfiguration>';
    await s3Put(ceph, "versioned", "", configuration, { versioning: "" });
    const first = await s3Put(ceph, "versioned", "disk", "the first");
    await s3Put(ceph, "versioned", "disk", "the second one");
    const backend = open(`s3://versioned/disk?versionId=${first.get("x-amz-version-id")}`);
    assert.equal((await backend.probe(100)).head.toString(), "the first");
    await backend.close();
    const newest = open("s3://versioned/disk");
    assert.equal((await newest.probe(100)).head.toString(), "the second one");
    await newest.close();
  });

  await t.test("what is wrong is said as the gateway says it, and public objects take no credentials", async () => {
    await failsWith("source-not-found", open("s3://images/none").probe(1));
    await failsWith("source-not-found", open("s3://no-such-bucket/none").probe(1));
    await failsWith("source-denied", open("s3://images/disk.raw", { credentials: "anonymous" }).probe(1));
    const wrong = openBackend("s3://images/disk.raw", { env: { ...env, K_SECRET_ACCESS_KEY: "wrong" }, settings });
    assert.match((await failsWith("source-denied", wrong.probe(1))).message, /SignatureDoesNotMatch/);
    await s3Put(ceph, "images", "public", "for everybody", {}, { "x-amz-acl": "public-read" });
    const anonymous = open("s3://images/public", { credentials: "anonymous" });
    assert.equal((await anonymous.probe(100)).head.toString(), "for everybody");
  });

  await t.test("an OSD that is killed in the middle of reads costs no error", async () => {
    const backend = open();
    const { identity } = await backend.probe(1);
    const reading = (async () => {
      for (let round = 0; round < 3; round++) {
        for (let at = 0; at + 2 ** 20 <= content.length; at += 2 ** 20) {
          assert.deepEqual(await readBytes(backend, identity, at, 2 ** 20), content.subarray(at, at + 2 ** 20));
        }
      }
    })();
    await ceph.killOsd(1);
    await reading;
    await backend.close();
  });

  await t.test(
    "ullage run and a daemon with a configuration file: byte for byte, and no secret anywhere",
    async (inner) => {
      const directory = await mkdtemp(join(tmpdir(), "ullage-s3-"));
      try {
        const out = join(directory, "out.raw");
        const aws = {
          AWS_ACCESS_KEY_ID: accessKeyId,
          AWS_SECRET_ACCESS_KEY: secretAccessKey,
          AWS_ENDPOINT_URL: origin,
          AWS_EC2_METADATA_DISABLED: "true",
        };
        const disk = await launch<{ uri: string }>(inner, ["run", "s3://images/disk.raw", "--nbd", "127.0.0.1:0"], {
          env: aws,
        });
        await execute("nbdcopy", [disk.announced.uri, out], { timeout: 60_000 });
        assert.ok((await readFile(out)).equals(content));
        assert.equal((await disk.stop()).code, 0);

        const keys = join(directory, "keys");
        await writeFile(keys, `access_key_id = ${accessKeyId}\nsecret_access_key = ${secretAccessKey}\n`);
        const config = join(directory, "ullage.toml");
        await writeFile(
          config,
          `[[sources.match]]\nprefix = "s3://images/"\nendpoint = "${origin}"\ncredentials = "file:${keys}"\n`,
        );
        const dataDir = join(await temporaryDirectory(inner), "data");
        const daemon = await launchDaemon(inner, dataDir, ["--config", config, "--log-level", "debug"]);
        await daemon.json<VolumeView>(["volume", "create", "v", "--from", "s3://images/disk.raw"]);
        await execute("nbdcopy", [daemon.uri("v"), out], { timeout: 60_000 });
        assert.ok((await readFile(out)).equals(content));
        assert.equal((await daemon.cli(["volume", "create", "w", "--from", "s3://images/none"])).code, 1);
        const shown = await daemon.cli(["volume", "show", "v"]);
        const { stderr, stdout } = await daemon.stop();
        const { stdout: found } = await execute("sh", ["-c", `grep -raF -e '${secretAccessKey}' '${dataDir}' || true`]);
        for (const text of [shown.stdout, stderr, stdout, found]) assert.ok(!text.includes(secretAccessKey));
      } finally {
        await rm(directory, { recursive: true, force: true });
      }
    },
  );
});
