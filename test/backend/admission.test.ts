import assert from "node:assert/strict";
import { test } from "node:test";
import { Admission } from "../../src/backend/admission.ts";

/** Starts work that ends when told to; says what has started so far. */
function workshop(admission: Admission) {
  const started: string[] = [];
  const start = (name: string, background: boolean, signal?: AbortSignal) => {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const done = admission.run(background, signal, () => {
      started.push(name);
      return promise;
    });
    return { done, finish: resolve, fail: reject };
  };
  return { started, start };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

void test("background holds at most its share, the foreground all that is free", async () => {
  const { started, start } = workshop(new Admission(4, 2));
  const background = ["b1", "b2", "b3"].map((name) => start(name, true));
  const foreground = ["f1", "f2", "f3"].map((name) => start(name, false));
  await turn();
  assert.deepEqual(started, ["b1", "b2", "f1", "f2"]);
  background[0].finish();
  await turn();
  // The place goes to the foreground, though b3 asked earlier.
  assert.deepEqual(started.slice(4), ["f3"]);
  foreground[0].finish();
  await turn();
  assert.deepEqual(started.slice(5), ["b3"]);
  for (const work of [...background, ...foreground]) work.finish();
  await Promise.all([...background, ...foreground].map((work) => work.done));
});

void test("work that fails gives its place back and its error to its caller", async () => {
  const { started, start } = workshop(new Admission(2, 1));
  const first = start("b1", true);
  const second = start("b2", true);
  await turn();
  first.fail(new Error("no luck"));
  await assert.rejects(first.done, /no luck/);
  await turn();
  assert.deepEqual(started, ["b1", "b2"]);
  second.finish();
  await second.done;
});

void test("an aborted waiter leaves the queue and takes no place", async () => {
  const { started, start } = workshop(new Admission(2, 1));
  const first = start("b1", true);
  const controller = new AbortController();
  const second = start("b2", true, controller.signal);
  const third = start("b3", true);
  await turn();
  controller.abort(new Error("gone"));
  await assert.rejects(second.done, /gone/);
  first.finish();
  await turn();
  assert.deepEqual(started, ["b1", "b3"]);
  third.finish();
  await third.done;
});

void test("a share that leaves nothing to the foreground is refused", () => {
  assert.throws(() => new Admission(4, 4), RangeError);
  assert.throws(() => new Admission(4, 0), RangeError);
});
