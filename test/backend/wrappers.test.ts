import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { connect, type AddressInfo, type Socket } from "node:net";
import { createServer as createHttpServer, request as httpRequest } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { join } from "node:path";
import { test } from "node:test";
import { Backends } from "../../src/backend/backends.ts";
import { environmentProxy } from "../../src/backend/http/proxy.ts";
import { HostRateLimit } from "../../src/backend/wrappers/rate-limit.ts";
import { sourcePolicy } from "../../src/backend/source-guard.ts";
import { mirrored, settingsFor } from "../../src/backend/source-settings.ts";
import type { Clock } from "../../src/base/clock.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { type HttpSource, startHttpSource } from "../support/http-source.ts";
import { startFakeStore } from "../support/store-fake.ts";
import { requireTool } from "../support/tools.ts";
import { collect, failsWith, openBackend, pattern, readBytes, turns } from "./support.ts";

const content = pattern(1_000_000);
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };
const quick = { probe: once, foreground: once, background: once };

/** Long enough for a request that is made to arrive: a test that is too quick here passes, it never fails. */
const soon = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 100));

/** Time that passes only when a test says so. */
function manualClock(): Clock & { advance(ms: number): Promise<void> } {
  let now = 0;
  let sleepers: { until: number; wake: () => void }[] = [];
  return {
    now: () => now,
    wallTime: () => new Date(now).toISOString(),
    sleep: (ms, signal) =>
      new Promise((resolve, reject) => {
        if (signal?.aborted) return reject(signal.reason as Error);
        signal?.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
        sleepers.push({ until: now + ms, wake: resolve });
      }),
    advance: async (ms) => {
      now += ms;
      const due = sleepers.filter(({ until }) => until <= now);
      sleepers = sleepers.filter(({ until }) => until > now);
      for (const { wake } of due) wake();
      await new Promise((resolve) => setImmediate(resolve));
    },
  };
}

async function mirroredWorld(): Promise<
  { source: HttpSource; mirror: HttpSource; open(clock?: Clock): ReturnType<typeof openBackend> } & AsyncDisposable
> {
  const source = await startHttpSource({ content });
  const mirror = await startHttpSource({ content, path: "/copy/disk.img" });
  const prefix = new URL("/", source.url).href;
  const settings = [{ prefix, mirrors: [new URL("/copy/", mirror.url).href] }];
  return {
    source,
    mirror,
    open: (clock) => openBackend(source.url, { settings, retry: quick, ...(clock === undefined ? {} : { clock }) }),
    [Symbol.asyncDispose]: async () => {
      await source.close();
      await mirror.close();
    },
  };
}

void test("mirrors are read first; what the object is the source says, or a mirror when it is out of reach", async () => {
  await using w = await mirroredWorld();
  const backend = w.open();
  const { identity } = await backend.probe(1);
  assert.deepEqual([w.source.requestCount, w.mirror.requestCount], [1, 0]);
  assert.deepEqual(await readBytes(backend, identity, 5, 500), content.subarray(5, 505));
  assert.deepEqual([w.source.requestCount, w.mirror.requestCount], [1, 1]);
  await w.source.pause();
  assert.deepEqual((await backend.probe(1)).identity, identity);
  await w.source.resume();
  await backend.close();
});

void test("what a mirror said stands below what the source said, when both fail", async () => {
  await using w = await mirroredWorld();
  const backend = w.open();
  await w.source.pause();
  w.mirror.inject({ kind: "status", status: 403 });
  const failure = await failsWith("source-unreachable", backend.probe(1));
  assert.match(failure.message, /^http:\/\/127\.0\.0\.1:\d+\/disk\.img cannot be reached$/);
  assert.match(
    failure.hint ?? "",
    /^check the address, .*; its mirrors: http:\/\/127\.0\.0\.1:\d+\/copy\/disk\.img answered 403$/,
  );
  await backend.close();
});

void test("a mirror with another version is not asked again for this object, and nothing of it is used", async () => {
  await using w = await mirroredWorld();
  w.mirror.replace(pattern(content.length, 9));
  w.mirror.etag = '"another"';
  const clock = manualClock();
  const backend = w.open(clock);
  const { identity } = await backend.probe(1);
  for (let n = 0; n < 3; n++)
    assert.deepEqual(await readBytes(backend, identity, n, 500), content.subarray(n, n + 500));
  await clock.advance(120_000);
  assert.deepEqual(await readBytes(backend, identity, 3, 500), content.subarray(3, 503));
  await soon();
  assert.equal(w.mirror.requestCount, 1);
  await backend.close();
});

void test("a mirror that fails in the middle is gone on from, rests, and is used again when it is well", async () => {
  await using w = await mirroredWorld();
  const clock = manualClock();
  const backend = w.open(clock);
  const { identity } = await backend.probe(1);
  w.mirror.inject({ kind: "reset", after: 300_000 });
  assert.deepEqual(await readBytes(backend, identity, 0, content.length), content);
  assert.ok(w.source.requests.at(-1)!.start >= 200_000, "the source was asked for the rest only");
  const asked = w.mirror.requestCount;
  await readBytes(backend, identity, 0, 10);
  assert.equal(w.mirror.requestCount, asked, "it rests");
  await clock.advance(6_000);
  w.mirror.inject({ kind: "status", status: 503 });
  await readBytes(backend, identity, 0, 10);
  while (w.mirror.requestCount === asked) await new Promise((resolve) => setTimeout(resolve, 5));
  await turns(); // the answer has come
  await clock.advance(6_000);
  await readBytes(backend, identity, 0, 10);
  assert.equal(w.mirror.requestCount, asked + 1, "a failed look makes it rest longer");
  await clock.advance(6_000);
  await readBytes(backend, identity, 0, 10);
  while (w.mirror.requestCount === asked + 1) await new Promise((resolve) => setTimeout(resolve, 5));
  await turns(); // the answer has come
  const before = w.source.requestCount;
  assert.deepEqual(await readBytes(backend, identity, 7, 10), content.subarray(7, 17));
  assert.equal(w.source.requestCount, before, "the mirror is used again");
  await backend.close();
});

void test("prefixes end where a part of an address does, and the longest counts", () => {
  const all = [{ prefix: "s3://backups" }, { prefix: "s3://backups/daily/" }, { prefix: "https://a.example/" }];
  assert.equal(settingsFor("s3://backups-of-others/x", all), undefined);
  assert.equal(settingsFor("s3://backups/x", all)?.prefix, "s3://backups");
  assert.equal(settingsFor("s3://backups/daily/x", all)?.prefix, "s3://backups/daily/");
  assert.equal(settingsFor("https://a.example.evil.test/", all), undefined);
  const files = [{ prefix: "/srv" }, { prefix: "/srv/images/" }];
  assert.equal(settingsFor("/srv/disk", files)?.prefix, "/srv");
  assert.equal(settingsFor("/srv/images/disk", files)?.prefix, "/srv/images/");
  assert.equal(settingsFor("/srv:2/disk", files), undefined);
  assert.equal(settingsFor("https://a.example/srv/disk", files), undefined);
  assert.equal(mirrored("s3://backups/x/y", all[0], "https://m.example/b/"), "https://m.example/b/x/y");
  assert.equal(mirrored("s3://backups/daily/x", all[1], "s3://other"), "s3://other/x");
});

// ---- proxies -----------------------------------------------------------------------------------------------------------

/** An HTTP proxy that finds every host on this machine. */
async function startProxy(): Promise<{ port: number; asked: string[]; refuse: boolean; close(): Promise<void> }> {
  const proxy = { port: 0, asked: [] as string[], refuse: false, close: () => Promise.resolve() };
  const sockets = new Set<Socket>();
  const server = createHttpServer((request, response) => {
    proxy.asked.push(request.url!);
    if (proxy.refuse) {
      request.socket.destroy();
      return;
    }
    const url = new URL(request.url!);
    const onward = httpRequest(
      { host: "127.0.0.1", port: url.port, path: url.pathname, headers: request.headers },
      (answer) => {
        response.writeHead(answer.statusCode!, answer.headers);
        answer.pipe(response);
      },
    );
    request.pipe(onward);
  });
  server.on("connect", (request, client: Socket) => {
    proxy.asked.push(`CONNECT ${request.url}`);
    const onward = connect(Number(request.url!.split(":")[1]), "127.0.0.1", () => {
      client.write("HTTP/1.1 200 OK\r\n\r\n");
      onward.pipe(client).pipe(onward);
    });
    for (const socket of [client, onward]) socket.on("error", () => socket.destroy());
  });
  server.on("connection", (socket) => sockets.add(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  proxy.port = (server.address() as AddressInfo).port;
  proxy.close = () =>
    new Promise((resolve) => {
      server.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
  return proxy;
}

/** Everything that is asked for directly is on this machine, too. */
const local = sourcePolicy(["any"], () => Promise.resolve([{ address: "127.0.0.1", family: 4 }]));

void test("a proxy is gone through; when it fails, the direct way is taken, and it rests", async () => {
  await using source = await startHttpSource({ content });
  const proxy = await startProxy();
  const url = `http://disk.test:${source.port}/disk.img`;
  const settings = [{ prefix: "http://disk.test", proxy: `http://127.0.0.1:${proxy.port}` }];
  const backend = openBackend(url, { settings, policy: local, retry: quick });
  const { identity } = await backend.probe(1);
  assert.deepEqual(await readBytes(backend, identity, 5, 500), content.subarray(5, 505));
  assert.equal(proxy.asked.length, 2);
  proxy.refuse = true;
  assert.deepEqual(await readBytes(backend, identity, 5, 500), content.subarray(5, 505));
  assert.equal(proxy.asked.length, 3);
  assert.deepEqual(await readBytes(backend, identity, 5, 500), content.subarray(5, 505));
  assert.equal(proxy.asked.length, 3, "it rests");
  await backend.close();
  const strict = openBackend(url, {
    settings: [{ ...settings[0], proxyFallback: false }],
    policy: local,
    retry: quick,
  });
  const before = source.requestCount;
  await failsWith("source-unreachable", strict.probe(1));
  assert.equal(source.requestCount, before);
  await strict.close();
  await proxy.close();
});

void test("through a proxy TLS is spoken with the source itself, and `ca` says whom it believes", async (t) => {
  if (!requireTool(t, "openssl")) return;
  const directory = await temporaryDirectory(t);
  const [key, ca] = [join(directory, "key.pem"), join(directory, "ca.pem")];
  const certificate = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=disk.test"];
  const files = ["-keyout", key, "-out", ca, "-addext", "subjectAltName=DNS:disk.test"];
  execFileSync("openssl", [...certificate, ...files], { stdio: "pipe" });
  const server = createTlsServer({ key: await readFile(key), cert: await readFile(ca) }, (_, response) => {
    response.writeHead(206, { etag: '"tls"', "content-range": "bytes 0-0/10", "content-length": "1" }).end("x");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const proxy = await startProxy();
  const url = `https://disk.test:${(server.address() as AddressInfo).port}/disk.img`;
  const settings = { prefix: "https://disk.test", proxy: `http://127.0.0.1:${proxy.port}`, proxyFallback: false };
  try {
    const known = openBackend(url, { settings: [{ ...settings, ca }], policy: local, retry: quick });
    assert.equal((await known.probe(1)).identity.version, 'etag:"tls"');
    assert.deepEqual(proxy.asked, [`CONNECT ${new URL(url).host}`]);
    await known.close();
    const unknown = openBackend(url, { settings: [settings], policy: local, retry: quick });
    await failsWith("source-tls", unknown.probe(1));
    await unknown.close();
  } finally {
    await proxy.close();
    server.closeAllConnections();
    server.close();
  }
});

void test("the environment says which proxy, and for which hosts none", () => {
  const choice = environmentProxy({
    HTTPS_PROXY: "http://p:3128",
    http_proxy: "p:8080",
    NO_PROXY: "internal.test, .example.org,10.0.0.0/8 [::2] exact.test:8443",
  });
  const of = (url: string): string | undefined => choice(new URL(url))?.url;
  assert.equal(of("https://a.test/"), "http://p:3128");
  assert.equal(of("http://a.test/"), "http://p:8080");
  for (const direct of [
    "https://internal.test/",
    "https://a.internal.test/",
    "https://a.example.org",
    "https://example.org",
    "https://10.2.3.4/",
    "https://[::2]/",
    "https://exact.test:8443/",
    "https://localhost/",
    "https://127.0.0.1/",
    "http://[::1]/",
  ]) {
    assert.equal(of(direct), undefined, direct);
  }
  for (const through of ["https://notinternal.test/", "https://exact.test/", "https://11.2.3.4/"])
    assert.equal(of(through), "http://p:3128", through);
  assert.equal(environmentProxy({ HTTPS_PROXY: "p:1", NO_PROXY: "*" })(new URL("https://a.test/")), undefined);
});

void test("an address that the policy does not let in is not asked for through a proxy either", async () => {
  const proxy = await startProxy();
  const policy = sourcePolicy(["public"], () => Promise.resolve([{ address: "10.0.0.1", family: 4 }]));
  const settings = [{ prefix: "http://disk.test", proxy: `http://127.0.0.1:${proxy.port}` }];
  const backend = openBackend("http://disk.test/disk.img", { settings, policy, retry: quick });
  await failsWith("source-forbidden", backend.probe(1));
  assert.equal(proxy.asked.length, 0);
  await backend.close();
  await proxy.close();
});

// ---- rate limit --------------------------------------------------------------------------------------------------------

void test("the rate is shared, the background waits for all of it, the foreground only for its own; a change holds at once", async () => {
  const clock = manualClock();
  const limit = new HostRateLimit(clock, 1000);
  assert.equal(
    limit.take(250, () => true),
    undefined,
  );
  const background = limit.take(2000, () => true)!;
  let done = false;
  void background.then(() => (done = true));
  assert.equal(
    limit.take(200, () => false),
    undefined,
    "no foreground chunk waits for the background",
  );
  await clock.advance(1000);
  await clock.advance(1000);
  assert.equal(done, false, "the background pays for the foreground's bytes as well");
  await clock.advance(1000);
  assert.equal(done, true);
  const foreground = limit.take(10_000, () => false)!;
  let woken = false;
  void foreground.then(() => (woken = true));
  limit.bytesPerSecond = null;
  await clock.advance(0);
  assert.equal(woken, true);
  assert.equal(
    limit.take(1e9, () => true),
    undefined,
  );
});

void test("all sources of a host together keep to the limit, byte for byte, and a read waits no longer when it is lifted", async () => {
  await using a = await startHttpSource({ content });
  await using b = await startHttpSource({ content });
  const backends = new Backends({ env: {}, bytesPerSecond: 100_000 });
  const [one, two] = [backends.open(a.url), backends.open(b.url)];
  const identities = await Promise.all([one.probe(1), two.probe(1)]);
  const first = collect();
  const reading = Promise.all([
    one.read(identities[0].identity, 0, content.length, first.sink, { background: true }),
    two.read(identities[1].identity, 0, content.length, () => undefined, { background: true }),
  ]);
  // A foreground read of another size gets through at once, though the background is seconds in debt.
  assert.deepEqual(await readBytes(one, identities[0].identity, 0, 1000), content.subarray(0, 1000));
  assert.ok(first.bytes().length < content.length);
  backends.rateLimit.bytesPerSecond = null;
  await reading;
  assert.deepEqual(first.bytes(), content);
  await backends.close();
});

// ---- what is shared ----------------------------------------------------------------------------------------------------

void test("connections belong to endpoint and credentials reference; they are shared, and go when nobody uses them", async () => {
  const clock = manualClock();
  const settings = [{ prefix: "s3://", endpoint: "http://127.0.0.1:1", credentials: "env:K_" }];
  const env: Record<string, string> = { K_ACCESS_KEY_ID: "a", K_SECRET_ACCESS_KEY: "b" };
  const backends = new Backends({ clock, env, settings });
  const [one, two] = [backends.open("s3://bucket/one"), backends.open("s3://bucket/two")];
  env["K_SECRET_ACCESS_KEY"] = "another";
  const three = backends.open("s3://other/three");
  assert.deepEqual(backends.accesses, ["s3 http://127.0.0.1:1 (env:K_)"]);
  const guarded = backends.open("s3://bucket/one", true);
  const web = ["https://a.example/x", "https://a.example/y", "https://me:secret@a.example/x"].map((url) =>
    backends.open(url),
  );
  assert.equal(backends.accesses.length, 4);
  assert.ok(!backends.accesses.join().includes("secret"));
  for (const backend of [one, two, guarded, ...web]) await backend.close();
  await clock.advance(61_000);
  assert.deepEqual(backends.accesses, ["s3 http://127.0.0.1:1 (env:K_)"]);
  await three.close();
  await clock.advance(30_000);
  const again = backends.open("s3://bucket/one");
  await clock.advance(40_000);
  assert.equal(backends.accesses.length, 1, "it came into use again");
  await again.close();
  await clock.advance(61_000);
  assert.equal(backends.accesses.length, 0);
  await backends.close();
});

void test("a busy source is left alone by the background until Retry-After is over; the foreground asks", async () => {
  await using store = await startFakeStore("s3");
  store.publicBuckets.add("bucket");
  store.put("bucket", "k", content);
  const clock = manualClock();
  const backends = new Backends({
    clock,
    env: {},
    retry: quick,
    settings: [{ prefix: "s3://", endpoint: store.origin, credentials: "anonymous" }],
  });
  const [one, two] = [backends.open("s3://bucket/k"), backends.open("s3://bucket/k")];
  const { identity } = await one.probe(1);
  store.inject({ kind: "status", status: 429, headers: { "retry-after": "20" } });
  await failsWith("source-busy", readBytes(one, identity, 0, 10, { background: true }));
  const asked = store.requests.length;
  const waiting = readBytes(two, identity, 0, 10, { background: true });
  await clock.advance(10_000);
  await soon();
  assert.equal(store.requests.length, asked);
  assert.deepEqual(await readBytes(two, identity, 5, 10), content.subarray(5, 15));
  await clock.advance(10_001);
  assert.deepEqual(await waiting, content.subarray(0, 10));
  for (const backend of [one, two]) await backend.close();
  await backends.close();
});
