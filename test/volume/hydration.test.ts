import assert from "node:assert/strict";
import { test } from "node:test";
import { IoError, SourceError } from "../../src/base/errors.ts";
import type { Blob } from "../../src/blob/blob.ts";
import type { CachedBlob } from "../../src/blob/cached-blob.ts";
import { tracedPieces } from "../../src/volume/hydration/hydration-scan.ts";
import { HydrationSlots } from "../../src/volume/hydration/hydration-slots.ts";
import {
  ManualClock,
  MemoryReader,
  gate,
  openBlob,
  openCache,
  randomContent,
  until,
  withFile,
} from "../blob/support.ts";
import { FakeVolume, openHydration as open, settle, states } from "./hydration-support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const UNIT = 64 * KiB;

void test("everything the volume needs is fetched in large background requests, then it is detached", async (t) => {
  const reader = new MemoryReader(randomContent(10 * MiB + 100));
  const { blob } = await openBlob(t, reader);
  const volume = new FakeVolume([blob]);
  const { hydration, seen } = await open(t, volume);
  assert.equal(hydration.status().state, "none");
  assert.equal(hydration.status().totalBytes, reader.size);
  hydration.start();
  await hydration.wait();
  assert.deepEqual(states(seen), ["running", "detached"]);
  assert.equal(reader.requests.length, 11);
  assert.equal(
    reader.requests.every(({ background }) => background),
    true,
  );
  const { readyBytes, totalBytes, state } = hydration.status();
  assert.deepEqual(
    { readyBytes, totalBytes, state },
    { readyBytes: reader.size, totalBytes: reader.size, state: "detached" },
  );
});

void test("units that the volume does not need are not fetched, and not counted", async (t) => {
  const reader = new MemoryReader(randomContent(4 * MiB));
  const { blob } = await openBlob(t, reader);
  const volume = new FakeVolume(
    [blob],
    [
      { offset: 4096, length: 4096 },
      { offset: UNIT - 4096, length: 4096 },
      { offset: 10 * UNIT + 512, length: UNIT },
      { offset: 3 * MiB, length: 64 * MiB },
    ],
  );
  const { hydration } = await open(t, volume);
  assert.equal(hydration.status().totalBytes, 3 * UNIT + MiB);
  hydration.start();
  await hydration.wait();
  const asked = reader.requests.toSorted((one, other) => one.offset - other.offset); // which are under way at the same time
  assert.deepEqual(
    asked.map(({ offset, length }) => [offset, length]),
    [
      [0, UNIT],
      [10 * UNIT, 2 * UNIT],
      [3 * MiB, MiB],
    ],
  );
  assert.equal(hydration.status().readyBytes, 3 * UNIT + MiB);
});

void test("durability rule 11: detached is reported after the sync, the check, the flush and the pin, in that order", async (t) => {
  const { blob } = await openBlob(t, new MemoryReader(randomContent(2 * MiB)));
  const events: string[] = [];
  const volume = new FakeVolume([recording(blob, events)]);
  volume.onFlush = () => {
    assert.equal(blob.isDurable(0, blob.size), true);
    assert.equal(blob.isPinnedBy(volume.id), false);
    events.push("flush");
  };
  const { hydration } = await open(t, volume);
  hydration.onChange(({ state }) => {
    if (state === "detached") events.push(blob.isPinnedBy(volume.id) ? "detached" : "detached without a pin");
  });
  hydration.start();
  await hydration.wait();
  assert.deepEqual(events, ["sync", "flush", "pin", "detached"]);
});

/** The blob, with its calls that make something durable written down. */
function recording(blob: CachedBlob, events: string[]): Blob {
  return new Proxy<Blob>(blob, {
    get(_target, key) {
      if (key === "sync" || key === "pin") events.push(key);
      const value: unknown = Reflect.get(blob, key, blob);
      return typeof value === "function" ? (value.bind(blob) as unknown) : value;
    },
  });
}

void test("durability rule 11: a volume whose flush, or whose blob's sync, fails is not detached until it succeeds", async (t) => {
  let syncFails = true;
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (syncFails ? Promise.reject(new IoError("EIO", "write-back failed")) : file.datasync()),
  }));
  const reader = new MemoryReader(randomContent(2 * MiB));
  syncFails = false;
  const { blob } = await openBlob(t, reader, { fs, clock: new ManualClock() });
  syncFails = true;
  const volume = new FakeVolume([blob]);
  let flushFails = true;
  volume.onFlush = () => {
    if (flushFails) throw new IoError("EIO", "the volume is poisoned");
  };
  const { hydration, clock } = await open(t, volume);
  hydration.start();
  await until(() => hydration.state === "waiting");
  assert.match(hydration.status().reason!, /write-back failed/);
  assert.equal(blob.readyBytes, 0, "what the failed sync covered has to come again");
  syncFails = false;
  clock.advance(60_000);
  await until(() => hydration.status().reason === "the volume is poisoned");
  assert.equal(blob.isPinnedBy(volume.id), false);
  flushFails = false;
  clock.advance(60_000);
  await until(() => hydration.state === "detached");
  assert.equal(reader.requests.length, 4);
});

void test("durability rule 11: what a failed sync took back after the last fetch is fetched again before it is detached", async (t) => {
  let syncFails = false;
  const fs = withFile(/data$/, (file) => ({
    datasync: () => (syncFails ? Promise.reject(new IoError("EIO", "write-back failed")) : file.datasync()),
  }));
  const reader = new MemoryReader(randomContent(2 * MiB));
  const { blob } = await openBlob(t, reader, { fs, clock: new ManualClock() });
  let syncs = 0;
  const sync = async (): Promise<void> => {
    if (++syncs === 1) {
      syncFails = true;
      await assert.rejects(blob.sync()); // another volume's
      syncFails = false;
    }
    await blob.sync();
  };
  const shared = new Proxy<Blob>(blob, {
    get(_target, key) {
      if (key === "sync") return sync;
      const value: unknown = Reflect.get(blob, key, blob);
      return typeof value === "function" ? (value.bind(blob) as unknown) : value;
    },
  });
  const { hydration } = await open(t, new FakeVolume([shared]));
  hydration.start();
  await hydration.wait();
  assert.equal(blob.isDurable(0, blob.size), true);
  assert.equal(reader.requests.length, 4);
});

void test("needed runs in neighbouring units are one request", async (t) => {
  const reader = new MemoryReader(randomContent(2 * MiB));
  const { blob } = await openBlob(t, reader);
  const needed = Array.from({ length: 32 }, (_, unit) => ({ offset: unit * UNIT + 8192, length: 4096 }));
  const { hydration } = await open(t, new FakeVolume([blob], needed));
  hydration.start();
  await hydration.wait();
  assert.deepEqual(
    reader.requests.map(({ length }) => length),
    [MiB, MiB],
  );
});

void test("a detached volume is recognised when it is opened again, with its source gone", async (t) => {
  const first = await openBlob(t, new MemoryReader(randomContent(2 * MiB)));
  const volume = new FakeVolume([first.blob]);
  const { hydration } = await open(t, volume);
  hydration.start();
  await hydration.wait();
  await hydration.close();
  await first.cache.close();
  const { cache } = await openCache(t, { dataDir: first.dataDir });
  const blob = await cache.open(first.blob.id);
  const again = await open(t, new FakeVolume([blob]));
  assert.equal(again.hydration.state, "detached");
  again.hydration.start();
  await settle();
  assert.deepEqual(again.seen, []);
  const other = await open(t, new FakeVolume([blob], undefined, "f".repeat(32)));
  assert.equal(other.hydration.state, "none", "the pin is another volume's");
});

void test("durability rule 11: a pin is not enough when what the volume needs is not durably there", async (t) => {
  const reader = new MemoryReader(randomContent(2 * MiB));
  const { blob } = await openBlob(t, reader);
  await blob.fetch(0, MiB);
  await blob.sync();
  const volume = new FakeVolume([blob], [{ offset: 0, length: MiB }]);
  const first = await open(t, volume);
  first.hydration.start();
  await first.hydration.wait();
  volume.needed = [{ offset: 0, length: 2 * MiB }]; // reverted to a snapshot
  const second = await open(t, volume);
  assert.equal(second.hydration.state, "none");
  first.hydration.start();
  await until(() => first.hydration.state === "detached" && blob.readyBytes === 2 * MiB);
  assert.equal(reader.requests.length, 2);
});

void test("pause lets requests under way end and makes no new ones; resume goes on where it was", async (t) => {
  const reader = new MemoryReader(randomContent(40 * MiB));
  const { blob } = await openBlob(t, reader);
  const hold = gate();
  reader.before = () => hold.opened;
  const { hydration, seen } = await open(t, new FakeVolume([blob]));
  hydration.start();
  await until(() => reader.requests.length === 16);
  hydration.pause();
  assert.equal(hydration.status().reason, "paused by the user");
  hold.open();
  await until(() => blob.readyBytes === 16 * MiB);
  await settle();
  assert.equal(reader.requests.length, 16);
  hydration.resume();
  await hydration.wait();
  assert.equal(reader.requests.length, 40);
  assert.deepEqual(states(seen), ["running", "paused", "running", "detached"]);
});

void test("paused before it was started, it asks for nothing until it is resumed", async (t) => {
  const reader = new MemoryReader(randomContent(2 * MiB));
  const { blob } = await openBlob(t, reader);
  const { hydration } = await open(t, new FakeVolume([blob]));
  hydration.pause();
  hydration.start();
  await settle();
  assert.equal(hydration.state, "paused");
  assert.equal(reader.requests.length, 0);
  hydration.resume();
  await hydration.wait();
});

void test("while the source is down it waits, longer each time, asks with one request, and goes on by itself", async (t) => {
  const reader = new MemoryReader(randomContent(40 * MiB));
  const { blob } = await openBlob(t, reader);
  let down = true;
  reader.before = () => {
    if (down) throw new SourceError("source-unreachable", "connection refused", { transient: true });
  };
  const { hydration, clock, log } = await open(t, new FakeVolume([blob]));
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.equal(hydration.status().reason, "connection refused");
  const first = reader.requests.length;
  clock.advance(999);
  await settle();
  assert.equal(reader.requests.length, first);
  clock.advance(1);
  await until(() => reader.requests.length === first + 1 && clock.sleeping === 1);
  clock.advance(1000);
  await settle();
  assert.equal(reader.requests.length, first + 1, "the second wait is longer");
  clock.advance(1000);
  await until(() => reader.requests.length === first + 2 && clock.sleeping === 1);
  assert.equal(hydration.state, "waiting");
  assert.equal(log.length, 1, "the same trouble is logged once");
  down = false;
  clock.advance(60_000);
  await until(() => hydration.state === "detached");
});

void test("at the free-space reserve it pauses with the reason no-space, evicts nothing, and goes on by itself", async (t) => {
  const reader = new MemoryReader(randomContent(200 * MiB).fill(1));
  const { blob } = await openBlob(t, reader);
  let free = 6;
  const { hydration, clock, seen } = await open(t, new FakeVolume([blob]), {
    space: () => Promise.resolve({ free, total: 100, room: Infinity }),
  });
  reader.before = (offset) => {
    if (offset === 32 * MiB) free = 4;
  };
  hydration.start();
  await until(() => hydration.state === "paused" && clock.sleeping === 1);
  assert.equal(hydration.status().reason, "no-space");
  assert.ok(blob.readyBytes > 0 && blob.readyBytes < 100 * MiB);
  clock.advance(5000);
  await settle();
  assert.equal(hydration.state, "paused");
  free = 6;
  reader.before = () => undefined;
  clock.advance(5000);
  await until(() => hydration.state === "detached");
  assert.deepEqual(states(seen), ["running", "paused", "running", "detached"]);
});

void test("near the cache's capacity it asks for no more than there is room for, what is under way counted", async (t) => {
  const reader = new MemoryReader(randomContent(40 * MiB));
  const { blob } = await openBlob(t, reader);
  let capacity = 5 * MiB;
  const { hydration, clock } = await open(t, new FakeVolume([blob]), {
    space: () => Promise.resolve({ free: 100, total: 100, room: capacity - blob.readyBytes }),
  });
  hydration.start();
  await until(() => hydration.state === "detached" || (hydration.state === "paused" && clock.sleeping === 1));
  assert.equal(hydration.status().reason, "no-space");
  assert.ok(blob.readyBytes > 0 && blob.readyBytes <= 5 * MiB, `${blob.readyBytes} bytes`);
  capacity = Infinity;
  clock.advance(5000);
  await until(() => hydration.state === "detached");
});

void test("a full disk is a pause with the reason no-space", async (t) => {
  let full = true;
  const fs = withFile(/data$/, (file) => ({
    write: (...args: Parameters<typeof file.write>) =>
      full ? Promise.reject(new IoError("ENOSPC", "disk full")) : file.write(...args),
  }));
  const { blob } = await openBlob(t, new MemoryReader(randomContent(4 * MiB)), { fs });
  const { hydration, clock } = await open(t, new FakeVolume([blob]));
  hydration.start();
  await until(() => hydration.state === "paused" && clock.sleeping === 1);
  assert.equal(hydration.status().reason, "no-space");
  full = false;
  clock.advance(5000);
  await until(() => hydration.state === "detached");
});

void test("a rate limit holds it back, and can be changed while it waits", async (t) => {
  const reader = new MemoryReader(randomContent(20 * MiB));
  const { blob } = await openBlob(t, reader);
  const { hydration, clock } = await open(t, new FakeVolume([blob]), { limitBytesPerSecond: MiB });
  hydration.start();
  for (let second = 1; second <= 5; second++) {
    for (let tick = 0; tick < 4; tick++) {
      await until(() => clock.sleeping === 1);
      clock.advance(250);
    }
    await until(() => clock.sleeping === 1 && reader.requests.length > second);
    await settle();
    assert.equal(reader.requests.length, second + 1, "the first at once, and one each second");
  }
  assert.equal(hydration.status().limitBytesPerSecond, MiB);
  hydration.configure({ limitBytesPerSecond: null });
  clock.advance(250);
  await hydration.wait();
});

void test("rate and time left are told while it runs", async (t) => {
  const reader = new MemoryReader(randomContent(20 * MiB));
  const { blob } = await openBlob(t, reader);
  const { hydration, clock } = await open(t, new FakeVolume([blob]), { limitBytesPerSecond: 2 * MiB });
  hydration.start();
  for (let tick = 0; tick < 20; tick++) {
    // The first at once, and one each half second: all of them have come.
    await until(() => clock.sleeping === 1 && blob.readyBytes === MiB * (1 + Math.floor(clock.now() / 500)));
    clock.advance(250);
    await settle();
  }
  const { rateBytesPerSecond, etaSeconds, readyBytes } = hydration.status();
  assert.ok(rateBytesPerSecond > 1.5 * MiB && rateBytesPerSecond < 2.5 * MiB, `${rateBytesPerSecond}`);
  assert.equal(etaSeconds, Math.ceil((20 * MiB - readyBytes) / rateBytesPerSecond));
});

void test("among volumes that are filled at once, the higher priority gets the slots", async () => {
  const slots = new HydrationSlots(1);
  const signal = new AbortController().signal;
  const first = await slots.take(0, signal);
  const order: string[] = [];
  const take = async (name: string, priority: number): Promise<void> => {
    const release = await slots.take(priority, signal);
    order.push(name);
    release();
  };
  const all = [take("low", -5), take("normal", 0), take("normal, later", 0), take("high", 7)];
  const leaving = new AbortController();
  const left = slots.take(100, leaving.signal);
  leaving.abort(new Error("closed"));
  await assert.rejects(left, /closed/);
  first();
  await Promise.all(all);
  assert.deepEqual(order, ["high", "normal", "normal, later", "low"]);
  (await slots.take(0, signal))(); // or it would hang
});

void test("a volume without blobs has nothing to hydrate", async (t) => {
  const { hydration } = await open(t, new FakeVolume([]));
  hydration.start();
  hydration.pause();
  hydration.resume();
  assert.equal(hydration.state, "none");
});

void test("closing ends it at once, though the source hangs, and tells who waits", async (t) => {
  const reader = new MemoryReader(randomContent(40 * MiB));
  const { blob } = await openBlob(t, reader);
  reader.before = (_offset, _length, signal) =>
    new Promise((_resolve, reject) => signal!.addEventListener("abort", () => reject(signal!.reason as Error)));
  const { hydration } = await open(t, new FakeVolume([blob]));
  hydration.start();
  await until(() => reader.requests.length === 16);
  const waiting = assert.rejects(hydration.wait(), { code: "closed" });
  await hydration.close();
  await waiting;
  hydration.start();
  assert.equal(reader.requests.length, 16);
});

void test("what a trace names is asked for in its order, but for 2 MiB at a time, in which neighbours are one request", async (t) => {
  const reader = new MemoryReader(randomContent(16 * MiB));
  const { blob } = await openBlob(t, reader, { unitBytes: UNIT });
  await blob.fetch(3 * UNIT, UNIT);
  const read = (unit: number): [number, number, number] => [0, unit * UNIT + 100, 200];
  const batch = [9, 1, 3, 8, 0, 9, 2, ...Array.from({ length: 27 }, (_, index) => 40 + 2 * index)];
  const reads = [...batch, 7, 100, 99].map(read);
  const pieces: [number, number][] = [];
  for await (const { offset, length } of tracedPieces(new FakeVolume([blob]), blob, reads, MiB)) {
    pieces.push([offset / UNIT, length / UNIT]);
  }
  assert.deepEqual(pieces.slice(0, 3), [
    [0, 3],
    [8, 2],
    [40, 1],
  ]);
  assert.deepEqual(pieces.slice(-2), [
    [7, 1],
    [99, 2],
  ]);
  assert.equal(pieces.length, 2 + 27 + 2);
});
