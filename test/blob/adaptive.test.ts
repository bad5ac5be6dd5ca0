import assert from "node:assert/strict";
import { test } from "node:test";
import type { Clock } from "../../src/base/clock.ts";
import { FetchLanes, FetchTraffic } from "../../src/blob/fetch-lanes.ts";
import { ManualClock } from "./support.ts";

/** Past the time in which the background keeps back for a reader. */
const quietMs = 5000;

function traffic(): { traffic: FetchTraffic; clock: ManualClock } {
  const clock = new ManualClock();
  clock.advance(quietMs);
  return { traffic: new FetchTraffic(clock), clock };
}

void test("a source that throttles is asked half as much at once, not more than once a second, and never nothing", () => {
  const { traffic: background, clock } = traffic();
  assert.equal(background.backgroundLimit, 16);
  background.throttled();
  background.throttled();
  assert.equal(background.backgroundLimit, 8);
  for (let each = 0; each < 10; each++) {
    clock.advance(1000);
    background.throttled();
  }
  assert.equal(background.backgroundLimit, 1);
});

void test("while nothing goes wrong it is asked one more each second, up to what there was", () => {
  const { traffic: background, clock } = traffic();
  background.throttled();
  for (let second = 0; second < 4; second++) {
    clock.advance(1000);
    for (let each = 0; each < 50; each++) background.took("background", 5);
  }
  assert.equal(background.backgroundLimit, 12);
  for (let second = 0; second < 20; second++) {
    clock.advance(1000);
    background.took("background", 5);
  }
  assert.equal(background.backgroundLimit, 16);
});

void test("the background makes room when readers wait much longer beside it than without it", () => {
  const { traffic: background, clock } = traffic();
  for (let each = 0; each < 20; each++) background.took("foreground", 10);
  background.backgroundRuns(1);
  for (let each = 0; each < 100; each++) {
    clock.advance(1000);
    background.took("foreground", 200);
  }
  assert.equal(background.backgroundLimit, 1);
});

void test("readers that wait as long as always change nothing", () => {
  const { traffic: background, clock } = traffic();
  for (let each = 0; each < 20; each++) background.took("foreground", 10);
  background.backgroundRuns(1);
  for (let each = 0; each < 100; each++) {
    clock.advance(1000);
    background.took("foreground", 20);
  }
  assert.equal(background.backgroundLimit, 16);
});

/** Somebody reads without a pause; each of his requests takes `ms`. @returns what the background may do at the end */
function readFor(seconds: number, { traffic: measured, clock }: ReturnType<typeof traffic>, ms: () => number): number {
  for (let each = 0; each < 10 * seconds; each++) {
    measured.started();
    clock.advance(100);
    measured.took("foreground", ms());
    measured.ended();
  }
  return measured.backgroundLimit;
}

void test("beside somebody who reads all the time the background begins with nothing, and grows while he waits no longer for it", () => {
  const world = traffic();
  assert.equal(
    readFor(2, world, () => 10),
    0,
  );
  assert.equal(
    readFor(2, world, () => 10),
    1,
  );
  world.traffic.backgroundRuns(1);
  assert.ok(readFor(60, world, () => 12) >= 12);
});

void test("what holds him up is taken back at once, and tried again", () => {
  const world = traffic();
  readFor(5, world, () => 10);
  world.traffic.backgroundRuns(1);
  let most = 0;
  let without = 0;
  for (let second = 0; second < 60; second++) {
    const limit = readFor(1, world, () => (world.traffic.backgroundLimit > 0 ? 30 : 10));
    most = Math.max(most, limit);
    if (limit === 0) without++;
  }
  assert.equal(most, 1);
  assert.ok(without >= 30, `${without} of 60 seconds without`);
});

void test("once he reads no more, the background has all of it again after a moment", () => {
  const world = traffic();
  assert.equal(
    readFor(1, world, () => 10),
    0,
  );
  world.clock.advance(quietMs);
  assert.equal(world.traffic.backgroundLimit, 16);
});

void test("the background is let go however early the timer that holds it back comes, and however little later it is looked at", async () => {
  let now = 0;
  const clock: Clock = {
    now: () => (now += 0.3), // time goes on between two looks
    wallTime: () => new Date(0).toISOString(),
    sleep: async (ms) => {
      now += Math.max(0, ms - 0.7);
    },
  };
  for (const hold of ["reads", "a reader is expected"]) {
    const held = new FetchTraffic(clock);
    const lanes = new FetchLanes(held);
    if (hold === "reads") {
      held.started();
      held.ended();
    } else held.expected();
    const ran = Promise.withResolvers<void>();
    lanes.submit({
      lane: "background",
      run: async () => ran.resolve(),
    });
    await ran.promise;
  }
});
