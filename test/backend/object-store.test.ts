import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile, chmod } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { canonicalSource } from "../../src/backend/source-address.ts";
import type { SourceSettings } from "../../src/backend/source-settings.ts";
import { sourcePolicy } from "../../src/backend/source-guard.ts";
import { describeError, SourceError } from "../../src/base/errors.ts";
import { startFakeServer } from "../support/fake-server.ts";
import { type FakeStore, startFakeStore } from "../support/store-fake.ts";
import { collect, failsWith, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(1_000_003);
const id = "AKIDEXAMPLE";
const secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const schemes = ["s3", "oss"] as const;
type Scheme = (typeof schemes)[number];

interface World extends AsyncDisposable {
  store: FakeStore;
  env: Record<string, string>;
  settings: SourceSettings[];
  source: string;
  open(more?: Partial<SourceSettings>, env?: Record<string, string | undefined>): ReturnType<typeof openBackend>;
}

/** A fake with one object, and what it takes to read it. */
async function world(scheme: Scheme, key = "images/disk.raw"): Promise<World> {
  const store = await startFakeStore(scheme);
  store.keys.set(id, { secret });
  store.put("bucket", key, content);
  const settings = [
    {
      prefix: `${scheme}://`,
      endpoint: store.origin,
      pathStyle: true,
      region: regionOf(scheme),
      credentials: "env:K_",
    },
  ];
  const env = { K_ACCESS_KEY_ID: id, K_SECRET_ACCESS_KEY: secret };
  return {
    store,
    env,
    settings,
    source: `${scheme}://bucket/${key}`,
    open: (more = {}, others = env) =>
      openBackend(`${scheme}://bucket/${key}`, {
        env: others,
        settings: [{ ...settings[0], ...more }],
        retry: { probe: once },
      }),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

const regionOf = (scheme: Scheme): string => (scheme === "s3" ? "us-east-1" : "cn-hangzhou");
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };

for (const scheme of schemes) {
  void test(`${scheme}: ranges and whole objects, pinned by ETag and size, every request signed`, async () => {
    await using w = await world(scheme);
    for (const signature of scheme === "oss" ? (["v1", "v4"] as const) : ([undefined] as const)) {
      const backend = w.open(signature === undefined ? {} : { signature });
      const { identity, head, ranges } = await backend.probe(4096);
      assert.deepEqual(head, content.subarray(0, 4096));
      assert.deepEqual([identity.size, identity.strong, ranges], [content.length, true, true]);
      assert.match(identity.version, /^etag:"[0-9a-f]{32}"$/);
      const reads = Array.from({ length: 10 }, async (_, n) => {
        assert.deepEqual(
          await readBytes(backend, identity, n * 100_000, 100_000),
          content.subarray(n * 100_000, (n + 1) * 100_000),
        );
      });
      await Promise.all(reads);
      const whole = collect();
      await backend.stream(identity, whole.sink);
      assert.deepEqual(whole.bytes(), content);
      assert.ok(w.store.requests.slice(1).every(({ headers }) => headers["if-match"] !== undefined));
      await backend.close();
      w.store.requests.length = 0;
    }
  });

  void test(`${scheme}: keys with every kind of character are signed and found as they are`, async () => {
    const keys = [
      "a b+c.raw",
      "100%/%41.raw",
      "ä/漢字/😀.raw",
      "!'()*;:@&=$,?#[]~.raw",
      "double//slash/",
      "a?versionId",
      'quote"back\\slash|<>^`{}',
      "-._~/0",
    ];
    for (const key of keys) {
      await using w = await world(scheme, key);
      for (const signature of scheme === "oss" ? (["v1", "v4"] as const) : ([undefined] as const)) {
        const backend = w.open(signature === undefined ? {} : { signature });
        const { identity } = await backend.probe(10);
        assert.deepEqual(await readBytes(backend, identity, 5, 10), content.subarray(5, 15), key);
        assert.equal(canonicalSource(backend.url), backend.url);
        await backend.close();
      }
    }
  });

  void test(`${scheme}: what is no address of an object is refused before anybody is asked`, () => {
    for (const bad of [
      `${scheme}://bucket`,
      `${scheme}://bucket/`,
      `${scheme}://b/k`,
      `${scheme}:///k`,
      `${scheme}://me:pw@bucket/k`,
      `${scheme}://bucket/a/../b`,
      `${scheme}://bucket/./a`,
      `${scheme}://bucket/a\nb`,
    ]) {
      assert.throws(
        () => canonicalSource(bad),
        (error) => error instanceof SourceError && error.code === "source-invalid",
        bad,
      );
    }
  });

  void test(`${scheme}: a version that was named is what is read, whatever came later`, async () => {
    await using w = await world(scheme);
    const old = w.store.put("bucket", "images/disk.raw", pattern(5000, 7));
    w.store.put("bucket", "images/disk.raw", pattern(6000, 8));
    const options = { env: w.env, settings: w.settings };
    const backend = openBackend(`${w.source}?versionId=${old.id}`, options);
    const { identity } = await backend.probe(10);
    assert.equal(identity.size, 5000);
    assert.deepEqual(await readBytes(backend, identity, 100, 200), pattern(5000, 7).subarray(100, 300));
    assert.equal(backend.url, `${w.source}?versionId=${old.id}`);
    await backend.close();
    const missing = openBackend(`${w.source}?versionId=none`, options);
    await failsWith("source-not-found", missing.probe(10));
    await missing.close();
  });

  void test(`${scheme}: an object that was replaced is source-changed, for ranges and for the whole`, async () => {
    await using w = await world(scheme);
    const backend = w.open();
    const { identity } = await backend.probe(10);
    w.store.put("bucket", "images/disk.raw", pattern(content.length, 9));
    await failsWith("source-changed", readBytes(backend, identity, 0, 100));
    await failsWith(
      "source-changed",
      backend.stream(identity, () => undefined),
    );
    await backend.close();
  });

  void test(`${scheme}: session tokens go along, signed`, async () => {
    await using w = await world(scheme);
    w.store.keys.set(id, { secret, token: "the/session+token==" });
    for (const signature of scheme === "oss" ? (["v1", "v4"] as const) : ([undefined] as const)) {
      const backend = w.open(signature === undefined ? {} : { signature }, {
        ...w.env,
        K_SESSION_TOKEN: "the/session+token==",
      });
      assert.equal((await backend.probe(10)).identity.size, content.length);
      await backend.close();
    }
    const without = w.open();
    await failsWith("source-denied", without.probe(10));
    await without.close();
  });

  void test(`${scheme}: a clock that is off is put right by the store's, once, for all later requests`, async () => {
    await using w = await world(scheme);
    w.store.skewMs = -5 * 3600_000;
    const backend = w.open();
    const { identity } = await backend.probe(10);
    assert.equal(w.store.requests.length, 2);
    await readBytes(backend, identity, 0, 100);
    assert.equal(w.store.requests.length, 3);
    await backend.close();
  });

  void test(`${scheme}: errors say what the store said, and what to do`, async () => {
    await using w = await world(scheme);
    const probe = async (code: string, more: Partial<SourceSettings>, source = w.source): Promise<SourceError> => {
      const backend = openBackend(source, {
        env: w.env,
        settings: [{ ...w.settings[0], ...more }],
        retry: { probe: once },
      });
      const error = await failsWith(code, backend.probe(10));
      await backend.close();
      assert.doesNotMatch(
        JSON.stringify([error.message, error.hint, String(error.stack)]),
        new RegExp(secret.slice(0, 10)),
      );
      return error;
    };
    assert.match(
      (await probe("source-not-found", {}, `${scheme}://bucket/none`)).message,
      /404 NoSuchKey: The specified key/,
    );
    assert.match((await probe("source-not-found", {}, `${scheme}://bocket/none`)).hint!, /endpoint and region/);
    const anonymous = await probe("source-denied", { credentials: "anonymous" });
    assert.match(anonymous.message, /403 AccessDenied/);
    assert.match(anonymous.hint!, /not public/);
    w.store.keys.set(id, { secret, denied: true });
    assert.match((await probe("source-denied", {})).hint!, new RegExp(`env:K_.*${scheme}:GetObject`));
    w.store.keys.set(id, { secret: "another" });
    assert.match((await probe("source-denied", {})).message, /SignatureDoesNotMatch/);
    w.store.keys.set(id, { secret, expired: true });
    const expired = await probe("source-denied", {});
    assert.equal(expired.transient, true);
    assert.match(expired.hint!, /renew the credentials \(env:K_\)/);
    w.store.keys.set(id, { secret });
    const xml = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
    w.store.inject({ kind: "status", status: 503, body: xml, headers: { "retry-after": "1" } });
    assert.match((await probe("source-busy", {})).message, /SlowDown/);
    w.store.inject({ kind: "status", status: 403, body: "<Error><Code>InvalidObjectState</Code></Error>" });
    assert.match((await probe("source-denied", {})).hint!, /restore it/);
    w.store.inject({ kind: "status", status: 403, body: "<html>a proxy</html>" });
    await probe("source-denied", {});
  });

  void test(`${scheme}: public buckets are read without credentials`, async () => {
    await using w = await world(scheme);
    w.store.publicBuckets.add("bucket");
    const backend = w.open({ credentials: "anonymous" });
    const { identity } = await backend.probe(10);
    assert.deepEqual(await readBytes(backend, identity, 0, 100), content.subarray(0, 100));
    assert.ok(w.store.requests.every(({ headers }) => headers.authorization === undefined));
    await backend.close();
  });

  void test(`${scheme}: credentials that expire or are replaced in their file are read anew, without a new manager`, async () => {
    await using w = await world(scheme);
    const directory = await mkdtemp(join(tmpdir(), "ullage-keys-"));
    try {
      const file = join(directory, "keys");
      await writeFile(file, `access_key_id = ${id}\nsecret_access_key = "${secret}"\n`);
      const backend = w.open({ credentials: `file:${file}` });
      const { identity } = await backend.probe(10);
      // Rotated: the old key is worth nothing from one moment to the next, and no time passes before the next read.
      w.store.keys.delete(id);
      w.store.keys.set("NEWKEY", { secret: "new secret" });
      await writeFile(file, JSON.stringify({ AccessKeyId: "NEWKEY", SecretAccessKey: "new secret" }));
      const before = w.store.requests.length;
      assert.deepEqual(await readBytes(backend, identity, 0, 100), content.subarray(0, 100));
      assert.ok(w.store.requests.length <= before + 2);
      await backend.close();
    } finally {
      await rm(directory, { recursive: true });
    }
  });

  void test(`${scheme}: a guarded source gets nothing that this process just happens to have, and goes only where it may`, async () => {
    await using w = await world(scheme);
    const ambient = {
      AWS_ACCESS_KEY_ID: id,
      AWS_SECRET_ACCESS_KEY: secret,
      OSS_ACCESS_KEY_ID: id,
      OSS_ACCESS_KEY_SECRET: secret,
      AWS_ENDPOINT_URL: w.store.origin,
      OSS_ENDPOINT: w.store.origin,
      AWS_EC2_METADATA_DISABLED: "true",
    };
    const settings = [{ prefix: `${scheme}://`, endpoint: w.store.origin, pathStyle: true, region: regionOf(scheme) }];
    const loopback = openBackend(w.source, { env: ambient, settings, policy: sourcePolicy(["public"]) });
    await failsWith("source-forbidden", loopback.probe(10));
    await loopback.close();
    assert.equal(w.store.requests.length, 0);
    const permitted = openBackend(w.source, { env: ambient, settings, policy: sourcePolicy(["127.0.0.1"]) });
    await failsWith("source-denied", permitted.probe(10));
    assert.equal(w.store.requests[0].headers.authorization, undefined);
    await permitted.close();
  });

  void test(`${scheme}: a redirect to another host gets no signature`, async () => {
    await using w = await world(scheme);
    await using elsewhere = await startFakeStore(scheme);
    elsewhere.publicBuckets.add("bucket");
    elsewhere.put("bucket", "images/disk.raw", content);
    w.store.moved.set("bucket", elsewhere.origin);
    const backend = w.open();
    const { identity } = await backend.probe(10);
    assert.deepEqual(await readBytes(backend, identity, 7, 100), content.subarray(7, 107));
    for (const { headers } of elsewhere.requests) {
      assert.deepEqual(
        Object.keys(headers).filter((name) => /^(authorization|x-amz|x-oss)/.test(name)),
        [],
      );
    }
    await backend.close();
  });
}

void test("s3: the bucket may stand in front of the host", async () => {
  await using store = await startFakeStore("s3", { host: "localhost" });
  store.keys.set(id, { secret });
  store.put("bucket", "a b", content);
  const settings = [
    { prefix: "s3://", endpoint: `http://localhost:${store.port}`, pathStyle: false, credentials: "env:K_" },
  ];
  const env = { K_ACCESS_KEY_ID: id, K_SECRET_ACCESS_KEY: secret };
  // *.localhost leads to this machine wherever there is a resolver that follows RFC 6761; here the policy's own does.
  const policy = sourcePolicy(["127.0.0.1"], (host) =>
    Promise.resolve(host.endsWith("localhost") ? [{ address: "127.0.0.1", family: 4 }] : []),
  );
  const backend = openBackend("s3://bucket/a b", { env, settings, policy });
  const { identity } = await backend.probe(10);
  assert.deepEqual(await readBytes(backend, identity, 7, 100), content.subarray(7, 107));
  assert.equal(store.requests[0].headers.host, `bucket.localhost:${store.port}`);
  assert.equal(store.requests[0].target, "/a%20b");
  await backend.close();
});

void test("s3: the region of a bucket is learned from the refusal, and kept", async () => {
  await using w = await world("s3");
  w.store.regions.set("bucket", "eu-central-1");
  const backend = w.open();
  const { identity } = await backend.probe(10);
  assert.equal(w.store.requests.length, 2);
  await readBytes(backend, identity, 0, 10);
  assert.equal(w.store.requests.length, 3);
  assert.match(w.store.requests[2].headers.authorization!, /\/eu-central-1\/s3\//);
  // The older answer, 301 with a header, and one that leads nowhere.
  w.store.regions.set("bucket", "eu-west-1");
  w.store.inject({
    kind: "status",
    status: 301,
    headers: { "x-amz-bucket-region": "eu-west-1" },
    body: "<Error><Code>PermanentRedirect</Code></Error>",
  });
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
  w.store.inject({
    kind: "status",
    status: 301,
    body: "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>",
  });
  await failsWith("source-redirect", readBytes(backend, identity, 0, 10));
  await backend.close();
});

void test("s3: the standard chain finds credentials in the environment, in shared files and from a process", async () => {
  await using w = await world("s3");
  const directory = await mkdtemp(join(tmpdir(), "ullage-aws-"));
  const saved = { ...process.env };
  const settings = [{ prefix: "s3://", endpoint: w.store.origin, region: "us-east-1" }];
  const reads = async (credentials?: string): Promise<void> => {
    const backend = openBackend(w.source, {
      env: process.env,
      settings: [{ ...settings[0], ...(credentials === undefined ? {} : { credentials }) }],
      retry: { probe: once },
    });
    assert.equal((await backend.probe(10)).identity.size, content.length);
    await backend.close();
  };
  try {
    Object.assign(process.env, {
      AWS_EC2_METADATA_DISABLED: "true",
      AWS_SHARED_CREDENTIALS_FILE: join(directory, "credentials"),
      AWS_CONFIG_FILE: join(directory, "config"),
      AWS_ACCESS_KEY_ID: id,
      AWS_SECRET_ACCESS_KEY: secret,
    });
    await reads();
    delete process.env["AWS_ACCESS_KEY_ID"];
    delete process.env["AWS_SECRET_ACCESS_KEY"];
    await writeFile(
      join(directory, "credentials"),
      `[default]\naws_access_key_id = ${id}\naws_secret_access_key = ${secret}\n[wrong]\naws_access_key_id = x\naws_secret_access_key = y\n`,
    );
    await reads();
    const printed = JSON.stringify({ Version: 1, AccessKeyId: id, SecretAccessKey: secret });
    await writeFile(join(directory, "print"), `#!/bin/sh\necho '${printed}'\n`);
    await chmod(join(directory, "print"), 0o755);
    await writeFile(join(directory, "config"), `[profile backups]\ncredential_process = ${join(directory, "print")}\n`);
    await reads("profile:backups");
    await assert.rejects(reads("profile:wrong"), { code: "source-denied" });
    await assert.rejects(reads("profile:none"), { code: "source-credentials" });
    await reads(`helper:${join(directory, "print")}`);
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in saved)) delete process.env[name];
    Object.assign(process.env, saved);
    await rm(directory, { recursive: true });
  }
});

void test("s3: credentials of an instance's metadata service and of a container's, session token included; one that never answers ends", async () => {
  await using w = await world("s3");
  w.store.keys.set(id, { secret, token: "session" });
  const saved = { ...process.env };
  const expiring = {
    Code: "Success",
    Type: "AWS-HMAC",
    AccessKeyId: id,
    SecretAccessKey: secret,
    Token: "session",
    LastUpdated: new Date().toISOString(),
    Expiration: new Date(Date.now() + 6 * 3600_000).toISOString(),
  };
  await using metadata = await startFakeServer(({ method, url, headers }) => {
    if (url.pathname === "/container") return { status: 200, body: JSON.stringify(expiring) };
    if (method === "PUT" && url.pathname === "/latest/api/token") return { status: 200, body: "imds" };
    if (headers["x-aws-ec2-metadata-token"] !== "imds") return { status: 401 };
    const roles = "/latest/meta-data/iam/security-credentials/";
    if (url.pathname === roles) return { status: 200, body: "role" };
    return url.pathname === `${roles}role` ? { status: 200, body: JSON.stringify(expiring) } : { status: 404 };
  });
  const settings = [{ prefix: "s3://", endpoint: w.store.origin, region: "us-east-1" }];
  const open = (): ReturnType<typeof openBackend> =>
    openBackend(w.source, { env: process.env, settings, retry: { probe: once } });
  try {
    for (const name of Object.keys(process.env).filter((each) => each.startsWith("AWS_"))) delete process.env[name];
    Object.assign(process.env, {
      AWS_SHARED_CREDENTIALS_FILE: "/nonexistent",
      AWS_CONFIG_FILE: "/nonexistent",
      AWS_EC2_METADATA_SERVICE_ENDPOINT: metadata.origin,
    });
    const instance = open();
    const { identity } = await instance.probe(10);
    const asked = metadata.requests.length;
    await readBytes(instance, identity, 0, 10);
    assert.equal(metadata.requests.length, asked, "what is valid is not asked for again");
    await instance.close();
    process.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = `${metadata.origin}/container`;
    const container = open();
    assert.equal((await container.probe(10)).identity.size, content.length);
    await container.close();
    delete process.env["AWS_CONTAINER_CREDENTIALS_FULL_URI"];
    metadata.onRequest = () => ({ kind: "stall" });
    const silent = open();
    assert.match(
      (await failsWith("source-denied", silent.probe(10))).hint!,
      /not public, and there are no credentials \(the standard AWS chain\)/,
    );
    await silent.close();
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in saved)) delete process.env[name];
    Object.assign(process.env, saved);
  }
});

void test("s3: a web identity is traded at STS; the token's file is read again, and an STS that is away or refuses is no silence", async () => {
  await using w = await world("s3");
  const directory = await mkdtemp(join(tmpdir(), "ullage-sts-"));
  const saved = { ...process.env };
  const tokenFile = join(directory, "token");
  let lifeMs = 1500;
  let given = 0;
  let refuse = false;
  await using sts = await startFakeServer(({ method, body }) => {
    const form = new URLSearchParams(body);
    const asked = [method, form.get("Action"), form.get("RoleArn"), form.get("RoleSessionName")];
    if (asked.join() !== "POST,AssumeRoleWithWebIdentity,arn:aws:iam::123456789012:role/disks,ullage-test")
      return { status: 400 };
    if (refuse || form.get("WebIdentityToken") !== `web-token-${given + 1}`) {
      const error = "<Code>InvalidIdentityToken</Code><Message>The token has expired</Message>";
      return { status: 400, body: `<ErrorResponse><Error><Type>Sender</Type>${error}</Error></ErrorResponse>` };
    }
    given++;
    // Each session makes the one before it worthless.
    w.store.keys.set(id, { secret, token: `session-${given}` });
    const expires = new Date(Date.now() + lifeMs).toISOString();
    const keys = `<AccessKeyId>${id}</AccessKeyId><SecretAccessKey>${secret}</SecretAccessKey><SessionToken>session-${given}</SessionToken>`;
    const result = `<Credentials>${keys}<Expiration>${expires}</Expiration></Credentials>`;
    return {
      status: 200,
      headers: { "content-type": "text/xml" },
      body: `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>${result}</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
    };
  });
  const settings = [{ prefix: "s3://", endpoint: w.store.origin, region: "us-east-1" }];
  try {
    for (const name of Object.keys(process.env).filter((each) => each.startsWith("AWS_"))) delete process.env[name];
    Object.assign(process.env, {
      AWS_SHARED_CREDENTIALS_FILE: "/nonexistent",
      AWS_CONFIG_FILE: "/nonexistent",
      AWS_EC2_METADATA_DISABLED: "true",
      AWS_WEB_IDENTITY_TOKEN_FILE: tokenFile,
      AWS_ROLE_ARN: "arn:aws:iam::123456789012:role/disks",
      AWS_ROLE_SESSION_NAME: "ullage-test",
      AWS_ENDPOINT_URL_STS: sts.origin,
      AWS_REGION: "eu-central-1",
    });
    await writeFile(tokenFile, "web-token-1");
    const backend = openBackend(w.source, { env: process.env, settings, retry: { probe: once } });
    const { identity } = await backend.probe(10);
    assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
    assert.equal(given, 1);
    await writeFile(tokenFile, "web-token-2");
    lifeMs = 3600_000;
    for (const deadline = Date.now() + 30_000; sts.requests.length < 2 && Date.now() < deadline;) {
      assert.equal((await readBytes(backend, identity, 0, 10)).length, 10);
    }
    assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
    assert.equal(given, 2);
    await backend.close();

    refuse = true;
    const refused = openBackend(w.source, { env: process.env, settings, retry: { probe: once } });
    const failure = await failsWith("source-credentials", refused.probe(10));
    assert.equal(failure.transient, true);
    assert.match(describeError(failure), /^no credentials from the standard AWS chain: .*The token has expired/);
    assert.doesNotMatch(describeError(failure), /web-token/);
    await refused.close();
    await sts.pause();
    const alone = openBackend(w.source, { env: process.env, settings, retry: { probe: once } });
    await failsWith("source-credentials", alone.probe(10));
    await alone.close();
    await sts.resume();
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in saved)) delete process.env[name];
    Object.assign(process.env, saved);
    await rm(directory, { recursive: true });
  }
});

void test("oss: an endpoint or a region must be known, and an endpoint of Alibaba's names its region", async () => {
  const open = (settings: Partial<SourceSettings>): unknown =>
    openBackend("oss://bucket/key", { settings: [{ prefix: "oss://", ...settings }] });
  assert.throws(() => open({}), { code: "source-invalid" });
  assert.throws(() => open({ endpoint: "https://oss.example.org", signature: "v4" }), { code: "source-invalid" });
  open({ region: "cn-beijing" });
  open({ endpoint: "https://oss-cn-beijing-internal.aliyuncs.com", signature: "v4" });
  open({ endpoint: "https://oss.example.org" });
  await Promise.resolve();
});
