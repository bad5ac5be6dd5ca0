import assert from "node:assert/strict";
import { test } from "node:test";
import { computeSlots, diskPlaces, otherMountPlaces, otherPlaces, syncSlots } from "../../src/base/pool-slots.ts";

const threads = Number(process.env["UV_THREADPOOL_SIZE"] ?? 4);

void test("rule 29: syncs, computations and sources leave two threads for reads, the others follow in arrival order, also after failures", async () => {
  const atOnce = syncSlots.count;
  const ofSources = diskPlaces.total + otherPlaces.total;
  assert.ok(atOnce + computeSlots.count + (threads >= 18 ? ofSources : 0) <= Math.max(2, threads - 2));
  assert.ok(otherMountPlaces.total <= otherPlaces.total);
  const started: number[] = [];
  const gates = Array.from({ length: atOnce + 3 }, () => Promise.withResolvers<void>());
  const runs = gates.map((gate, index) =>
    syncSlots.run(async () => {
      started.push(index);
      await gate.promise;
      return index;
    }),
  );
  await new Promise(setImmediate);
  const first = Array.from({ length: atOnce }, (_, index) => index);
  assert.deepEqual(started, first);

  gates[0].reject(new Error("sync failed"));
  await assert.rejects(runs[0], /sync failed/);
  await new Promise(setImmediate);
  assert.deepEqual(started, [...first, atOnce]);

  for (const gate of gates) gate.resolve();
  assert.deepEqual(
    (await Promise.allSettled(runs)).map((result) => result.status),
    gates.map((_, index) => (index === 0 ? "rejected" : "fulfilled")),
  );
  assert.deepEqual(started, Array.from(gates.keys()));
});
