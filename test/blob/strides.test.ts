import assert from "node:assert/strict";
import { test } from "node:test";
import { Strides, STRIDES_AHEAD } from "../../src/blob/strides.ts";
import { MemoryReader, openBlob, randomContent, until } from "./support.ts";

const UNIT = 64 * 1024;
const MiB = 1024 * 1024;

void test("a reader that jumps by the same distance is believed after three jumps, either way", () => {
  for (const stride of [MiB, -MiB]) {
    const strides = new Strides();
    const told = Array.from({ length: 5 }, (_, index) => strides.note(100 * MiB + index * stride, 4096));
    assert.deepEqual(told, [0, 0, 0, 0, stride]);
  }
});

void test("it is told again only when half of what was foretold is behind the reader", () => {
  const strides = new Strides();
  let told = 0;
  for (let index = 0; index < 40; index++) if (strides.note(index * MiB, 4096) !== 0) told++;
  assert.ok(told >= 40 / STRIDES_AHEAD && told <= 40 / (STRIDES_AHEAD / 2) + 1, `${told} times`);
});

void test("random and sequential readers are not taken for one that jumps", () => {
  const strides = new Strides();
  for (let index = 0; index < 1000; index++) {
    assert.equal(strides.note(index * 4096, 4096), 0);
    assert.equal(strides.note(((index * 7919) % 1000) * MiB, 4096), 0);
  }
});

void test("what a strided reader wants next is fetched before it asks", async (t) => {
  const reader = new MemoryReader(randomContent(32 * MiB));
  const { blob } = await openBlob(t, reader, { unitBytes: UNIT });
  for (let index = 0; index < 5; index++) {
    blob.noteRead(index * 2 * MiB, 4096);
    await blob.fetch(index * 2 * MiB, 4096);
  }
  await until(() => blob.isReady(10 * MiB, 4096) && blob.isReady(20 * MiB, 4096));
  assert.ok(!blob.isReady(11 * MiB, 4096), "and nothing between");
});
