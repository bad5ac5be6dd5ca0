import assert from "node:assert/strict";
import { rename, truncate, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { Nginx, type NginxServers } from "../support/nginx.ts";
import { requireTool } from "../support/tools.ts";
import { collect, failsWith, httpBackend, pattern, readBytes } from "./support.ts";

const content = pattern(5_000_003);

const servers: NginxServers = ({ port, root }) => `
  server {
    listen 127.0.0.1:${port}; root ${root};
    location /dated/ { alias ${root}/; etag off; }
    location /plain/ { alias ${root}/; max_ranges 0; }
    location /moved/ { return 302 /disk.img; }
    location /closing/ { alias ${root}/; keepalive_timeout 0; }
  }`;

void test("nginx: everything that a real server answers", { timeout: 60_000 }, async (t) => {
  if (!requireTool(t, "nginx")) return;
  const nginx = await Nginx.start(t, servers);
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
