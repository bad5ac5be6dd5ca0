import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { Ullage, type UllageOptions } from "../../src/daemon/ullage.ts";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import { startHttpSource } from "../support/http-source.ts";
import { openUllage, temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";
import { curl, refusal, startTcpApi } from "./tcp-support.ts";

const content = Buffer.alloc(1_000_000, "image");
/** As for a request that came over TCP. */
const guarded = { guarded: true };

async function firstBytes(ullage: Ullage, name: string): Promise<string> {
  const buffer = new IoBuffer(4096);
  await (await ullage.getDevice(name)).read(500_000, 5, buffer, 0);
  return Buffer.from(buffer.bytes.subarray(0, 5)).toString();
}

void test("who asks over the network names public sources only, unless more is let in", async (t) => {
  await using source = await startHttpSource({ content });
  const path = join(await temporaryDirectory(t), "image.raw");
  await writeFile(path, content);
  const ullage = await openUllage(t);
  for (const named of [path, `file://${path}`, source.url, `http://localhost:${source.port}/disk.img`]) {
    await assert.rejects(
      ullage.createVolume({ name: "v", from: { source: named } }, undefined, guarded),
      { code: "source-forbidden" },
      named,
    );
  }
  assert.deepEqual([(await ullage.listVolumes()).length, source.requestCount], [0, 0]);
  for (const [name, named] of Object.entries({ file: path, http: source.url })) {
    await ullage.createVolume({ name, from: { source: named } });
  }
});

void test("what was let in once is bound for as long as it is read, across restarts", async (t) => {
  await using source = await startHttpSource({ content });
  await using other = await startHttpSource({ content });
  const dataDir = join(await temporaryDirectory(t), "data");
  const settings = { hydrate: "off" as const };
  const open = (more: Partial<UllageOptions>): Promise<Ullage> => openUllage(t, { dataDir, ...more });

  let ullage = await open({ allowSources: ["127.0.0.0/8"] });
  await ullage.createVolume({ name: "bound", from: { source: source.url }, settings }, undefined, guarded);
  await ullage.createVolume({ name: "free", from: { source: other.url }, settings });
  await ullage.close();

  ullage = await open({ allowSources: ["public"] });
  const asked = source.requestCount;
  await assert.rejects(firstBytes(ullage, "bound"), { code: "source-forbidden" });
  assert.equal(source.requestCount, asked);
  assert.equal(await firstBytes(ullage, "free"), "image");
  await ullage.close();

  ullage = await open({ allowSources: ["127.0.0.1"] });
  assert.equal(await firstBytes(ullage, "bound"), "image");
  await ullage.close();
});

void test("a redirect of a bound source is judged at every read", async (t) => {
  await using inner = await startHttpSource({ content });
  await using front = await startHttpSource({ content, host: "127.0.0.2" });
  const ullage = await openUllage(t, { allowSources: ["127.0.0.2"] });
  const settings = { hydrate: "off" as const };
  await ullage.createVolume({ name: "v", from: { source: front.url }, settings }, undefined, guarded);
  front.onRequest = () => ({ kind: "redirect", location: inner.url });
  await assert.rejects(firstBytes(ullage, "v"), { code: "source-forbidden" });
  front.onRequest = undefined;
  assert.equal(await firstBytes(ullage, "v"), "image");
  assert.equal(inner.requestCount, 0);
});

void test("a list of allowed sources that makes no sense stops the start", async (t) => {
  const dataDir = join(await temporaryDirectory(t), "data");
  await assert.rejects(Ullage.open({ dataDir, allowSources: ["10.0.0.0/99"] }), { code: "sources-allow" });
});

void test("over TCP neither files nor this machine's servers are let in; over the unix socket both are", async (t) => {
  if (!requireTool(t, "curl")) return;
  await using source = await startHttpSource({ content });
  const path = join(await temporaryDirectory(t), "image.raw");
  await writeFile(path, content);
  const api = await startTcpApi(t);
  const post = (named: string): string[] => {
    const body = JSON.stringify({ name: "v", from: { source: named } });
    return ["-H", "content-type: application/json", "-d", body];
  };
  const { port } = source;
  for (const named of [
    path,
    "/etc/passwd",
    `file://${path}`,
    "file:///etc/passwd",
    source.url,
    `http://localhost:${port}/disk.img`,
    `http://0x7f000001:${port}/disk.img`,
    `http://[::ffff:127.0.0.1]:${port}/disk.img`,
    `http://example.org@127.0.0.1:${port}/disk.img`,
    "http://169.254.169.254/latest/meta-data/",
  ]) {
    assert.equal(refusal(await api.as("admin", "/v1/volumes", ...post(named))), "403 source-forbidden", named);
  }
  assert.deepEqual([(await api.ullage.listVolumes()).length, source.requestCount], [0, 0]);
  const local = ["--unix-socket", api.socketPath, "http://localhost/v1/volumes"];
  assert.equal((await curl(...local, ...post(source.url))).status, 201);
});
