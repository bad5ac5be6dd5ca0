import assert from "node:assert/strict";
import type { LookupAddress } from "node:dns";
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { LocalFileBackend } from "../../src/backend/file/localfs.ts";
import { sourcePolicy, type Resolver, type SourcePolicy } from "../../src/backend/source-guard.ts";
import { startHttpSource } from "../support/http-source.ts";
import { failsWith, httpBackend, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(100_000);

/** Special, private and reserved addresses, as a resolver may give them. */
const closed = [
  "127.0.0.1",
  "127.255.255.254",
  "0.0.0.0",
  "0.1.2.3",
  "10.0.0.1",
  "172.16.0.1",
  "172.31.255.255",
  "192.168.1.1",
  "169.254.169.254",
  "169.254.170.2",
  "100.64.0.1",
  "100.100.100.200",
  "168.63.129.16",
  "192.0.0.192",
  "192.0.2.1",
  "198.18.0.1",
  "198.51.100.1",
  "203.0.113.1",
  "224.0.0.1",
  "239.255.255.250",
  "240.0.0.1",
  "255.255.255.255",
  "::",
  "::1",
  "::ffff:127.0.0.1",
  "::ffff:10.0.0.1",
  "::ffff:a9fe:a9fe",
  "::ffff:0:10.0.0.1",
  "::127.0.0.1",
  "::7f00:1",
  "64:ff9b::127.0.0.1",
  "64:ff9b::a00:1",
  "64:ff9b:1::8.8.8.8",
  "2002:7f00:1::",
  "2002:808:808::",
  "2001:0:4136:e378:8000:63bf:3fff:fdd2",
  "fe80::1",
  "fe80::1%lo",
  "fec0::1",
  "fc00::1",
  "fd00:ec2::254",
  "fd20:ce::254",
  "ff02::1",
  "100::1",
  "2001:db8::1",
  "3fff::1",
  "5f00::1",
  "4000::1",
  "nonsense",
];

const open = [
  "8.8.8.8",
  "172.15.255.255",
  "172.32.0.1",
  "100.63.255.255",
  "100.128.0.1",
  "169.253.0.1",
  "2001:4860:4860::8888",
  "2a00:1450:4001::1",
  "::ffff:8.8.8.8",
  "64:ff9b::8.8.8.8",
];

/** Knows hosts by name, and counts how often it was asked; each answer of a host is given once, the last one for good. */
function fakeResolver(hosts: Record<string, string[][]>): Resolver & { asked: string[] } {
  const asked: string[] = [];
  const resolver = (host: string): Promise<LookupAddress[]> => {
    asked.push(host);
    const answers = hosts[host];
    if (answers === undefined) return Promise.reject(new Error(`getaddrinfo ENOTFOUND ${host}`));
    const answer = answers.length > 1 ? answers.shift()! : answers[0];
    return Promise.resolve(answer.map((address) => ({ address, family: address.includes(":") ? 6 : 4 })));
  };
  return Object.assign(resolver, { asked });
}

function lookup(policy: SourcePolicy, host: string): Promise<LookupAddress[]> {
  return new Promise((resolve, reject) => {
    policy.lookup(host, { all: true }, (error, found) => {
      if (error !== null) reject(error);
      else resolve(found as LookupAddress[]);
    });
  });
}

const refuses = (policy: SourcePolicy, address: string): void =>
  assert.throws(() => policy.check(new URL(address)), { code: "source-forbidden" }, address);

void test("by default only public addresses are found", async () => {
  for (const address of closed) {
    const policy = sourcePolicy(["public"], fakeResolver({ "a.example": [[address]] }));
    await assert.rejects(lookup(policy, "a.example"), { code: "source-forbidden" }, address);
  }
  for (const address of open) {
    const policy = sourcePolicy(["public"], fakeResolver({ "a.example": [[address]] }));
    assert.equal((await lookup(policy, "a.example"))[0].address, address);
  }
});

void test("of a host with several addresses only those that are let in are found", async () => {
  const policy = sourcePolicy(["public"], fakeResolver({ "a.example": [["10.0.0.1", "8.8.8.8", "::1"]] }));
  assert.deepEqual(await lookup(policy, "a.example"), [{ address: "8.8.8.8", family: 4 }]);
  const one = await new Promise((resolve) => {
    policy.lookup("a.example", {}, (_, address, family) => resolve([address, family]));
  });
  assert.deepEqual(one, ["8.8.8.8", 4]);
});

void test("an address in the URL is judged in every spelling", () => {
  const policy = sourcePolicy(["public"]);
  const spellings = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8080/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://0/",
    "http://%31%32%37.0.0.1/",
    "http://１２７.0.0.1/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:a9fe:a9fe]/latest/meta-data",
    "http://[64:ff9b::7f00:1]/",
    "http://2852039166/latest/meta-data",
    "http://user:word@127.0.0.1/",
    "http://example.org@127.0.0.1/",
    "http://example.org:80@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http:127.0.0.1",
    "https://169.254.169.254/",
    "file:///etc/passwd",
    "ftp://example.org/x",
  ];
  for (const address of spellings) refuses(policy, address);
  for (const address of ["http://8.8.8.8/", "http://134744072/", "https://127.0.0.1.example/", "http://example.org/"]) {
    policy.check(new URL(address));
  }
});

void test("a redirect into a place that is not let in is not followed", async () => {
  await using inner = await startHttpSource({ content });
  await using front = await startHttpSource({ content, host: "127.0.0.2" });
  const resolver = fakeResolver({ "front.example": [["127.0.0.2"]], "inner.example": [["127.0.0.1"]] });
  // 127.0.0.2 stands for a public host; it is the same machine.
  const policy = sourcePolicy(["public", "127.0.0.2"], resolver);
  const start = `http://front.example:${front.port}/disk.img`;
  const targets = [
    `http://127.0.0.1:${inner.port}/disk.img`,
    `http://2130706433:${inner.port}/disk.img`,
    `http://[::1]:${inner.port}/disk.img`,
    `http://[::ffff:127.0.0.1]:${inner.port}/disk.img`,
    `http://inner.example:${inner.port}/disk.img`,
    `//0:${inner.port}/disk.img`,
    "http://169.254.169.254/latest/meta-data/",
  ];
  for (const location of targets) {
    front.onRequest = () => ({ kind: "redirect", location });
    await using backend = httpBackend(start, { policy });
    const error = await failsWith("source-forbidden", backend.probe(10));
    assert.equal(error.transient, false);
  }
  assert.equal(inner.connections + inner.requestCount, 0);
  assert.equal(front.requestCount, targets.length);
});

void test("a redirect that turns inwards only later is not followed either", async () => {
  await using inner = await startHttpSource({ content });
  await using front = await startHttpSource({ content, host: "127.0.0.2" });
  const policy = sourcePolicy(["127.0.0.2"], fakeResolver({ "front.example": [["127.0.0.2"]] }));
  await using backend = httpBackend(`http://front.example:${front.port}/disk.img`, { policy });
  const { identity } = await backend.probe(10);
  assert.deepEqual(await readBytes(backend, identity, 5, 10), content.subarray(5, 15));
  front.onRequest = () => ({ kind: "redirect", location: inner.url });
  await failsWith("source-forbidden", readBytes(backend, identity, 5, 10));
  front.onRequest = undefined;
  assert.deepEqual(await readBytes(backend, identity, 6, 10), content.subarray(6, 16));
  assert.equal(inner.requestCount, 0);
});

void test("a name is resolved once for each connection, and what was judged is what is connected to", async () => {
  await using source = await startHttpSource({ content, host: "127.0.0.2" });
  await using inner = await startHttpSource({ content });
  const resolver = fakeResolver({ "a.example": [["127.0.0.2"], ["127.0.0.1"]] });
  const policy = sourcePolicy(["127.0.0.2"], resolver);
  for (const port of [source.port, inner.port]) {
    await using backend = httpBackend(`http://a.example:${port}/disk.img`, { policy });
    if (port === source.port) assert.equal((await backend.probe(10)).identity.size, content.length);
    else await failsWith("source-forbidden", backend.probe(10));
  }
  assert.deepEqual([resolver.asked.length, source.requestCount, inner.connections, inner.requestCount], [2, 1, 0, 0]);
});

void test("a name that is given another address while it is read is not followed there", async () => {
  await using source = await startHttpSource({ content, host: "127.0.0.2" });
  const answers = [["127.0.0.2"]];
  const policy = sourcePolicy(["127.0.0.2"], fakeResolver({ "a.example": answers }));
  await using backend = httpBackend(`http://a.example:${source.port}/disk.img`, { policy });
  const { identity } = await backend.probe(10);
  await source.pause(); // every connection ends
  await source.resume();
  answers[0] = ["10.0.0.1"];
  await failsWith("source-forbidden", readBytes(backend, identity, 0, 10));
  answers[0] = ["127.0.0.2"];
  assert.deepEqual(await readBytes(backend, identity, 0, 10), content.subarray(0, 10));
});

void test("a name that leads to a private address reaches nobody", async () => {
  await using source = await startHttpSource({ content });
  const fake = sourcePolicy(["public"], fakeResolver({ "a.example": [["127.0.0.1"]] }));
  for (const [host, policy] of [
    ["a.example", fake],
    ["localhost", sourcePolicy(["public"])],
  ] as const) {
    const backend = openBackend(`http://${host}:${source.port}/disk.img`, { policy });
    await failsWith("source-forbidden", backend.probe(10));
    await backend.close();
  }
  assert.equal(source.connections + source.requestCount, 0);
});

void test("over TLS, too, no other address is connected to", async () => {
  await using source = await startHttpSource({ content });
  const policy = sourcePolicy(["public"], fakeResolver({ "a.example": [["127.0.0.1"]] }));
  for (const host of ["a.example", "127.0.0.1"]) {
    await using backend = httpBackend(`https://${host}:${source.port}/disk.img`, { policy });
    await failsWith("source-forbidden", backend.probe(10));
  }
  assert.equal(source.connections, 0);
});

void test("credentials in the address change nothing about where it leads", async () => {
  await using source = await startHttpSource({ content, credentials: "me:secret", host: "127.0.0.2" });
  const resolver = fakeResolver({ "a.example": [["127.0.0.2"]], "b.example": [["127.0.0.1"]] });
  const policy = sourcePolicy(["127.0.0.2"], resolver);
  await using backend = httpBackend(`http://me:secret@a.example:${source.port}/disk.img`, { policy });
  assert.equal((await backend.probe(10)).identity.size, content.length);
  await using other = httpBackend(`http://a.example:${source.port}@b.example:${source.port}/disk.img`, { policy });
  const error = await failsWith("source-forbidden", other.probe(10));
  assert.doesNotMatch(error.message, /a\.example/);
  assert.equal(source.requestCount, 1);
});

void test("a host is let in by its name, at private addresses too, but not at special ones", async () => {
  const hosts = {
    "example.org": [["8.8.8.8"]],
    "a.example.org": [["10.0.0.1"]],
    "a.b.example.org": [["fd00::1"]],
    "evil.example.org": [["127.0.0.1"]],
    "meta.example.org": [["fd00:ec2::254"]],
    "badexample.org": [["8.8.8.8"]],
    "exact.test": [["100.64.0.1"]],
  };
  const policy = sourcePolicy(["*.Example.ORG", "exact.test"], fakeResolver(hosts));
  for (const host of ["a.example.org", "a.b.example.org", "exact.test"]) {
    policy.check(new URL(`http://${host}/`));
    assert.equal((await lookup(policy, host)).length, 1);
  }
  policy.check(new URL("http://A.EXAMPLE.org./"));
  for (const host of ["evil.example.org", "meta.example.org"]) {
    policy.check(new URL(`http://${host}/`));
    await assert.rejects(lookup(policy, host), { code: "source-forbidden" });
  }
  for (const host of ["example.org", "badexample.org", "exact.test.evil.net", "8.8.8.8"]) {
    refuses(policy, `http://${host}/`);
  }
  await assert.rejects(lookup(policy, "badexample.org"), { code: "source-forbidden" });
});

void test("networks let in the addresses in them, under any name and in any form", async () => {
  const resolver = fakeResolver({ in: [["10.1.2.3"]], mapped: [["::ffff:10.1.2.3"]], out: [["10.2.0.1", "8.8.8.8"]] });
  const policy = sourcePolicy(["10.1.0.0/16", "::1", "fd00::/8", "169.254.169.254"], resolver);
  for (const host of [
    "10.1.255.255",
    "[::1]",
    "[fdff::1]",
    "[::ffff:10.1.0.1]",
    "[64:ff9b::a01:1]",
    "169.254.169.254",
  ]) {
    policy.check(new URL(`http://${host}/`));
  }
  for (const host of ["10.2.0.1", "[::2]", "[fe80::1]", "8.8.8.8"]) refuses(policy, `http://${host}/`);
  for (const host of ["in", "mapped"]) assert.equal((await lookup(policy, host)).length, 1);
  await assert.rejects(lookup(policy, "out"), { code: "source-forbidden" });
});

void test("any lets everything in, an empty list nothing", async () => {
  const resolver = fakeResolver({ a: [["127.0.0.1"]] });
  const any = sourcePolicy(["any"], resolver);
  any.check(new URL("http://169.254.169.254/"));
  any.checkFile("/etc/passwd");
  assert.equal((await lookup(any, "a")).length, 1);
  const none = sourcePolicy([], resolver);
  refuses(none, "http://8.8.8.8/");
  refuses(none, "http://example.org/");
  assert.throws(() => none.checkFile("/images/a"), { code: "source-forbidden" });
});

void test("files are closed unless they are named, or lie in a directory that is", () => {
  const policy = sourcePolicy(["public", "file:/images/", "file:///srv/one.raw"]);
  for (const path of ["/images/a.raw", "/images/b/c.raw", "/images", "/srv/one.raw"]) policy.checkFile(path);
  for (const path of [
    "/etc/passwd",
    "/images2/a.raw",
    "/images/../etc/passwd",
    "/srv/one.raw2",
    "/srv",
    "/",
    "images/a.raw",
  ]) {
    assert.throws(() => policy.checkFile(path), { code: "source-forbidden" }, path);
  }
  sourcePolicy(["file:/"]).checkFile("/etc/passwd");
});

void test("a symbolic link leads no file out of its directory", async () => {
  const directory = await mkdtemp(join(tmpdir(), "ullage-guard-"));
  try {
    await mkdir(join(directory, "images"));
    await writeFile(join(directory, "secret"), content);
    await writeFile(join(directory, "images/real"), content);
    await symlink("../secret", join(directory, "images/link"));
    await symlink("real", join(directory, "images/alias"));
    const policy = sourcePolicy([`file:${directory}/images/`]);
    for (const source of [`${directory}/secret`, `file://${directory}/secret`, `${directory}/images/link`]) {
      const error = await failsWith("source-forbidden", openBackend(source, { policy }).probe(10));
      assert.doesNotMatch(error.message, /secret/);
    }
    for (const name of ["alias", "real"]) {
      const backend = new LocalFileBackend(join(directory, "images", name), policy);
      const { identity, head } = await backend.probe(10);
      assert.deepEqual(head, content.subarray(0, 10));
      // What was a file when it was looked at may be a link when it is read.
      await rename(join(directory, "images/link"), join(directory, "images", name));
      await failsWith("source-forbidden", readBytes(backend, identity, 0, 10));
      await symlink("../secret", join(directory, "images/link"));
    }
  } finally {
    await rm(directory, { recursive: true });
  }
});

void test("a closed file is refused whether it is there or not", async () => {
  const policy = sourcePolicy(["file:/images"]);
  for (const path of ["/etc/passwd", "/etc/no-such-file", "/root", "/dev/null"]) {
    await failsWith("source-forbidden", openBackend(path, { policy }).probe(10));
  }
});

void test("an entry that names no sources is an error that shows how to write one", () => {
  for (const entry of [
    "",
    "*",
    "*.*",
    "10.0.0.0/33",
    "10.0.0.0/",
    "300.1.1.1",
    "0x7f.1",
    "1",
    "http://a.example/",
    "a b",
  ]) {
    assert.throws(() => sourcePolicy([entry]), { code: "sources-allow" }, entry);
  }
  for (const entry of ["file:images", "file:", "file://host/x", "a.example:80", "[::1]", "a@b"]) {
    assert.throws(() => sourcePolicy([entry]), { code: "sources-allow" }, entry);
  }
});
