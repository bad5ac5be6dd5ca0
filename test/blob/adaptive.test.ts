import assert from "node:assert/strict";
import { test } from "node:test";
import { FetchTraffic } from "../../src/blob/fetch-lanes.ts";
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
