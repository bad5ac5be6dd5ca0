import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { CredentialSource } from "../../src/backend/credentials.ts";
import { dockerCredentials } from "../../src/backend/registry/docker-credentials.ts";
import { OssDialect } from "../../src/backend/object-store/oss.ts";
import { canonicalRegistrySource, registryEndpoint } from "../../src/backend/registry/registry.ts";
import { S3Dialect } from "../../src/backend/object-store/s3.ts";
import { artifact, startFakeRegistry } from "../support/registry-fake.ts";
import { startFakeStore } from "../support/store-fake.ts";
import { failsWith, openBackend, pattern, readBytes } from "./support.ts";

/*
 * What differs between providers, row by row of the table in docs/SOURCES.md, where no other test has it: regions, expired
 * tokens and archived objects are in object-store, Ceph in sources/s3-ceph, nginx in nginx.
 */

const content = pattern(300_000);
const id = "AKIDEXAMPLE";
const secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };
const quick = { probe: once, foreground: once, background: once };

async function s3World() {
  const store = await startFakeStore("s3");
  store.keys.set(id, { secret });
  store.put("bucket", "disk", content);
  const env = { K_ACCESS_KEY_ID: id, K_SECRET_ACCESS_KEY: secret };
  const open = (key = "disk") =>
    openBackend(`s3://bucket/${key}`, {
      env,
      settings: [{ prefix: "s3://", endpoint: store.origin, credentials: "env:K_" }],
      retry: quick,
    });
  return { store, open, [Symbol.asyncDispose]: () => store[Symbol.asyncDispose]() };
}

void test("Amazon S3: a bucket is asked in its region, China's at their own domain, one with dots in the path", () => {
  const amazon = new S3Dialect({});
  const place = (bucket: string, region: string): string =>
    amazon.place({ bucket, key: "a b", versionId: undefined }, region).href;
  assert.equal(place("bucket", amazon.region), "https://bucket.s3.us-east-1.amazonaws.com/a%20b");
  assert.equal(place("bucket", "eu-west-1"), "https://bucket.s3.eu-west-1.amazonaws.com/a%20b");
  assert.equal(place("bucket", "cn-north-1"), "https://bucket.s3.cn-north-1.amazonaws.com.cn/a%20b");
  assert.equal(place("my.bucket", "eu-west-1"), "https://s3.eu-west-1.amazonaws.com/my.bucket/a%20b");
});

void test("Amazon S3: a redirect that names another region is not followed unsigned but asked there; one to the same region is followed", async () => {
  await using w = await s3World();
  await using elsewhere = await startFakeStore("s3");
  elsewhere.publicBuckets.add("bucket");
  elsewhere.put("bucket", "disk", content);
  w.store.regions.set("bucket", "eu-west-1");
  const redirect = (region: string) =>
    ({
      kind: "status",
      status: 307,
      headers: { location: `${elsewhere.origin}/bucket/disk`, "x-amz-bucket-region": region },
      body: "<Error><Code>TemporaryRedirect</Code></Error>",
    }) as const;
  const backend = w.open();
  w.store.inject(redirect("eu-west-1"));
  const { identity } = await backend.probe(10);
  assert.equal(elsewhere.requests.length, 0);
  assert.match(w.store.requests.at(-1)!.headers.authorization!, /\/eu-west-1\/s3\//);
  // Not for the region's sake: it is followed.
  w.store.inject(redirect("eu-west-1"));
  assert.deepEqual(await readBytes(backend, identity, 7, 100), content.subarray(7, 107));
  assert.equal(elsewhere.requests.length, 1);
  await backend.close();
});

void test("Amazon S3: who is denied is told that this may be a key that is not there", async () => {
  await using w = await s3World();
  w.store.keys.set(id, { secret, denied: true });
  const error = await failsWith("source-denied", w.open("none").probe(10));
  assert.match(error.hint!, /s3:GetObject.*without s3:ListBucket a key that is not there is denied, too/);
});

void test("MinIO: us-east-1 is what is signed for unless it is told, or learned from a refusal", async () => {
  await using w = await s3World();
  const backend = w.open();
  await backend.probe(10);
  assert.match(w.store.requests.at(-1)!.headers.authorization!, /\/us-east-1\/s3\//);
  assert.match(w.store.requests.at(-1)!.target, /^\/bucket\/disk/);
  w.store.regions.set("bucket", "rack-7"); // MINIO_REGION
  await backend.probe(10);
  assert.match(w.store.requests.at(-1)!.headers.authorization!, /\/rack-7\/s3\//);
  await backend.close();
});

void test("s3rver: an object that was replaced is source-changed though If-Match is ignored", async () => {
  await using w = await s3World();
  const backend = w.open();
  const { identity } = await backend.probe(10);
  w.store.put("bucket", "disk", pattern(300_000, 5));
  w.store.ignoresConditions = true;
  const error = await failsWith("source-changed", readBytes(backend, identity, 0, 100));
  assert.match(error.message, /its ETag was/);
  await backend.close();
});

void test("OSS: buckets stand in front of the host, internal endpoints name their region, and what has none is signed with version 1", async () => {
  const address = { bucket: "images", key: "a b", versionId: undefined };
  const internal = new OssDialect({ endpoint: "https://oss-cn-hangzhou-internal.aliyuncs.com" });
  assert.equal(internal.region, "cn-hangzhou");
  assert.equal(internal.place(address).href, "https://images.oss-cn-hangzhou-internal.aliyuncs.com/a%20b");
  assert.equal(
    new OssDialect({ region: "cn-beijing" }).place(address).href,
    "https://images.oss-cn-beijing.aliyuncs.com/a%20b",
  );
  const credentials = { accessKeyId: id, secretAccessKey: secret };
  const signed = (dialect: OssDialect) => {
    const request = { url: dialect.place(address), address, region: dialect.region };
    return dialect.sign(request, credentials, new Date())["authorization"];
  };
  assert.match(signed(internal), /^OSS4-HMAC-SHA256 Credential=AKIDEXAMPLE\/\d{8}\/cn-hangzhou\//);
  assert.match(signed(new OssDialect({ endpoint: "https://oss.example.org" })), /^OSS AKIDEXAMPLE:/);
});

void test("Docker Hub: its API has another name, and its login is kept under the oldest one", async () => {
  assert.equal(registryEndpoint("docker.io", undefined), "https://registry-1.docker.io");
  assert.equal(canonicalRegistrySource("oci://docker.io/library/disk"), "oci://docker.io/library/disk:latest");
  const directory = await mkdtemp(join(tmpdir(), "ullage-docker-"));
  try {
    const auth = Buffer.from("me:pass:word").toString("base64");
    await writeFile(
      join(directory, "config.json"),
      JSON.stringify({ auths: { "https://index.docker.io/v1/": { auth } } }),
    );
    for (const host of ["docker.io", "index.docker.io", "registry-1.docker.io"]) {
      const source = new CredentialSource("docker", dockerCredentials(host, { DOCKER_CONFIG: directory }));
      assert.partialDeepStrictEqual(await source.get(), { username: "me", password: "pass:word" }, host);
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

async function registryWorld() {
  const registry = await startFakeRegistry();
  const blob = registry.putBlob(content);
  registry.putManifest("team/disk", "v1", artifact(blob));
  return {
    registry,
    source: `oci://${registry.host}/team/disk:v1`,
    [Symbol.asyncDispose]: () => registry[Symbol.asyncDispose](),
  };
}

void test("Amazon ECR: a password that has ended is denied, with 403; the next one is read and used", async () => {
  await using w = await registryWorld();
  w.registry.auth = "basic";
  w.registry.users.set("AWS", { password: "first" });
  const directory = await mkdtemp(join(tmpdir(), "ullage-ecr-"));
  try {
    const keys = join(directory, "keys");
    await writeFile(keys, "username = AWS\npassword = first\n");
    const settings = [{ prefix: "oci://", credentials: `file:${keys}` }];
    const backend = openBackend(w.source, { settings, retry: quick });
    const { identity } = await backend.probe(10);
    w.registry.users.set("AWS", { password: "the second" });
    await writeFile(keys, "username = AWS\npassword = the second\n");
    const body = JSON.stringify({
      errors: [{ code: "DENIED", message: "Your authorization token has expired. Reauthenticate and try again." }],
    });
    w.registry.inject({ kind: "status", status: 403, body });
    assert.deepEqual(await readBytes(backend, identity, 0, 100), content.subarray(0, 100));
    // What is denied for another reason is.
    w.registry.inject({ kind: "status", status: 403, body: JSON.stringify({ errors: [{ code: "DENIED" }] }) });
    await failsWith("source-denied", readBytes(backend, identity, 0, 100));
    await backend.close();
  } finally {
    await rm(directory, { recursive: true });
  }
});

void test("Google, Azure: an address that has expired, whatever its store says, is asked for anew", async () => {
  await using w = await registryWorld();
  w.registry.redirects = true;
  const backend = openBackend(w.source, { env: { DOCKER_CONFIG: "/nonexistent" }, retry: quick });
  const { identity } = await backend.probe(10);
  for (const status of [400, 403, 404]) {
    w.registry.expireRedirects();
    w.registry.expiredStatus = status;
    assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105), String(status));
    assert.deepEqual(await readBytes(backend, identity, 9, 100), content.subarray(9, 109), String(status));
  }
  await backend.close();
});

void test("Harbor, Nexus: the challenge decides, token or Basic, and changes with it; a refusal says that it may not be there", async () => {
  await using w = await registryWorld();
  w.registry.users.set("me", { password: "pass:word" });
  const env = { K_USERNAME: "me", K_PASSWORD: "pass:word" };
  const backend = openBackend(w.source, {
    env,
    settings: [{ prefix: "oci://", credentials: "env:K_" }],
    retry: quick,
  });
  for (const auth of ["token", "basic", "token"] as const) {
    w.registry.auth = auth;
    assert.equal((await backend.probe(10)).identity.size, content.length, auth);
  }
  for (const status of [401, 403]) {
    w.registry.inject({ kind: "status", status, body: JSON.stringify({ errors: [{ code: "DENIED" }] }) });
    const error = await failsWith("source-denied", backend.probe(10));
    assert.match(error.hint!, /env:K_.*many registries answer like this for what is not there/);
  }
  await backend.close();
});
