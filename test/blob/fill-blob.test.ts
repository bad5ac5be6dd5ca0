import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { IoError, SourceError } from "../../src/base/errors.ts";
import { fillBlob, fillTraced } from "../../src/blob/fill-blob.ts";
import { MemoryReader, openBlob, randomContent, until } from "./support.ts";

const UNIT = 64 * 1024;
const MiB = 2 ** 20;
const { signal } = new AbortController();

function damagedReader(...damaged: number[]): MemoryReader {
  const reader = new MemoryReader(randomContent(20 * MiB));
  reader.before = (offset, length) => {
    for (const unit of damaged) {
      if (offset >= (unit + 1) * UNIT || unit * UNIT >= offset + length) continue;
      throw new SourceError("image-damaged", `cluster ${unit} is damaged`, { transient: false, hint: "compare it" });
    }
  };
  return reader;
}

/** A blob whose source answers so many requests, and then says nothing until it fails one of those that wait. */
async function hangingAfter(t: TestContext, requests: number) {
  const source = new MemoryReader(randomContent(40 * MiB));
  const failure = Promise.withResolvers<void>();
  const reader = {
    waiting: 0,
    fail: () => failure.reject(new SourceError("source-unreachable", "gone", { transient: true })),
  };
  failure.promise.catch(() => undefined);
  source.before = async (_offset, _length, ended) => {
    if (requests-- > 0) return;
    reader.waiting++;
    const aborted = new Promise<void>((_resolve, reject) =>
      ended!.addEventListener("abort", () => reject(ended!.reason as Error), { once: true }),
    );
    await Promise.race([reader.waiting === 1 ? failure.promise : aborted, aborted]).finally(() => reader.waiting--);
  };
  return { ...(await openBlob(t, source, { unitBytes: UNIT })), reader };
}

void test("filling a blob of which two pieces are damaged brings everything else, durably, and then fails with both", async (t) => {
  const { blob } = await openBlob(t, damagedReader(5, 200), { unitBytes: UNIT });
  await assert.rejects(fillBlob(blob, { signal }), (error: SourceError) => {
    assert.equal(error.code, "image-damaged");
    assert.equal(
      error.message,
      "all was fetched but 131072 bytes of the image that can't be had, the first at byte 327680",
    );
    assert.equal((error.cause as Error).message, "cluster 5 is damaged");
    assert.equal(error.hint, "compare it");
    return true;
  });
  assert.equal(blob.readyBytes, 20 * MiB - 2 * UNIT);
  assert.equal(blob.isDurable(0, 5 * UNIT) && blob.isDurable(6 * UNIT, 194 * UNIT), true);
});

void test("a trace that names something damaged is followed to its end", async (t) => {
  const { blob } = await openBlob(t, damagedReader(5), { unitBytes: UNIT });
  const reads = [5, 9].map((unit): [number, number, number] => [0, unit * UNIT + 512, UNIT]);
  await assert.rejects(fillTraced(blob, reads, { signal }), { code: "image-damaged" });
  assert.equal(blob.isReady(6 * UNIT, 1) && blob.isReady(9 * UNIT, 2 * UNIT), true);
});

void test("another failure than damage ends the filling", async (t) => {
  const { blob } = await openBlob(t, damagedReader(5), { unitBytes: UNIT });
  const room = (): Promise<void> =>
    blob.readyBytes < MiB ? Promise.resolve() : Promise.reject(new IoError("ENOSPC", "full"));
  await assert.rejects(fillBlob(blob, { signal, room }), { code: "io-enospc" });
});

void test("when filling has failed nothing of it goes on: no room is asked for, and nobody waits for the source", async (t) => {
  const { blob, reader } = await hangingAfter(t, 3);
  let asked = 0;
  let failed = false;
  const room = async (): Promise<void> => {
    assert.ok(!failed, "room was asked for behind the failure");
    if (++asked > 8) throw new IoError("ENOSPC", "full");
    await new Promise(setImmediate);
  };
  const filling = fillBlob(blob, { signal, room });
  await until(() => asked > 8); // and five requests hang
  const before = asked;
  reader.fail();
  await assert.rejects(filling, { code: "source-unreachable" });
  failed = true;
  assert.ok(asked <= before + 1, `${asked - before} times more`);
  assert.equal(reader.waiting, 0);
  for (let n = 0; n < 100; n++) await new Promise(setImmediate);
});

void test("what lands while room is asked for is not taken for what fills it: filling ends only when there is none with nothing under way", async (t) => {
  const { blob } = await openBlob(t, new MemoryReader(randomContent(4 * MiB)), { unitBytes: UNIT });
  let granted = 0;
  const room = async (bytes: number): Promise<void> => {
    if (bytes === 1) {
      granted += MiB;
      return;
    }
    await until(() => blob.readyBytes === granted);
    await new Promise((resolve) => setTimeout(resolve, 5)); // it has landed, for its caller, too
    throw new IoError("ENOSPC", "as if it were on the disk, and still on its way");
  };
  await fillBlob(blob, { signal, room });
  assert.equal(blob.readyBytes, 4 * MiB);
});
