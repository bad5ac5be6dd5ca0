import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { SourceError } from "../../src/base/errors.ts";
import {
  ManualClock,
  MemoryReader,
  openBlob,
  openCache,
  randomContent,
  readCacheFile,
  until,
} from "../blob/support.ts";
import { FakeVolume, openHydration, settle } from "./hydration-support.ts";

/* A source that answers, and has pieces that can't be read: everything else is fetched. */

const MiB = 2 ** 20;
const UNIT = 64 * 1024;

/** Units of it are damaged: a request that touches one fails, as one that has to unpack a cluster does. */
class DamagedReader extends MemoryReader {
  readonly damaged = new Set<number>();
  down = false;
  fail = (unit: number): SourceError =>
    new SourceError("image-damaged", `the compressed bytes of unit ${unit} are not what they should be`, {
      transient: false,
    });

  override before = (offset: number, length: number): void => {
    if (this.down) throw new SourceError("source-unreachable", "connection refused", { transient: true });
    for (const unit of this.damaged) {
      if (offset < (unit + 1) * UNIT && unit * UNIT < offset + length) throw this.fail(unit);
    }
  };
}

async function world(t: TestContext, units: number[], { bytes = 40 * MiB } = {}) {
  const reader = new DamagedReader(randomContent(bytes));
  for (const unit of units) reader.damaged.add(unit);
  const opened = await openBlob(t, reader, { unitBytes: UNIT, clock: new ManualClock() });
  const volume = new FakeVolume([opened.blob]);
  return { reader, ...opened, volume, ...(await openHydration(t, volume)) };
}

void test("a damaged piece keeps nothing else from being fetched, is told of, and keeps the volume from being detached", async (t) => {
  const { reader, blob, volume, hydration, clock, log } = await world(t, [37, 300]);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.equal(blob.readyBytes, reader.size - 2 * UNIT);
  for (const unit of [0, 36, 38, 299, 301, 639]) {
    const expected = reader.content.subarray(unit * UNIT, (unit + 1) * UNIT);
    assert.ok((await readCacheFile(blob, unit * UNIT, UNIT)).equals(expected), `unit ${unit}`);
  }
  const { damagedBytes, damaged, reason, readyBytes, totalBytes } = hydration.status();
  assert.deepEqual([damagedBytes, totalBytes - readyBytes], [2 * UNIT, 2 * UNIT]);
  assert.deepEqual(damaged, [
    { offset: 37 * UNIT, length: UNIT, reason: "the compressed bytes of unit 37 are not what they should be" },
    { offset: 300 * UNIT, length: UNIT, reason: "the compressed bytes of unit 300 are not what they should be" },
  ]);
  assert.match(
    reason!,
    /^all was fetched but 131072 bytes of the image that can't be had, the first at byte 2424832: the compressed bytes/,
  );
  assert.equal(log.length, 1);
  assert.equal(blob.isPinnedBy(volume.id), false);
  assert.deepEqual(volume.events, [], "it is not nearly detached");
});

void test("what is damaged is tried again seldom, one piece at a time, and fetched when it turned good", async (t) => {
  const { reader, blob, volume, hydration, clock } = await world(t, [37, 300]);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  const tried: number[] = [];
  let seconds = 0;
  for (const wait of [1, 2, 4, 8, 16, 32, 60, 60]) {
    reader.requests.length = 0;
    clock.advance(wait * 1000 - 1);
    await settle();
    assert.equal(reader.requests.length, 0);
    clock.advance(1);
    await until(() => reader.requests.length === 1 && clock.sleeping === 1);
    tried.push(reader.requests[0].offset / UNIT);
    seconds += wait;
  }
  assert.equal(seconds, 183);
  const [one, other] = tried; // which of them was found first is the disk's to say
  assert.deepEqual(new Set([one, other]), new Set([37, 300]));
  assert.deepEqual(tried, [one, other, one, other, one, other, one, other]);
  assert.equal(hydration.state, "waiting");
  reader.damaged.delete(one);
  clock.advance(60_000);
  await until(() => hydration.status().damagedBytes === UNIT && clock.sleeping === 1);
  reader.damaged.clear();
  clock.advance(60_000);
  await until(() => hydration.state === "detached");
  assert.equal(blob.readyBytes, reader.size);
  assert.equal(blob.isPinnedBy(volume.id), true);
});

void test("`resume` tries all that is damaged at once", async (t) => {
  const { reader, hydration, clock } = await world(t, [37, 300, 301]);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  reader.damaged.clear();
  hydration.resume();
  await hydration.wait();
});

void test("a damaged piece that the volume has written over is not needed any more", async (t) => {
  const { reader, volume, hydration, clock } = await world(t, [37]);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  const asked = reader.requests.length;
  volume.needed = [
    { offset: 0, length: 37 * UNIT },
    { offset: 38 * UNIT, length: reader.size - 38 * UNIT },
  ];
  clock.advance(1000);
  await until(() => hydration.state === "detached");
  assert.equal(reader.requests.length, asked);
  assert.equal(hydration.status().damagedBytes, 0);
});

void test("when the source goes away afterwards everything but the piece is there, also after a restart, and it is not detached", async (t) => {
  const { reader, blob, cache, dataDir, hydration, clock } = await world(t, [37]);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  reader.down = true;
  clock.advance(1000);
  await until(() => hydration.status().reason === "connection refused" && clock.sleeping === 1);
  assert.equal(hydration.status().damagedBytes, UNIT, "it is still known");
  await hydration.close();
  await cache.close();
  const { cache: next } = await openCache(t, { dataDir });
  const again = await next.open(blob.id);
  assert.equal(again.readyBytes, reader.size - UNIT);
  const { hydration: later } = await openHydration(t, new FakeVolume([again]));
  assert.equal(later.state, "none");
});

void test("a large cluster that is damaged, and the end of the blob, cost few requests", async (t) => {
  const { reader, blob, hydration, clock } = await world(t, [], { bytes: 8 * MiB + 1000 });
  reader.fail = () => new SourceError("image-damaged", "the compressed bytes at 77 are none", { transient: false });
  for (let unit = 32; unit < 64; unit++) reader.damaged.add(unit);
  reader.damaged.add(128);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.equal(blob.readyBytes, 6 * MiB);
  assert.deepEqual(
    hydration.status().damaged.map(({ offset, length }) => [offset, length]),
    [
      [2 * MiB, 2 * MiB],
      [8 * MiB, 1000],
    ],
  );
  const failed = reader.requests.filter(({ offset }) => offset >= 2 * MiB && offset < 4 * MiB);
  assert.equal(failed.length, 2 * 4);
});

void test("a source of which nothing can be read for once is down, and not damaged all over", async (t) => {
  const { reader, blob, hydration, clock } = await world(t, [], { bytes: 64 * MiB });
  reader.fail = () => new SourceError("source-io", "the disk cannot be read (EIO)", { transient: true });
  for (let unit = 80; unit < 64 * 16; unit++) reader.damaged.add(unit);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.equal(hydration.status().reason, "the disk cannot be read (EIO)");
  assert.ok(reader.requests.length < 200, `${reader.requests.length} requests`);
  reader.damaged.clear();
  clock.advance(60_000);
  await until(() => hydration.state === "detached");
  assert.equal(blob.readyBytes, reader.size);
});

void test("an image that can't be opened any more is not damaged all over", async (t) => {
  const { blob } = await openBlob(t, new MemoryReader(randomContent(40 * MiB)), {
    openSource: () =>
      Promise.reject(new SourceError("image-damaged", "the qcow2 image is damaged: its header", { transient: false })),
  });
  const { hydration, clock } = await openHydration(t, new FakeVolume([blob]));
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.match(hydration.status().reason!, /can't be opened any more: the qcow2 image is damaged: its header/);
  assert.equal(hydration.status().damagedBytes, 0);
});

void test("what a trace names and is damaged does not keep the rest of it, or of the image, from coming", async (t) => {
  const { reader, blob, hydration, clock } = await openTraced(t);
  hydration.start();
  await until(() => hydration.state === "waiting" && clock.sleeping === 1);
  assert.equal(blob.readyBytes, reader.size - UNIT);
  assert.equal(hydration.status().damagedBytes, UNIT, "counted once, though it was asked for twice at a time");
});

async function openTraced(t: TestContext) {
  const reader = new DamagedReader(randomContent(8 * MiB));
  reader.damaged.add(90);
  const { blob } = await openBlob(t, reader, { unitBytes: UNIT });
  const trace = [90, 91, 20].map((unit): [number, number, number] => [0, unit * UNIT, UNIT]);
  return { reader, blob, ...(await openHydration(t, new FakeVolume([blob]), { trace: () => trace })) };
}
