import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Identity, Probe, ReadOptions, Sink } from "../../src/backend/backend.ts";
import { RetryBackend, type RetryOptions } from "../../src/backend/wrappers/retry.ts";
import { SourceBusyError, badAnswer, sourceChanged, unreachable } from "../../src/backend/source-errors.ts";
import { RetryBudget } from "../../src/backend/wrappers/retry-budget.ts";
import { type Clock, systemClock } from "../../src/base/clock.ts";
import { IoError } from "../../src/base/errors.ts";
import { startHttpSource } from "../support/http-source.ts";
import { collect, failsWith, openBackend, pattern, readBytes } from "./support.ts";

const content = pattern(10_000);
const identity: Identity = { size: content.length, version: 'etag:"x"', strong: true };

/** Time that passes only in sleeps, and then at once. */
function testClock(): Clock & { sleeps: number[] } {
  let now = 1_000_000;
  const sleeps: number[] = [];
  return {
    sleeps,
    now: () => now,
    wallTime: () => "",
    sleep: async (ms, signal) => {
      await Promise.resolve();
      signal?.throwIfAborted();
      sleeps.push(ms);
      now += ms;
    },
  };
}

/** A backend that fails as often as there are failures in the list, each after so many bytes; then it works. */
function failing(failures: { error: Error; after?: number }[]): Backend & { reads: [number, number][] } {
  const reads: [number, number][] = [];
  const deliver = async (offset: number, length: number, sink: Sink): Promise<void> => {
    reads.push([offset, length]);
    const failure = failures.shift();
    const end = offset + (failure === undefined ? length : (failure.after ?? 0));
    for (let at = offset; at < end; at += 100) await sink(content.subarray(at, Math.min(end, at + 100)));
    if (failure !== undefined) throw failure.error;
  };
  return {
    url: "http://a.example/disk.img",
    reads,
    probe: async (): Promise<Probe> => {
      await deliver(0, 0, () => undefined);
      return { identity, head: Buffer.alloc(0), ranges: true };
    },
    read: (_: Identity, offset: number, length: number, sink: Sink) => deliver(offset, length, sink),
    stream: (_: Identity, sink: Sink) => deliver(0, content.length, sink),
    close: () => Promise.resolve(),
  };
}

interface RetryingOptions extends Omit<RetryOptions, "budget"> {
  random?: () => number;
  budget?: { burst: number; perSecond: number };
}

function retrying(inner: Backend, { budget: limits, ...options }: RetryingOptions = {}) {
  const clock = testClock();
  const budget = new RetryBudget(clock, limits);
  return { clock, backend: new RetryBackend(inner, { clock, random: () => 0.5, budget, ...options }) };
}

const broken = (): Error => unreachable("the connection broke");
const times = (count: number, error: () => Error, after = 0): { error: Error; after: number }[] =>
  Array.from({ length: count }, () => ({ error: error(), after }));

void test("a transient failure is tried again, with pauses that double up to a cap, times a random part", async () => {
  const inner = failing(times(8, broken));
  const { clock, backend } = retrying(inner);
  assert.deepEqual(await readBytes(backend, identity, 10, 500), content.subarray(10, 510));
  assert.deepEqual(clock.sleeps, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
  const jitter = retrying(failing(times(3, broken)), { random: () => 0 });
  await readBytes(jitter.backend, identity, 10, 500);
  assert.deepEqual(jitter.clock.sleeps, [0, 0, 0]);
});

void test("background reads are patient, foreground reads quick", async () => {
  const { clock, backend } = retrying(failing(times(5, broken)));
  await readBytes(backend, identity, 10, 500, { background: true });
  assert.deepEqual(clock.sleeps, [500, 1000, 2000, 4000, 7500]);
});

void test("a background read that somebody comes to wait for pauses no longer, and has the attempts of a foreground read", async () => {
  const hurry = new AbortController();
  const failures = times(12, broken);
  const { clock, backend } = retrying(failing(failures));
  const sleep = clock.sleep.bind(clock);
  const paused: number[] = [];
  clock.sleep = async (ms, signal) => {
    paused.push(ms);
    if (paused.length === 3) hurry.abort();
    await sleep(ms, signal);
  };
  const options = { background: true, hurry: hurry.signal };
  assert.deepEqual(await readBytes(backend, identity, 10, 500, options), content.subarray(10, 510));
  assert.deepEqual(paused, [500, 1000, 2000, 50, 100, 200, 400, 800, 1000, 1000, 1000, 1000]);
  assert.deepEqual(
    clock.sleeps,
    [500, 1000, 50, 100, 200, 400, 800, 1000, 1000, 1000, 1000],
    "the third was cut short",
  );
});

void test("nor does it leave a busy source alone for as long as the background does", async () => {
  const { clock, backend } = retrying(failing([{ error: new SourceBusyError("busy", 40_000) }]));
  await failsWith("source-busy", readBytes(backend, identity, 0, 500));
  const hurry = new AbortController();
  hurry.abort();
  await readBytes(backend, identity, 0, 500, { background: true, hurry: hurry.signal });
  assert.deepEqual(clock.sleeps, []);
});

void test("a retry goes on behind the bytes that the sink has seen", async () => {
  const inner = failing([
    { error: broken(), after: 300 },
    { error: broken(), after: 0 },
    { error: broken(), after: 450 },
  ]);
  const { backend } = retrying(inner);
  assert.deepEqual(await readBytes(backend, identity, 1000, 5000), content.subarray(1000, 6000));
  assert.deepEqual(inner.reads, [
    [1000, 5000],
    [1300, 4700],
    [1300, 4700],
    [1750, 4250],
  ]);
});

void test("bytes of an answer that contradicts itself are not built upon", async () => {
  const doubtful = failing([{ error: badAnswer("too long"), after: 300 }]);
  await failsWith("source-bad-answer", readBytes(retrying(doubtful).backend, identity, 0, 500));
  assert.equal(doubtful.reads.length, 1);
  const harmless = failing([{ error: badAnswer("wrong Content-Range") }]);
  assert.equal((await readBytes(retrying(harmless).backend, identity, 0, 500)).length, 500);
});

void test("a stream is only tried again while nothing came", async () => {
  const early = failing(times(2, broken));
  const collector = collect();
  await retrying(early).backend.stream(identity, collector.sink);
  assert.deepEqual(collector.bytes(), content);
  const late = failing(times(1, broken, 100));
  await failsWith(
    "source-unreachable",
    retrying(late).backend.stream(identity, () => undefined),
  );
});

void test("what is permanent, and what the sink throws, is not tried again", async () => {
  const changed = failing(times(1, () => sourceChanged("other ETag")));
  await failsWith("source-changed", readBytes(retrying(changed).backend, identity, 0, 500));
  assert.equal(changed.reads.length, 1);
  const full = new IoError("ENOSPC", "cache is full");
  const inner = failing([]);
  await assert.rejects(
    retrying(inner).backend.read(identity, 0, 500, () => Promise.reject(full)),
    full,
  );
  assert.equal(inner.reads.length, 1);
});

void test("attempts and time are bounded, and the last error is what the caller sees", async () => {
  const policy = { attempts: 4, baseMs: 100, capMs: 1000, timeLimitMs: 10_000 };
  const few = failing(times(100, broken));
  await failsWith("source-unreachable", readBytes(retrying(few, { foreground: policy }).backend, identity, 0, 500));
  assert.equal(few.reads.length, 4);
  const patient = failing(times(10_000, broken));
  const { clock, backend } = retrying(patient, { foreground: { ...policy, attempts: 10_000 } });
  const start = clock.now();
  await failsWith("source-unreachable", readBytes(backend, identity, 0, 500));
  assert.ok(clock.now() - start <= 10_000);
  assert.ok(patient.reads.length > 4);
});

void test("probe gives up sooner than a read", async () => {
  const inner = failing(times(100, broken));
  await failsWith("source-unreachable", retrying(inner).backend.probe(10));
  assert.equal(inner.reads.length, 3);
  const { backend } = retrying(failing(times(2, broken)));
  assert.equal((await backend.probe(10)).identity, identity);
});

void test("Retry-After is waited for, and ends the attempts when it asks for too long", async () => {
  const { clock, backend } = retrying(failing([{ error: new SourceBusyError("503", 7000) }]));
  await readBytes(backend, identity, 0, 500);
  assert.deepEqual(clock.sleeps, [7050]);
  const inner = failing([{ error: new SourceBusyError("503", 3_600_000) }]);
  await failsWith("source-busy", readBytes(retrying(inner).backend, identity, 0, 500));
  assert.equal(inner.reads.length, 1);
});

void test("all reads together send no more retries than the budget holds, and half of it is the foreground's", async () => {
  const budget = { burst: 10, perSecond: 0 };
  const inner = failing(times(1000, broken));
  const { backend } = retrying(inner, { budget });
  const read = (background: boolean): Promise<unknown> =>
    failsWith("source-unreachable", readBytes(backend, identity, 0, 500, { background }));
  await Promise.all(Array.from({ length: 8 }, () => read(true)));
  assert.equal(inner.reads.length, 8 + 5);
  await Promise.all(Array.from({ length: 8 }, () => read(false)));
  assert.equal(inner.reads.length, 8 + 5 + 8 + 5);
});

void test("the budget fills again with time", async () => {
  const inner = failing(times(20, broken));
  const { backend } = retrying(inner, { budget: { burst: 1, perSecond: 1 } });
  assert.equal((await readBytes(backend, identity, 0, 500)).length, 500);
});

void test("an aborted read stops waiting for its next attempt, and so does a closed backend", async () => {
  const reason = new Error("not needed any more");
  const controller = new AbortController();
  const options: ReadOptions = { signal: controller.signal };
  const { backend } = retrying({
    ...failing([]),
    read: () => {
      controller.abort(reason);
      return Promise.reject(broken());
    },
  });
  await assert.rejects(readBytes(backend, identity, 0, 500, options), reason);
  const closed = retrying({
    ...failing([]),
    read: () => closed.backend.close().then(() => Promise.reject(broken())),
  });
  await failsWith("source-closed", readBytes(closed.backend, identity, 0, 500));
});

void test("a read over HTTP survives busy answers, resets and cuts, byte for byte", async () => {
  const large = pattern(2_000_000);
  await using source = await startHttpSource({ content: large });
  const policy = { attempts: 10, baseMs: 1, capMs: 5, timeLimitMs: 10_000 };
  const backend = openBackend(source.url, { retry: { foreground: policy, probe: policy } });
  source.inject({ kind: "status", status: 503, headers: { "retry-after": "0" } });
  const { identity: pinned } = await backend.probe(1);
  source.inject({ kind: "reset" });
  source.inject({ kind: "cut", after: 700_000 });
  source.inject({ kind: "status", status: 502 });
  source.inject({ kind: "reset", after: 300_000 });
  assert.deepEqual(await readBytes(backend, pinned, 100, 1_900_000), large.subarray(100, 1_900_100));
  assert.equal(source.requestCount, 2 + 5);
  assert.ok(source.requests.at(-1)!.start > 100 + 700_000);
  await backend.close();
});

void test("Retry-After in seconds, as a date, and as nonsense", async () => {
  await using source = await startHttpSource({ content });
  const clock = testClock();
  const backend = openBackend(source.url, { clock, random: () => 0 });
  const { identity: pinned } = await backend.probe(1);
  const date = (ms: number): string => new Date(Date.UTC(2026, 0, 1) + ms).toUTCString();
  const answers: Record<string, string>[] = [
    { "retry-after": "3" },
    { "retry-after": date(5000), date: date(0) },
    { "retry-after": date(0), date: date(5000) },
    { "retry-after": "soon" },
  ];
  for (const headers of answers) {
    source.inject({ kind: "status", status: 503, headers });
    await readBytes(backend, pinned, 0, 10);
  }
  assert.deepEqual(clock.sleeps, [3000, 5000, 0, 0]);
  await backend.close();
});

void test("a source that is down for a while is an outage, not the end: the read returns what it had asked for", async () => {
  await using source = await startHttpSource({ content });
  const backend = openBackend(source.url, {
    retry: {
      foreground: { attempts: 1000, baseMs: 5, capMs: 20, timeLimitMs: 20_000 },
      budget: new RetryBudget(systemClock, { burst: 100, perSecond: 100 }),
    },
  });
  const { identity: pinned } = await backend.probe(1);
  await source.pause();
  const reading = readBytes(backend, pinned, 0, 500);
  await new Promise((resolve) => setTimeout(resolve, 100));
  await source.resume();
  assert.deepEqual(await reading, content.subarray(0, 500));
  await backend.close();
});
