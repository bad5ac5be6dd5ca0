import assert from "node:assert/strict";
import { test } from "node:test";
import { CounterWait } from "../../src/base/counter-wait.ts";

void test("waiters wake in the order of what they wait for, and only when it is reached", async () => {
  const counter = new CounterWait();
  const woken: number[] = [];
  const waits = [3, 1, 2, 1].map((target) => counter.wait(target).then(() => woken.push(target)));
  counter.advance(2);
  await Promise.all([waits[1], waits[2], waits[3]]);
  assert.deepEqual(woken, [1, 1, 2]);
  assert.equal(counter.value, 2);
  counter.advance(5);
  await waits[0];
  assert.deepEqual(woken, [1, 1, 2, 3]);
});

void test("what was reached needs no wait", async () => {
  const counter = new CounterWait();
  counter.advance(4);
  await counter.wait(4);
  await counter.wait(0);
});

void test("the counter can't go back", () => {
  const counter = new CounterWait();
  counter.advance(4);
  assert.throws(() => counter.advance(3), RangeError);
});

void test("an error given to advance reaches those up to there, and nobody else", async () => {
  const counter = new CounterWait();
  const first = counter.wait(1);
  const second = counter.wait(2);
  counter.advance(1, new Error("disk full"));
  await assert.rejects(first, /disk full/);
  await counter.wait(1);
  counter.advance(2);
  await second;
});

void test("rule 21d: a failure wakes everybody, and whoever comes later", async () => {
  const counter = new CounterWait();
  const waits = [1, 2, 7].map((target) => counter.wait(target));
  counter.fail(new Error("first failure"));
  counter.fail(new Error("second failure"));
  for (const wait of waits) await assert.rejects(wait, /first failure/);
  await assert.rejects(counter.wait(1), /first failure/);
  await assert.rejects(counter.wait(0), /first failure/);
});
