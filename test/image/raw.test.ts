import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Identity, ReadOptions, Sink } from "../../src/backend/backend.ts";
import { objectReader } from "../../src/image/object-reader.ts";
import { openImage } from "../../src/image/open-image.ts";

void test("raw passes reads through to the pinned object as they are", async () => {
  const identity: Identity = { size: 1234, version: "v", strong: true };
  const calls: unknown[][] = [];
  const backend = { read: (...args: unknown[]) => Promise.resolve(void calls.push(args)) } as unknown as Backend;
  const { reader, format } = await openImage(objectReader(backend, identity), "raw", {});
  assert.equal(format, "raw");
  assert.equal(reader.size, 1234);
  const sink: Sink = () => undefined;
  const options: ReadOptions = { background: true };
  await reader.read(5, 7, sink, options);
  assert.deepEqual(calls, [[identity, 5, 7, sink, options]]);
});
