import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { latencyBounds, LatencyHistogram } from "../../src/base/latency-histogram.ts";
import { ExtentState } from "../../src/export/block-device.ts";
import { ExportTraffic } from "../../src/export/export-traffic.ts";
import { NbdServer } from "../../src/export/nbd/nbd-server.ts";
import { join } from "node:path";
import { MiB, nbdsh, oneExport, tempDir } from "../nbd/support.ts";
import { MemoryDevice } from "../support/memory-device.ts";
import { requireTool } from "../support/tools.ts";

/** An NBD server whose traffic can be looked at. */
async function served(t: TestContext, device: MemoryDevice): Promise<{ traffic: ExportTraffic; connect: string }> {
  const traffic = new ExportTraffic();
  const server = new NbdServer({ exports: oneExport(device), traffic: () => traffic, log: () => undefined });
  const path = join(tempDir(t), "nbd.sock");
  await server.listen(`unix:${path}`);
  t.after(() => server.stop(100));
  return { traffic, connect: `h.set_strict_mode(0)\nh.connect_uri("nbd+unix:///disk?socket=${path}")\n` };
}

const everything = `
for i in range(10): h.pwrite(b"x" * 4096, i * 4096)
h.pwrite(b"y" * 70000, 1 << 20)
h.pwrite(b"z" * 4096, 0, nbd.CMD_FLAG_FUA)
for i in range(20): h.pread(512, i * 512)
h.pread(300000, 0)
h.pread(5 << 20, 0)
h.pread(3 << 19, 0, nbd.CMD_FLAG_DF)
h.pread(5 << 20, 0, nbd.CMD_FLAG_DF)
h.flush()
h.trim(65536, 65536)
h.trim(65536, 262144)
h.zero(8192, 0)
h.cache(4096, 0)
`;

for (const slow of [false, true]) {
  const how = slow ? "one by one, when the device takes its time" : "in batches, when the device answers at once";
  void test(`every operation is counted once with its bytes and its time, ${how}`, async (t) => {
    if (!requireTool(t, "nbdsh")) return;
    const device = new MemoryDevice({ size: 16 * MiB });
    device.slow = slow;
    const { traffic, connect } = await served(t, device);
    await nbdsh(connect + everything);
    const { read, write, flush, trim, zero, cache } = traffic;
    const counted = Object.entries({ read, write, flush, trim, zero, cache }).map(([name, { latency, bytes }]) => [
      name,
      latency.count,
      bytes,
    ]);
    assert.deepEqual(counted, [
      ["read", 24, 20 * 512 + 300_000 + 1.5 * MiB + 2 * 5 * MiB],
      ["write", 12, 11 * 4096 + 70_000],
      ["flush", 1, 0],
      ["trim", 2, 2 * 65536],
      ["zero", 1, 8192],
      ["cache", 1, 4096],
    ]);
    assert.equal(traffic.errors.size, 0);
    for (const { latency } of [read, write]) {
      assert.ok(latency.sumMs > 0);
      assert.equal(
        latency.counts.reduce((sum, each) => sum + each, 0),
        latency.count,
      );
    }
  });
}

void test("a read that needs the source is a miss, once however long it is; all others are hits", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const device = new MemoryDevice({ size: 16 * MiB });
  device.slow = true;
  device.states.fill(ExtentState.remote, 1024, 4096);
  const { traffic, connect } = await served(t, device);
  await nbdsh(`${connect}
h.pread(4096, 0)
h.pread(4096, 4 << 20)
h.pread(8192, (4 << 20) - 4096)
h.pread(6 << 20, 4 << 20)
h.pread(6 << 20, 4 << 20, nbd.CMD_FLAG_DF)
`);
  assert.deepEqual([traffic.localReads, traffic.sourceReads], [1, 4]);
});

void test("failures are counted by operation and errno, also those of requests that the device never sees", async (t) => {
  if (!requireTool(t, "nbdsh")) return;
  const device = new MemoryDevice({ size: 16 * MiB });
  const { traffic, connect } = await served(t, device);
  device.fault = (operation, offset) => {
    if (operation === "write" && offset === 4096) return "ENOSPC";
    if (operation === "flush" || (operation === "read" && offset >= 8 * MiB)) return "EIO";
    return undefined;
  };
  await nbdsh(`${connect}
def fails(work):
    try: work()
    except nbd.Error: return
    raise Exception("no error")
fails(lambda: h.pwrite(b"x" * 512, 4096))
fails(lambda: h.pwrite(b"x" * 512, 4096))
fails(lambda: h.flush())
fails(lambda: h.pread(512, 8 << 20))
fails(lambda: h.pread(3 << 20, 8 << 20))
fails(lambda: h.pread(512, 1 << 40))
fails(lambda: h.trim(512, 1 << 40))
h.pwrite(b"x" * 512, 0)
`);
  const errors = [...traffic.errors].map(([operation, byErrno]) => [operation, [...byErrno]]);
  assert.deepEqual(Object.fromEntries(errors), {
    write: [["ENOSPC", 2]],
    flush: [["EIO", 1]],
    read: [
      ["EIO", 2],
      ["EINVAL", 1],
    ],
    trim: [["EINVAL", 1]],
  });
  assert.deepEqual(
    [traffic.write.latency.count, traffic.write.bytes, traffic.read.latency.count, traffic.flush.latency.count],
    [1, 512, 0, 0],
  );
});

void test("a time goes into the first bucket whose bound it does not exceed", () => {
  const histogram = new LatencyHistogram();
  for (const bound of latencyBounds) histogram.observe(bound * 1000);
  histogram.observe(31_000, 5);
  assert.deepEqual([...histogram.counts], [...latencyBounds.map(() => 1), 5]);
  assert.equal(histogram.count, latencyBounds.length + 5);
  const sum = latencyBounds.reduce((total, bound) => total + bound * 1000, 5 * 31_000);
  assert.ok(Math.abs(histogram.sumMs - sum) < 0.001);
});
