import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { type Range, RangeLock } from "../../src/base/range-lock.ts";

/** Takes a range and notes when it is granted. */
function take(lock: RangeLock, name: string, start: number, end: number, order: string[]): Promise<Range> {
  return Promise.resolve(lock.acquire(start, end)).then((range) => {
    order.push(name);
    return range;
  });
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

void test("a free range is granted at once, without a promise", () => {
  const lock = new RangeLock();
  assert.equal(lock.idle, true);
  const range = lock.acquire(0, 4);
  assert.ok(!(range instanceof Promise));
  assert.equal(lock.idle, false);
  assert.ok(!(lock.acquire(4, 8) instanceof Promise), "ranges that touch do not overlap");
});

void test("rule 15: overlapping ranges are granted in arrival order", async () => {
  const lock = new RangeLock();
  const order: string[] = [];
  const first = await take(lock, "first", 0, 10, order);
  const second = take(lock, "second", 5, 15, order);
  const third = take(lock, "third", 8, 9, order);
  await turn();
  assert.deepEqual(order, ["first"]);
  lock.release(first);
  const held = await second;
  await turn();
  assert.deepEqual(order, ["first", "second"]);
  lock.release(held);
  await third;
  assert.deepEqual(order, ["first", "second", "third"]);
});

void test("a newcomer queues behind a waiter that it overlaps, though nobody holds its range", async () => {
  const lock = new RangeLock();
  const order: string[] = [];
  const holder = await take(lock, "holder", 0, 4, order);
  const waiter = take(lock, "waiter", 2, 10, order);
  assert.equal(lock.overlaps(8, 9), true);
  const newcomer = take(lock, "newcomer", 8, 9, order);
  const elsewhere = take(lock, "elsewhere", 10, 12, order);
  await elsewhere;
  assert.deepEqual(order, ["holder", "elsewhere"]);
  lock.release(holder);
  lock.release(await waiter);
  await newcomer;
  assert.deepEqual(order, ["holder", "elsewhere", "waiter", "newcomer"]);
});

void test("one release grants everybody who can go on", async () => {
  const lock = new RangeLock();
  const order: string[] = [];
  const holder = await take(lock, "holder", 0, 100, order);
  const waiters = [0, 10, 20].map((start) => take(lock, String(start), start, start + 10, order));
  lock.release(holder);
  await Promise.all(waiters);
  assert.deepEqual(order, ["holder", "0", "10", "20"]);
});

void test("a range that is not held can't be released", () => {
  const lock = new RangeLock();
  const range = lock.acquire(0, 1) as Range;
  lock.release(range);
  assert.throws(() => lock.release(range), /not held/);
});

void test("whatever comes and goes, held ranges never overlap, overlapping ones keep their order, nobody starves", async () => {
  const step = fc.record({ start: fc.nat(20), length: fc.integer({ min: 1, max: 8 }), releases: fc.nat(3) });
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const lock = new RangeLock();
      const held: { range: Range; index: number }[] = [];
      const granted: number[] = [];
      const request = (index: number, start: number, end: number): void => {
        void Promise.resolve(lock.acquire(start, end)).then((range) => {
          for (const other of held) {
            assert.ok(other.range.end <= range.start || range.end <= other.range.start, "two held ranges overlap");
          }
          held.push({ range, index });
          granted.push(index);
        });
      };
      const drop = (): void => {
        const oldest = held.shift();
        if (oldest) lock.release(oldest.range);
      };
      for (const [index, { start, length, releases }] of steps.entries()) {
        request(index, start, start + length);
        await turn();
        for (let n = 0; n < releases; n++) drop();
        await turn();
      }
      for (let n = 0; n < steps.length * 2 && held.length > 0; n++) {
        drop();
        await turn();
      }
      assert.equal(granted.length, steps.length, "everybody had a turn");
      assert.equal(lock.idle, true);
      for (const [a, one] of steps.entries()) {
        for (const [b, other] of steps.entries()) {
          if (b <= a || one.start >= other.start + other.length || other.start >= one.start + one.length) continue;
          assert.ok(granted.indexOf(a) < granted.indexOf(b), `${a} came before ${b} and overlaps it`);
        }
      }
    }),
    { numRuns: 60 },
  );
});
