import assert from "node:assert/strict";
import { test } from "node:test";
import { redirectedTarget, parseTarget } from "../../src/backend/http/http-target.ts";
import { startHttpSource } from "../support/http-source.ts";
import { failsWith, httpBackend, pattern, readBytes } from "./support.ts";

const content = pattern(100_000);

void test("a redirect is followed once and remembered", async () => {
  await using mirror = await startHttpSource({ content });
  await using front = await startHttpSource({ content: Buffer.alloc(0) });
  for (const status of [301, 302, 303, 307, 308]) {
    front.onRequest = () => ({ kind: "redirect", location: mirror.url, status });
    const asked = front.requestCount;
    await using backend = httpBackend(front.url);
    const { identity } = await backend.probe(10);
    assert.equal(identity.size, content.length);
    assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
    assert.deepEqual(await readBytes(backend, identity, 6, 100), content.subarray(6, 106));
    assert.equal(front.requestCount, asked + 1);
    assert.equal(backend.url, front.url);
  }
});

void test("a relative redirect stays with its origin, and keeps its credentials", async () => {
  await using source = await startHttpSource({ content, path: "/real.img", credentials: "me:secret" });
  source.onRequest = (request) =>
    request.path === "/alias.img" ? { kind: "redirect", location: "/real.img" } : undefined;
  const alias = source.url.replace("http://", "http://me:secret@").replace("/real.img", "/alias.img");
  await using backend = httpBackend(alias);
  const { identity } = await backend.probe(10);
  assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
});

void test("credentials do not follow a redirect to another origin", async () => {
  await using mirror = await startHttpSource({ content });
  await using front = await startHttpSource({ content, credentials: "me:secret" });
  front.onRequest = () => ({ kind: "redirect", location: mirror.url });
  await using backend = httpBackend(front.url.replace("http://", "http://me:secret@"));
  await backend.probe(10);
  assert.ok(front.requests[0].headers.authorization);
  assert.equal(mirror.requests[0].headers.authorization, undefined);
});

void test("a remembered target that expired is resolved anew, within the same read", async () => {
  await using mirror = await startHttpSource({ content });
  await using front = await startHttpSource({ content: Buffer.alloc(0) });
  let valid = "ticket=1";
  front.onRequest = () => ({ kind: "redirect", location: `${mirror.url}?${valid}` });
  await using backend = httpBackend(front.url);
  const { identity } = await backend.probe(10);
  for (const status of [401, 403, 404, 410]) {
    valid = `ticket=${status}`;
    mirror.onRequest = (request) => (request.path.endsWith(valid) ? undefined : { kind: "status", status });
    const asked = front.requestCount;
    assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
    assert.equal(front.requestCount, asked + 1);
  }
});

void test("a target that refuses even when asked anew is an error, without its query", async () => {
  await using mirror = await startHttpSource({ content });
  await using front = await startHttpSource({ content: Buffer.alloc(0) });
  front.onRequest = () => ({ kind: "redirect", location: `${mirror.url}?signature=secret` });
  await using backend = httpBackend(front.url);
  const { identity } = await backend.probe(10);
  mirror.onRequest = () => ({ kind: "status", status: 403 });
  const error = await failsWith("source-denied", readBytes(backend, identity, 5, 100));
  assert.match(error.message, /disk\.img\?… answered 403/);
});

void test("after a mirror fails, the next read asks the source for another one", async () => {
  await using dead = await startHttpSource({ content });
  await using alive = await startHttpSource({ content });
  await using front = await startHttpSource({ content: Buffer.alloc(0) });
  let mirror = dead.url;
  front.onRequest = () => ({ kind: "redirect", location: mirror });
  await using backend = httpBackend(front.url);
  const { identity } = await backend.probe(10);
  await dead.pause();
  mirror = alive.url;
  await failsWith("source-unreachable", readBytes(backend, identity, 5, 100));
  assert.deepEqual(await readBytes(backend, identity, 5, 100), content.subarray(5, 105));
});

void test("a source that stops redirecting serves for itself", async () => {
  await using source = await startHttpSource({ content });
  source.onRequest = (request) =>
    request.path === "/disk.img" ? { kind: "redirect", location: "/disk.img?moved" } : undefined;
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(10);
  source.onRequest = (request) => (request.path === "/disk.img" ? undefined : { kind: "status", status: 404 });
  for (let n = 0; n < 3; n++) assert.equal((await readBytes(backend, identity, n, 10)).length, 10);
  // Found to be stale once, not three times.
  assert.equal(source.requests.filter((request) => request.path === "/disk.img?moved").length, 2);
});

void test("redirects in a circle, and to what is no http address, are errors", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  source.onRequest = () => ({ kind: "redirect", location: source.url });
  const circle = await failsWith("source-redirect", backend.probe(10));
  assert.match(circle.message, /redirects more than 10 times/);
  assert.equal(source.requestCount, 11);
  assert.equal(circle.transient, false);
  for (const location of ["file:///etc/passwd", "ftp://127.0.0.1/disk.img", "http://", "http://[::"]) {
    source.onRequest = () => ({ kind: "redirect", location });
    await failsWith("source-redirect", backend.probe(10));
  }
});

void test("https never continues as plain http; credentials in a Location are used for it alone", () => {
  const from = parseTarget("https://me:secret@a.example/disk.img");
  assert.throws(() => redirectedTarget(from, "http://a.example/disk.img"), { code: "source-redirect" });
  assert.equal(redirectedTarget(from, "https://a.example/b").authorization, from.authorization);
  assert.equal(redirectedTarget(from, "https://b.example/b").authorization, undefined);
  assert.equal(redirectedTarget(from, "https://a.example:444/b").authorization, undefined);
  const named = redirectedTarget(from, "https://you:word@b.example/b#part");
  assert.equal(named.authorization, `Basic ${Buffer.from("you:word").toString("base64")}`);
  assert.equal(named.url.href, "https://b.example/b");
});
