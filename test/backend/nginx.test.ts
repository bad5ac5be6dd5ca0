import assert from "node:assert/strict";
import { copyFile, rename, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { Backends } from "../../src/backend/backends.ts";
import { describeError, type SourceError } from "../../src/base/errors.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { makePki } from "../nbd/pki.ts";
import { Nginx, type NginxServers } from "../support/nginx.ts";
import { requireTool } from "../support/tools.ts";
import { collect, failsWith, httpBackend, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(5_000_003);
const once = { attempts: 1, baseMs: 1, capMs: 1, timeLimitMs: 1000 };

const plainServers: NginxServers = ({ port, root }) => `
  server {
    listen 127.0.0.1:${port}; root ${root};
    location /dated/ { alias ${root}/; etag off; }
    location /plain/ { alias ${root}/; max_ranges 0; }
    location /moved/ { return 302 /disk.img; }
    location /closing/ { alias ${root}/; keepalive_timeout 0; }
  }`;

void test("nginx: everything that a real server answers", { timeout: 60_000 }, async (t) => {
  if (!requireTool(t, "nginx")) return;
  const nginx = await Nginx.start(t, plainServers);
  const path = join(nginx.root, "disk.img");
  const old = new Date(Date.now() - 60_000);
  await writeFile(path, content);
  await utimes(path, old, old);

  await t.test("ranges, with its strong ETag, over kept and over closed connections", async () => {
    for (const place of ["/disk.img", "/closing/disk.img", "/moved/"]) {
      await using backend = httpBackend(nginx.url + place);
      const { identity, head, ranges } = await backend.probe(4096);
      assert.deepEqual([identity.size, identity.strong, ranges], [content.length, true, true]);
      assert.match(identity.version, /^etag:"[0-9a-f]+-[0-9a-f]+"$/);
      assert.deepEqual(head, content.subarray(0, 4096));
      const reads = Array.from({ length: 20 }, async (_, n) => {
        const bytes = await readBytes(backend, identity, n * 250_000, 250_000, { background: n % 3 > 0 });
        assert.deepEqual(bytes, content.subarray(n * 250_000, (n + 1) * 250_000));
      });
      await Promise.all(reads);
    }
  });

  await t.test("Last-Modified alone", async () => {
    await using backend = httpBackend(`${nginx.url}/dated/disk.img`);
    const { identity } = await backend.probe(10);
    assert.equal(identity.version, `last-modified:${old.toUTCString()}`);
    assert.equal(identity.strong, true);
    assert.deepEqual(await readBytes(backend, identity, 77, 100_000), content.subarray(77, 100_077));
  });

  await t.test("no ranges: recognised, refused, streamed", async () => {
    await using backend = httpBackend(`${nginx.url}/plain/disk.img`);
    const { identity, ranges } = await backend.probe(10);
    assert.equal(ranges, false);
    await failsWith("source-no-ranges", readBytes(backend, identity, 0, 10));
    const collector = collect();
    await backend.stream(identity, collector.sink);
    assert.deepEqual(collector.bytes(), content);
  });

  await t.test("an empty file, and none", async () => {
    await writeFile(join(nginx.root, "empty"), "");
    await using empty = httpBackend(`${nginx.url}/empty`);
    const { identity, head, ranges } = await empty.probe(10);
    assert.deepEqual([identity.size, head.length, ranges], [0, 0, true]);
    await using missing = httpBackend(`${nginx.url}/missing`);
    await failsWith("source-not-found", missing.probe(10));
  });

  await t.test("a replaced, a shortened and a touched file are source-changed", async () => {
    for (const place of ["/disk.img", "/dated/disk.img"]) {
      const changes = [
        async (): Promise<void> => {
          await writeFile(join(nginx.root, "new"), pattern(content.length, 7));
          await rename(join(nginx.root, "new"), path);
        },
        () => truncate(path, 100),
        () => utimes(path, new Date(), new Date()),
      ];
      for (const change of changes) {
        await writeFile(path, content);
        await utimes(path, old, old);
        await using backend = httpBackend(nginx.url + place);
        const { identity } = await backend.probe(10);
        await change();
        await failsWith("source-changed", readBytes(backend, identity, 50, 100));
      }
    }
  });
});

void test("nginx: a redirect to a place that expires is followed anew", { timeout: 60_000 }, async (t) => {
  if (!requireTool(t, "nginx")) return;
  const servers =
    (token: string, wanted = token): NginxServers =>
    ({ port, otherPort, root }) => `
      server { listen 127.0.0.1:${port}; location / { return 302 http://127.0.0.1:${otherPort}$uri?token=${token}; } }
      server { listen 127.0.0.1:${otherPort}; root ${root}; if ($arg_token != ${wanted}) { return 403; } }`;
  const nginx = await Nginx.start(t, servers("first"));
  await writeFile(join(nginx.root, "disk.img"), content);
  const backend = openBackend(`${nginx.url}/disk.img`, { retry: { foreground: once } });
  const { identity } = await backend.probe(1);
  for (const token of ["second", "third"]) {
    assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
    await nginx.stop();
    await failsWith("source-unreachable", readBytes(backend, identity, 5, 1000));
    await nginx.start(servers(token));
    assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  }
  // It has expired for good: the place that the source sends to does not let us in.
  await nginx.restart(servers("old", "new"));
  assert.doesNotMatch((await failsWith("source-denied", readBytes(backend, identity, 5, 1000))).message, /token/);
  await nginx.restart(servers("new"));
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  await backend.close();
});

void test("nginx: a password that is exchanged in a file, and on the server, costs no restart", async (t) => {
  if (!requireTool(t, "nginx")) return;
  const servers: NginxServers = ({ port, root, directory }) => `
    server { listen 127.0.0.1:${port}; root ${root}; auth_basic "disks"; auth_basic_user_file ${directory}/users; }`;
  const nginx = await Nginx.start(t, servers);
  const [path, users, file] = [
    join(nginx.root, "disk.img"),
    join(nginx.directory, "users"),
    join(nginx.directory, "login"),
  ];
  const login = async (password: string): Promise<void> => writeFile(file, `username = me\npassword = ${password}\n`);
  await writeFile(path, content);
  await writeFile(users, "me:{PLAIN}first-secret\n");
  await login("wrong-secret");
  const settings = [{ prefix: nginx.url, credentials: `file:${file}` }];
  const backend = openBackend(`${nginx.url}/disk.img`, { settings });
  const refused = await failsWith("source-denied", backend.probe(1));
  assert.doesNotMatch(`${describeError(refused)} ${refused.hint}`, /secret/);
  await login("first-secret");
  const { identity } = await backend.probe(1);
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  await writeFile(users, "me:{PLAIN}second\n");
  await failsWith("source-denied", readBytes(backend, identity, 5, 1000));
  await login("second");
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  assert.equal(backend.url, `${nginx.url}/disk.img`);
  await failsWith("source-denied", openBackend(`${nginx.url}/disk.img`).probe(1));
  await backend.close();
});

void test("nginx: a certificate from an authority of one's own is believed where `ca` says so, and a new one after a refresh", async (t) => {
  if (!requireTool(t, "nginx", "certtool")) return;
  const directory = await temporaryDirectory(t);
  const [first, second] = [await makePki(directory, "first"), await makePki(directory, "second")];
  const servers =
    (pki: string): NginxServers =>
    ({ port, otherPort, root }) => `
      server { listen 127.0.0.1:${port}; return 302 https://localhost:${otherPort}$uri; }
      server { listen 127.0.0.1:${otherPort} ssl; root ${root}; ssl_certificate ${pki}/server-cert.pem; ssl_certificate_key ${pki}/server-key.pem; }`;
  const nginx = await Nginx.start(t, servers(first));
  await writeFile(join(nginx.root, "disk.img"), content);
  const ca = join(directory, "authorities.pem");
  const settings = [{ prefix: "https://", ca }];
  const source = `https://localhost:${nginx.otherPort}/disk.img`;
  const unknown = await failsWith("source-tls", openBackend(source).probe(1));
  assert.match(unknown.hint ?? "", /`ca`/);
  const backends = new Backends({ env: {}, settings });
  const backend = backends.open(source);
  assert.match((await failsWith("source-tls", backend.probe(1))).message, /authorities\.pem holds no certificates/);
  await copyFile(join(first, "ca-cert.pem"), ca);
  const { identity } = await backend.probe(1);
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));

  await nginx.restart(servers(second));
  await failsWith("source-tls", readBytes(backend, identity, 5, 1000));
  await copyFile(join(second, "ca-cert.pem"), ca);
  await failsWith("source-tls", readBytes(backend, identity, 5, 1000));
  const reading = readBytes(backend, identity, 5, 1000).catch((error: unknown) => error);
  backends.refresh();
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  assert.ok(await reading);

  // The table of the address that was named counts, also for where it redirects to.
  const moved = openBackend(`${nginx.url}/disk.img`, { settings: [{ prefix: nginx.url, ca }] });
  assert.deepEqual((await moved.probe(4)).head, content.subarray(0, 4));
  await moved.close();
  await backend.close();
  await backends.close();
});

void test("nginx: what it compresses on the way is not asked for, and refused when it comes all the same", async (t) => {
  if (!requireTool(t, "nginx")) return;
  const nginx = await Nginx.start(
    t,
    ({ port, root }) => `
      server {
        listen 127.0.0.1:${port}; root ${root};
        gzip on; gzip_types *; gzip_min_length 0;
        location /packed/ { alias ${root}/; gzip_static always; }
      }`,
  );
  await writeFile(join(nginx.root, "disk.img"), content);
  await writeFile(join(nginx.root, "disk.img.gz"), gzipSync(content, { level: 1 }));
  await using backend = httpBackend(`${nginx.url}/disk.img`);
  const { identity } = await backend.probe(1);
  assert.equal(identity.size, content.length);
  assert.deepEqual(await readBytes(backend, identity, 5, 1000), content.subarray(5, 1005));
  await using packed = httpBackend(`${nginx.url}/packed/disk.img`);
  assert.match((await failsWith("source-encoded", packed.probe(1))).message, /Content-Encoding gzip/);
});

void test("nginx: a limit of requests slows reads down and fails none", { timeout: 60_000 }, async (t) => {
  if (!requireTool(t, "nginx")) return;
  const nginx = await Nginx.start(
    t,
    ({ port, root }) => `
      limit_req_zone $server_port zone=one:1m rate=20r/s; limit_req_zone $server_port zone=two:1m rate=20r/s;
      limit_req_status 429;
      server {
        listen 127.0.0.1:${port}; root ${root};
        location /429/ { alias ${root}/; limit_req zone=one; error_page 429 = @wait; }
        location /503/ { alias ${root}/; limit_req zone=two; limit_req_status 503; }
        location @wait { add_header Retry-After 1 always; return 429; }
      }`,
  );
  await writeFile(join(nginx.root, "disk.img"), content);
  for (const place of ["429", "503"]) {
    const backend = openBackend(`${nginx.url}/${place}/disk.img`);
    const { identity } = await backend.probe(1);
    const reasons = new Set<string>();
    const reads = Array.from({ length: 8 }, async (_, n) => {
      const onRetry = ({ message }: SourceError): unknown => reasons.add(message.replace(/^.* /, ""));
      const bytes = await readBytes(backend, identity, n * 1000, 1000, { onRetry });
      assert.deepEqual(bytes, content.subarray(n * 1000, (n + 1) * 1000));
    });
    await Promise.all(reads);
    assert.deepEqual([...reasons], [place]);
    await backend.close();
  }
});
