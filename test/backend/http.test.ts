import assert from "node:assert/strict";
import { test } from "node:test";
import { IoError } from "../../src/base/errors.ts";
import { startHttpSource } from "../support/http-source.ts";
import { collect, failsWith, httpBackend, pattern, readBytes } from "./support.ts";

const content = pattern(3_000_001);
const tenSecondsAgo = new Date(Date.now() - 10_000);

void test("probe is one request that brings size, identity and the first bytes", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity, head, ranges } = await backend.probe(4096);
  assert.deepEqual(identity, { size: content.length, version: 'etag:"first"', strong: true });
  assert.deepEqual(head, content.subarray(0, 4096));
  assert.equal(ranges, true);
  assert.equal(source.requestCount, 1);
  assert.equal(source.bytesServed, 4096);
  assert.equal(source.requests[0].headers["accept-encoding"], "identity");
});

void test("probe of no head, and of an object shorter than the head", async () => {
  await using source = await startHttpSource({ content: Buffer.from("tiny") });
  await using backend = httpBackend(source.url);
  assert.equal((await backend.probe(0)).head.length, 0);
  const { identity, head } = await backend.probe(4096);
  assert.equal(identity.size, 4);
  assert.equal(head.toString(), "tiny");
});

void test("an empty object has size 0, whether the server says 416 or 200", async () => {
  await using source = await startHttpSource({ content: Buffer.alloc(0) });
  await using backend = httpBackend(source.url);
  for (const fault of [undefined, { kind: "ignore-range" } as const]) {
    if (fault !== undefined) source.inject(fault);
    const { identity, head, ranges } = await backend.probe(4096);
    assert.deepEqual([identity.size, head.length, ranges], [0, 0, true]);
  }
});

void test("reads give exactly their ranges, in order, at any alignment, and send the pin along", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  for (const [offset, length] of [
    [0, content.length],
    [1, 1],
    [262_143, 1_048_578],
    [content.length - 1, 1],
    [77, 0],
  ] as const) {
    assert.deepEqual(await readBytes(backend, identity, offset, length), content.subarray(offset, offset + length));
  }
  assert.equal(source.requestCount, 5);
  assert.ok(source.requests.slice(1).every((request) => request.headers["if-match"] === '"first"'));
});

void test("a range outside of the object is a mistake of the caller", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  await assert.rejects(readBytes(backend, identity, content.length - 1, 2), RangeError);
});

void test("a sink that takes its time holds the source back, and gets every byte in order", async () => {
  const large = pattern(24 << 20);
  await using source = await startHttpSource({ content: large });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  let release!: () => void;
  const gate = new Promise<void>((resolve) => (release = resolve));
  const collector = collect(() => gate);
  const reading = backend.read(identity, 0, large.length, collector.sink);
  // The source gets rid of what fits into socket buffers, and no more, however long it has.
  let served = -1;
  while (source.bytesServed === 0 || served !== source.bytesServed) {
    served = source.bytesServed;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.ok(served < large.length, `all ${served} bytes went to a sink that waits`);
  release();
  await reading;
  assert.deepEqual(collector.bytes(), large);
});

void test("time that the sink takes is not held against the source", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { idleTimeoutMs: 2500, minBytesPerSecond: 1 << 30 });
  const { identity } = await backend.probe(1);
  // The source takes 4.2 s at least, more than it may, of which the sink holds it back for 4 s.
  source.inject({ kind: "trickle", bytes: 10, everyMs: 200 });
  let pauseMs = 4000;
  const slow = collect(async () => {
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
    pauseMs = 0;
  });
  await backend.read(identity, 0, 210, slow.sink);
  assert.deepEqual(slow.bytes(), content.subarray(0, 210));
});

void test("a read aborted while its connection is made sends nothing", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const controller = new AbortController();
  const probing = backend.probe(1, controller.signal);
  for (let n = 0; n < 10; n++) await Promise.resolve();
  controller.abort(new Error("changed my mind"));
  await assert.rejects(probing, /changed my mind/);
  while (source.peakConnections === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(source.requestCount, 0);
});

void test("what the sink throws reaches the caller as it is, and the next read works", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  const full = new IoError("ENOSPC", "cache is full");
  const throwing = (): void => {
    throw full;
  };
  await assert.rejects(backend.read(identity, 0, 1_000_000, throwing), full);
  await assert.rejects(
    backend.read(identity, 0, 1_000_000, () => Promise.reject(full)),
    full,
  );
  assert.deepEqual(await readBytes(backend, identity, 10, 10), content.subarray(10, 20));
});

void test("an aborted read ends with the signal's reason, before, during and while it waits for its turn", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { connections: 2, backgroundConnections: 1 });
  const { identity } = await backend.probe(1);
  const reason = new Error("not needed any more");
  await assert.rejects(readBytes(backend, identity, 0, 10, { signal: AbortSignal.abort(reason) }), reason);
  source.onRequest = () => ({ kind: "stall" });
  const controller = new AbortController();
  const options = { signal: controller.signal };
  const started = [0, 1].map((n) => readBytes(backend, identity, n, 10, options));
  const waiting = readBytes(backend, identity, 0, 10, options);
  while (source.requestCount < 3) await new Promise((resolve) => setTimeout(resolve, 5));
  controller.abort(reason);
  for (const read of [...started, waiting]) await assert.rejects(read, reason);
  source.onRequest = undefined;
  assert.equal((await readBytes(backend, identity, 0, 10)).length, 10);
});

void test("close rejects the reads under way and all later ones", async () => {
  await using source = await startHttpSource({ content });
  const backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  source.onRequest = () => ({ kind: "stall", after: 5 });
  const reading = readBytes(backend, identity, 0, 100);
  while (source.requestCount < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  await Promise.all([failsWith("source-closed", reading), backend.close()]);
  await failsWith("source-closed", backend.probe(1));
});

void test("connections are kept and shared: many reads use few", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { connections: 6, backgroundConnections: 4 });
  const { identity } = await backend.probe(1);
  const reads = Array.from({ length: 60 }, (_, n) =>
    readBytes(backend, identity, n, 1000, { background: n % 2 === 0 }),
  );
  await Promise.all(reads);
  assert.ok(source.peakConnections <= 6, `${source.peakConnections} connections`);
});

void test("foreground reads do not wait behind background ones", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url, { connections: 6, backgroundConnections: 4 });
  const { identity } = await backend.probe(1);
  // Background reads hang, as many as may start; more wait behind them.
  source.onRequest = (request) => (request.start >= 1000 ? { kind: "stall" } : undefined);
  const controller = new AbortController();
  const background = Array.from({ length: 20 }, (_, n) =>
    readBytes(backend, identity, 1000 + n, 10, { background: true, signal: controller.signal }),
  );
  while (source.requestCount < 5) await new Promise((resolve) => setTimeout(resolve, 5));
  const foreground = Array.from({ length: 20 }, (_, n) => readBytes(backend, identity, n, 10));
  await Promise.all(foreground);
  assert.equal(source.requestCount, 1 + 4 + 20);
  controller.abort(new Error("enough"));
  await Promise.all(background.map((read) => assert.rejects(read, /enough/)));
});

void test("a server without ranges is recognised, and its object streamed whole", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  source.onRequest = () => ({ kind: "ignore-range" });
  const { identity, head, ranges } = await backend.probe(4096);
  assert.equal(ranges, false);
  assert.deepEqual(identity, { size: content.length, version: 'etag:"first"', strong: true });
  assert.deepEqual(head, content.subarray(0, 4096));
  const error = await failsWith("source-no-ranges", readBytes(backend, identity, 0, 10));
  assert.match(error.hint ?? "", /--download/);
  assert.equal(error.transient, false);
  const collector = collect();
  await backend.stream(identity, collector.sink);
  assert.deepEqual(collector.bytes(), content);
});

void test("a strong ETag pins: another one is source-changed, whether the server honours If-Match or not", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  source.etag = '"second"';
  const refused = await failsWith("source-changed", readBytes(backend, identity, 0, 10));
  assert.equal(refused.transient, false);
  source.etag = '"first"';
  source.inject({ kind: "headers", headers: { etag: '"second"' } }, 2);
  const compared = await failsWith("source-changed", readBytes(backend, identity, 0, 10));
  assert.match(compared.message, /ETag was "first" and is now "second"/);
  await failsWith(
    "source-changed",
    backend.stream(identity, () => undefined),
  );
  assert.equal((await readBytes(backend, identity, 0, 10)).length, 10);
});

void test("an answer without the pinned ETag is not believed, but may be right next time", async () => {
  await using source = await startHttpSource({ content });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  const collector = collect();
  source.onRequest = () => {
    source.etag = null;
    return { kind: "headers", headers: {} };
  };
  // The test source honours If-Match against no ETag at all with 412; this one forgets the header only.
  const forgetful = { ...identity, version: 'last-modified:Mon, 02 Nov 2026 10:00:00 GMT etag:W/"first"' };
  const error = await failsWith("source-bad-answer", backend.read(forgetful, 0, 10, collector.sink));
  assert.equal(error.transient, true);
  assert.equal(collector.bytes().length, 0);
});

void test("another size is source-changed even without validators", async () => {
  await using source = await startHttpSource({ content, etag: null });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  assert.deepEqual(identity, { size: content.length, version: "", strong: false });
  source.replace(content.subarray(1));
  const error = await failsWith("source-changed", readBytes(backend, identity, 0, 10));
  assert.match(error.message, /had 3000001 bytes and now has 3000000/);
  await failsWith(
    "source-changed",
    backend.stream(identity, () => undefined),
  );
});

void test("durability rule 31: Last-Modified pins when it has settled, with a check after the last byte", async () => {
  await using source = await startHttpSource({ content, etag: null, lastModified: tenSecondsAgo });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  assert.deepEqual(identity, {
    size: content.length,
    version: `last-modified:${tenSecondsAgo.toUTCString()}`,
    strong: true,
  });
  assert.equal((await readBytes(backend, identity, 0, 100_000)).length, 100_000);
  assert.equal(source.requestCount, 3);
  assert.equal(source.requests[2].headers["if-unmodified-since"], tenSecondsAgo.toUTCString());
  // Changed after the answer's head went out: only the look after the last byte can tell.
  const change = (): void => {
    source.lastModified = new Date();
  };
  await failsWith("source-changed", backend.read(identity, 0, 100, change));
  source.lastModified = tenSecondsAgo;
  await failsWith("source-changed", backend.stream(identity, change));
});

void test("durability rule 31: a Last-Modified of this very second, a weak ETag and nothing do not pin", async () => {
  await using source = await startHttpSource({ content, etag: 'W/"weak"' });
  await using backend = httpBackend(source.url);
  assert.deepEqual((await backend.probe(1)).identity, {
    size: content.length,
    version: 'etag:W/"weak"',
    strong: false,
  });
  source.etag = null;
  source.lastModified = new Date();
  assert.equal((await backend.probe(1)).identity.strong, false);
  source.lastModified = undefined;
  assert.deepEqual((await backend.probe(1)).identity, { size: content.length, version: "", strong: false });
});

void test("a weak ETag is compared on every answer, and after the last byte", async () => {
  await using source = await startHttpSource({ content, etag: 'W/"weak"' });
  await using backend = httpBackend(source.url);
  const { identity } = await backend.probe(1);
  assert.equal((await readBytes(backend, identity, 0, 10)).length, 10);
  const change = (): void => {
    source.etag = 'W/"other"';
  };
  await failsWith("source-changed", backend.read(identity, 0, 100, change));
  await failsWith("source-changed", readBytes(backend, identity, 0, 10));
  assert.ok(source.requests.every((request) => request.headers["if-match"] === undefined));
});

void test("credentials in the address are sent, and appear nowhere", async () => {
  await using source = await startHttpSource({ content, credentials: "us er:p@ss" });
  const address = source.url.replace("http://", "http://us%20er:p%40ss@");
  await using backend = httpBackend(address);
  const { identity } = await backend.probe(1);
  assert.equal((await readBytes(backend, identity, 0, 10)).length, 10);
  assert.equal(backend.url, source.url);
  source.inject({ kind: "status", status: 500 });
  const busy = await failsWith("source-busy", readBytes(backend, identity, 0, 10));
  await using stranger = httpBackend(source.url.replace("http://", "http://us%20er:wr0ng@"));
  const denied = await failsWith("source-denied", stranger.probe(1));
  for (const error of [busy, denied])
    assert.doesNotMatch(`${error.message} ${error.stack}`, /us.{0,3}er:|p@ss|p%40ss|wr0ng/);
});
