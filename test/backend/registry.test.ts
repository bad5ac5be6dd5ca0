import assert from "node:assert/strict";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { test } from "node:test";
import { canonicalSource } from "../../src/backend/source-address.ts";
import { sourcePolicy } from "../../src/backend/source-guard.ts";
import type { SourceSettings } from "../../src/backend/source-settings.ts";
import { parseChallenges } from "../../src/backend/http/www-authenticate.ts";
import { SourceError, describeError } from "../../src/base/errors.ts";
import { artifact, type FakeRegistry, startFakeRegistry } from "../support/registry-fake.ts";
import { collect, failsWith, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(1_000_003);
const type = "application/vnd.kubevirt.disk.raw+zstd";
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };
const quick = { probe: once, foreground: once, background: once };

interface World extends AsyncDisposable {
  registry: FakeRegistry;
  digest: string;
  source: string;
  open(
    source?: string,
    env?: Record<string, string>,
    settings?: Partial<SourceSettings>,
  ): ReturnType<typeof openBackend>;
}

async function world(): Promise<World> {
  const registry = await startFakeRegistry();
  const blob = registry.putBlob(content);
  registry.putManifest("team/disk", "v1", artifact({ ...blob, mediaType: type, title: "disk.raw.zst" }));
  const source = `oci://${registry.host}/team/disk:v1`;
  return {
    registry,
    digest: blob.digest,
    source,
    open: (which = source, env = {}, settings = {}) =>
      openBackend(which, {
        env: { DOCKER_CONFIG: "/nonexistent", ...env },
        settings: Object.keys(settings).length === 0 ? [] : [{ prefix: "oci://", ...settings }],
        retry: quick,
      }),
    [Symbol.asyncDispose]: () => registry[Symbol.asyncDispose](),
  };
}

const user = { K_USERNAME: "me", K_PASSWORD: "pass:word" };
const byUser = { credentials: "env:K_" };

void test("an artifact's only blob is the disk: its digest and size pin it, its media type goes along", async () => {
  await using w = await world();
  const backend = w.open();
  const { identity, head, ranges, mediaType } = await backend.probe(4096);
  assert.deepEqual(identity, { size: content.length, version: `digest:${w.digest}`, strong: true });
  assert.deepEqual(head, content.subarray(0, 4096));
  assert.deepEqual([ranges, mediaType], [true, type]);
  assert.deepEqual(await readBytes(backend, identity, 10, 500_000), content.subarray(10, 500_010));
  assert.ok(w.registry.requests.at(-1)!.target.endsWith(`/blobs/${w.digest}`));
  await backend.close();
});

void test("a tag is looked at once: what was pinned is read by its digest after the tag has moved", async () => {
  await using w = await world();
  const first = w.open();
  const { identity } = await first.probe(10);
  await first.close();
  w.registry.putManifest("team/disk", "v1", artifact(w.registry.putBlob(pattern(500, 3))));
  const later = w.open();
  assert.deepEqual(await readBytes(later, identity, 0, 100), content.subarray(0, 100));
  assert.equal((await later.probe(10)).identity.size, 500);
  await later.close();
});

void test("a whole read is hashed: wrong bytes are an error, and so are ranges of a blob of another size", async () => {
  await using w = await world();
  const backend = w.open();
  const { identity } = await backend.probe(10);
  const whole = collect();
  await backend.stream(identity, whole.sink);
  assert.deepEqual(whole.bytes(), content);
  w.registry.inject({ kind: "wrong-bytes" });
  assert.match(
    (
      await failsWith(
        "source-wrong-bytes",
        backend.stream(identity, () => undefined),
      )
    ).message,
    /sha256:/,
  );
  await failsWith("source-changed", readBytes(backend, { ...identity, size: content.length - 1 }, 0, 10));
  await backend.close();
});

void test("a manifest that does not have the digest it was asked for by is not believed, nor a blob of another size", async () => {
  await using w = await world();
  const digest = w.registry.putManifest("team/disk", "other", artifact(w.registry.putBlob(pattern(500))));
  const byDigest = w.open(`oci://${w.registry.host}/team/disk@${digest}`);
  assert.equal((await byDigest.probe(10)).identity.size, 500);
  w.registry.inject({ kind: "wrong-bytes" });
  await failsWith("source-bad-answer", byDigest.probe(10));
  w.registry.putManifest("team/disk", "lie", artifact({ ...w.registry.putBlob(pattern(500)), size: 501 }));
  await failsWith("source-bad-answer", w.open(`oci://${w.registry.host}/team/disk:lie`).probe(10));
  await byDigest.close();
});

void test("of several blobs none is guessed: the error names them, and a title or digest chooses", async () => {
  await using w = await world();
  const blob = w.registry.putBlob(content);
  const notes = w.registry.putBlob(Buffer.from("notes"));
  w.registry.putManifest(
    "team/disk",
    "two",
    artifact({ ...blob, title: "disk.raw" }, { ...notes, title: "a note.txt" }),
  );
  const source = `oci://${w.registry.host}/team/disk:two`;
  const error = await failsWith("source-ambiguous", w.open(source).probe(10));
  assert.match(error.message, /2 blobs/);
  assert.match(error.hint!, /#disk\.raw \(application\/octet-stream, 1000003 bytes\), #a note\.txt/);
  for (const [name, size] of [
    ["disk.raw", content.length],
    [notes.digest, 5],
    ["a note.txt", 5],
  ] as const) {
    const backend = w.open(`${source}#${name}`);
    assert.equal((await backend.probe(10)).identity.size, size);
    assert.equal(canonicalSource(backend.url), `${source}#${name}`);
    await backend.close();
  }
  await failsWith("source-not-found", w.open(`${source}#none`).probe(10));
});

void test("of an index the manifest of this machine's platform is taken, and provenance is none", async () => {
  await using w = await world();
  const here = process.arch === "arm64" ? "arm64" : "amd64";
  const mine = w.registry.putManifest("team/disk", "m1", artifact(w.registry.putBlob(pattern(500))));
  const other = w.registry.putManifest("team/disk", "m2", artifact(w.registry.putBlob(pattern(600))));
  const entry = (digest: string, os: string, architecture: string): unknown => ({
    digest,
    size: 1,
    mediaType: "x",
    platform: { os, architecture },
  });
  w.registry.putManifest("team/disk", "index", {
    schemaVersion: 2,
    manifests: [entry(other, "linux", "s390x"), entry(mine, "linux", here), entry(other, "unknown", "unknown")],
  });
  assert.equal((await w.open(`oci://${w.registry.host}/team/disk:index`).probe(10)).identity.size, 500);
  w.registry.putManifest("team/disk", "one", {
    schemaVersion: 2,
    manifests: [entry(other, "linux", "s390x"), entry(mine, "unknown", "unknown")],
  });
  assert.equal((await w.open(`oci://${w.registry.host}/team/disk:one`).probe(10)).identity.size, 600);
  w.registry.putManifest("team/disk", "none", {
    schemaVersion: 2,
    manifests: [entry(other, "linux", "s390x"), entry(other, "linux", "riscv64")],
  });
  const error = await failsWith("source-ambiguous", w.open(`oci://${w.registry.host}/team/disk:none`).probe(10));
  assert.match(error.message, /linux\/s390x, linux\/riscv64/);
});

void test("a token is asked for once, however many reads wait for it, and shared", async () => {
  await using w = await world();
  w.registry.auth = "token";
  w.registry.users.set("me", { password: "pass:word" });
  const backend = w.open(w.source, user, byUser);
  const { identity } = await backend.probe(10);
  assert.equal(w.registry.tokensGiven, 1);
  w.registry.revokeTokens();
  const reads = Array.from({ length: 8 }, (_, n) => readBytes(backend, identity, n * 1000, 1000));
  for (const [n, bytes] of (await Promise.all(reads)).entries()) {
    assert.deepEqual(bytes, content.subarray(n * 1000, n * 1000 + 1000));
  }
  assert.equal(w.registry.tokensGiven, 2);
  await backend.close();
});

void test("a token is renewed before it ends, beside the reads", async () => {
  await using w = await world();
  w.registry.auth = "token";
  w.registry.expiresIn = 1;
  const backend = w.open();
  const { identity } = await backend.probe(10);
  const refused = (): number => w.registry.requests.filter(({ headers }) => headers.authorization === undefined).length;
  const before = refused();
  const realm = (): number => w.registry.requests.filter(({ target }) => target.startsWith("/token")).length;
  for (let n = 0; n < 16; n++) {
    await readBytes(backend, identity, n, 10);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.ok(w.registry.tokensGiven > 1);
  assert.equal(refused() - before, realm() - 1); // only the realm was asked without a token
  await backend.close();
});

void test("Basic, a wrong password, and an identity token that is traded for others", async () => {
  await using w = await world();
  w.registry.auth = "basic";
  w.registry.users.set("me", { password: "pass:word" });
  assert.equal((await w.open(w.source, user, byUser).probe(10)).identity.size, content.length);
  const wrong = await failsWith(
    "source-denied",
    w.open(w.source, { ...user, K_PASSWORD: "nope-secret" }, byUser).probe(10),
  );
  assert.doesNotMatch(`${wrong.message} ${wrong.hint} ${wrong.stack}`, /nope-secret/);
  await failsWith("source-denied", w.open().probe(10));
  w.registry.auth = "token";
  await failsWith("source-denied", w.open(w.source, { ...user, K_PASSWORD: "nope-secret" }, byUser).probe(10));
  w.registry.refreshTokens.add("identity");
  const directory = await mkdtemp(join(tmpdir(), "ullage-docker-"));
  try {
    await writeFile(
      join(directory, "config.json"),
      JSON.stringify({ auths: { [w.registry.host]: { identitytoken: "identity" } } }),
    );
    assert.equal((await w.open(w.source, { DOCKER_CONFIG: directory }).probe(10)).identity.size, content.length);
  } finally {
    await rm(directory, { recursive: true });
  }
});

void test("docker's configuration: logins in the file, helpers, stores; a helper that hangs, fails or floods harms nobody", async () => {
  await using w = await world();
  w.registry.auth = "token";
  w.registry.users.set("me", { password: "pass:word" });
  const directory = await mkdtemp(join(tmpdir(), "ullage-docker-"));
  const savedPath = process.env.PATH;
  process.env.PATH = [directory, savedPath].join(delimiter);
  const configure = (config: unknown): Promise<void> =>
    writeFile(join(directory, "config.json"), JSON.stringify(config));
  const helper = async (name: string, script: string): Promise<void> => {
    await writeFile(join(directory, `docker-credential-${name}`), `#!/bin/sh\n${script}\n`);
    await chmod(join(directory, `docker-credential-${name}`), 0o755);
  };
  const env = { DOCKER_CONFIG: directory };
  const works = async (): Promise<void> => {
    const backend = w.open(w.source, env);
    assert.equal((await backend.probe(10)).identity.size, content.length);
    await backend.close();
  };
  try {
    await configure({ auths: { [w.registry.host]: { auth: Buffer.from("me:pass:word").toString("base64") } } });
    await works();
    await helper(
      "good",
      `read host; [ "$1 $host" = "get ${w.registry.host}" ] && echo '{"Username":"me","Secret":"pass:word"}'`,
    );
    await configure({ credHelpers: { [w.registry.host]: "good" } });
    await works();
    await configure({ credsStore: "good" });
    await works();
    await helper("empty", "echo credentials not found in native keychain; exit 1");
    await configure({ credsStore: "empty" });
    await failsWith("source-denied", w.open(w.source, env).probe(10));
    await helper("flood", "yes secret-flood");
    await configure({ credsStore: "flood" });
    const flood = await failsWith("source-credentials", w.open(w.source, env).probe(10));
    assert.match(describeError(flood), /printed more than 65536 bytes/);
    assert.doesNotMatch(describeError(flood) + flood.stack!, /secret-flood/);
    assert.equal(flood.transient, true);
    await configure({ credsStore: "../evil" });
    await failsWith("source-credentials", w.open(w.source, env).probe(10));
    await configure({ credsStore: "missing" });
    await failsWith("source-credentials", w.open(w.source, env).probe(10));
  } finally {
    process.env.PATH = savedPath;
    await rm(directory, { recursive: true });
  }
});

void test("a blob's redirect is remembered without the registry's token, and asked for anew when it has expired", async () => {
  await using w = await world();
  w.registry.auth = "token";
  w.registry.redirects = true;
  const backend = w.open();
  const { identity } = await backend.probe(10);
  const asked = (): number => w.registry.requests.filter(({ target }) => target.includes("/blobs/")).length;
  const before = asked();
  for (let n = 0; n < 3; n++) await readBytes(backend, identity, n, 100);
  assert.equal(asked(), before);
  w.registry.expireRedirects();
  assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
  assert.equal(asked(), before + 1);
  await backend.close();
});

void test("a registry that fails once is not given up: the next read works", async () => {
  await using w = await world();
  w.registry.auth = "token";
  const backend = w.open();
  w.registry.realmFailures.push(503);
  await failsWith("source-busy", backend.probe(10));
  const { identity } = await backend.probe(10);
  w.registry.revokeTokens();
  w.registry.realmFailures.push(401);
  await failsWith("source-denied", readBytes(backend, identity, 0, 10));
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
  await w.registry.pause();
  await failsWith("source-unreachable", readBytes(backend, identity, 0, 10));
  await w.registry.resume();
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
  await backend.close();
});

void test("a guarded registry's realm and redirects go only where the policy lets them", async () => {
  await using w = await world();
  const policy = sourcePolicy(["127.0.0.1"]);
  const open = (): ReturnType<typeof openBackend> =>
    openBackend(w.source, { env: { DOCKER_CONFIG: "/nonexistent" }, policy, retry: quick });
  assert.equal((await open().probe(10)).identity.size, content.length);
  // By another way it is the same machine, but not by an address that is let in.
  w.registry.inject({ kind: "status", status: 307, headers: { location: "http://127.0.0.2:1/manifest" } });
  await failsWith("source-forbidden", open().probe(10));
  w.registry.inject({
    kind: "status",
    status: 401,
    headers: { "www-authenticate": 'Bearer realm="http://169.254.169.254/token"' },
  });
  await failsWith("source-forbidden", open().probe(10));
});

void test("plain http is for this machine, or for whoever configures it", async () => {
  await using w = await world();
  const elsewhere = openBackend("oci://registry.test/team/disk:v1", {
    env: { DOCKER_CONFIG: "/nonexistent" },
    retry: quick,
  });
  assert.match((await failsWith("source-unreachable", elsewhere.probe(10))).message, /^https:\/\/registry\.test\//);
  const backend = w.open("oci://registry.test/team/disk:v1", {}, { endpoint: w.registry.origin });
  assert.equal((await backend.probe(10)).identity.size, content.length);
  await backend.close();
});

void test("addresses of registries have one form; what is none is refused", () => {
  const digest = `sha256:${"0".repeat(64)}`;
  for (const [written, canonical] of [
    ["oci://a.example/repo", "oci://a.example/repo:latest"],
    ["oci://A.example:5000/a/b_c.d-e:V1", "oci://a.example:5000/a/b_c.d-e:V1"],
    [`oci://a.example/repo:v1@${digest}`, `oci://a.example/repo@${digest}`],
    ["oci://a.example/repo:v1#disk 1.raw", "oci://a.example/repo:v1#disk 1.raw"],
  ]) {
    assert.equal(canonicalSource(written), canonical);
    assert.equal(canonicalSource(canonical), canonical);
  }
  for (const bad of [
    "oci://a.example",
    "oci://a.example/",
    "oci:///repo",
    "oci://me:pw@a.example/repo",
    "oci://a.example/Repo",
    "oci://a.example/a//b",
    "oci://a.example/r:v 1",
    "oci://a.example/r@sha256:12",
    "oci://a.example/../r",
    "oci://a.example/r?x=1",
  ]) {
    assert.throws(
      () => canonicalSource(bad),
      (error) => error instanceof SourceError && error.code === "source-invalid",
      bad,
    );
  }
});

void test("challenges: values with equals signs, quotes, commas and escapes, in any order, several of them", () => {
  assert.deepEqual(
    parseChallenges('Bearer realm="https://a/token?x=y&z==",service="s=1, \\"2\\"",scope="repository:a/b:pull,push"'),
    [
      {
        scheme: "bearer",
        params: { realm: "https://a/token?x=y&z==", service: 's=1, "2"', scope: "repository:a/b:pull,push" },
      },
    ],
  );
  assert.deepEqual(
    parseChallenges(["Negotiate dG9rZW4=", 'basic Realm = "x" , charset=UTF-8, Bearer realm=https://a/t?b=c']),
    [
      { scheme: "negotiate", params: {} },
      { scheme: "basic", params: { realm: "x", charset: "UTF-8" } },
      { scheme: "bearer", params: { realm: "https://a/t?b=c" } },
    ],
  );
  for (const odd of [
    undefined,
    "",
    ",,,",
    '"',
    "=",
    'Bearer realm="never closed',
    `Bearer ${"a".repeat(100_000)}`,
    "Basic",
  ]) {
    assert.ok(parseChallenges(odd).length <= 1);
  }
});
