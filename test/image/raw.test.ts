import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Identity, ReadOptions, Sink } from "../../src/backend/backend.ts";
import { rawFormat } from "../../src/image/raw.ts";

void test("raw passes reads through as they are", async () => {
  const identity: Identity = { size: 1234, version: "v", strong: true };
  const calls: unknown[][] = [];
  const backend = { read: (...args: unknown[]) => Promise.resolve(void calls.push(args)) } as unknown as Backend;
  const reader = await rawFormat.open(backend, identity);
  assert.equal(reader.size, 1234);
  const sink: Sink = () => undefined;
  const options: ReadOptions = { background: true };
  await reader.read(5, 7, sink, options);
  assert.deepEqual(calls, [[identity, 5, 7, sink, options]]);
});
