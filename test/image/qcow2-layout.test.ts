import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify } from "node:util";
import { clusterBytes, DataClusters, groupClusters } from "../../src/image/data-clusters.ts";
import { Qcow2Layout } from "../../src/image/qcow2/layout.ts";
import { temporaryDirectory } from "../daemon/support.ts";
import { requireTool } from "../support/tools.ts";

const execute = promisify(execFile);
const TiB = 2 ** 40;

/** Which clusters of a disk hold data: runs of [first, count]. */
function mapOf(diskBytes: number, runs: readonly (readonly [number, number])[]): DataClusters {
  const map = new DataClusters(diskBytes);
  for (const [first, count] of runs) {
    map.add(first * clusterBytes, Math.min(count * clusterBytes, diskBytes - first * clusterBytes));
  }
  return map.seal();
}

/** The image as a file; of its data clusters only each 1000th is written, with its number on the disk. */
async function write(t: TestContext, layout: Qcow2Layout): Promise<string> {
  const path = join(await temporaryDirectory(t), "image");
  const file = await open(path, "w");
  await file.truncate(layout.size);
  let clusters = 0;
  for (let at = 0; at < layout.size; at += clusterBytes) {
    const found = layout.at(at);
    if ("tables" in found) {
      await file.write(found.tables, 0, found.tables.length, at);
    } else if (clusters++ % 1000 === 0) {
      const bytes = Buffer.alloc(4096);
      bytes.writeBigUInt64BE(BigInt(found.disk.offset));
      await file.write(bytes, 0, bytes.length, at);
    }
  }
  await file.close();
  return path;
}

interface MapEntry {
  start: number;
  length: number;
  data: boolean;
  present: boolean;
  offset?: number;
}

const cases: readonly { what: string; size: number; runs: [number, number][] }[] = [
  { what: "nothing in it", size: 1 << 20, runs: [] },
  { what: "a disk of one sector", size: 512, runs: [[0, 1]] },
  {
    what: "several refcount blocks",
    size: 8 * 2 ** 30,
    runs: [
      [3, 70_000],
      [100_000, 20_000],
    ],
  },
  {
    what: "an L1 table of several clusters",
    size: 9 * TiB,
    runs: [
      [7, 1],
      [groupClusters * 8192, 3],
      [(9 * TiB) / clusterBytes - 1, 1],
    ],
  },
  { what: "as many refcounts as a block holds, and one more", size: 4 * 2 ** 30, runs: [[0, 32_768 - 8]] },
];

for (const { what, size, runs } of cases) {
  void test(`qemu-img finds no fault in an image with ${what}, and its clusters where they are`, async (t) => {
    if (!requireTool(t, "qemu-img")) return;
    const layout = new Qcow2Layout(mapOf(size, runs));
    const path = await write(t, layout);
    await execute("qemu-img", ["check", "-f", "qcow2", path]);
    const { stdout } = await execute("qemu-img", ["map", "--output=json", "-f", "qcow2", path], { maxBuffer: 2 ** 26 });
    const allocated = (JSON.parse(stdout) as MapEntry[]).filter(({ offset }) => offset !== undefined);
    let at = 0;
    for (const { start, length, offset } of allocated) {
      const found = layout.at(offset!);
      assert.ok("disk" in found && found.disk.offset === start, `${start} is at ${offset}`);
      at += length;
    }
    const expected = runs.reduce(
      (sum, [first, count]) => sum + Math.min(count * clusterBytes, size - first * clusterBytes),
      0,
    );
    assert.equal(at, expected);
  });
}

void test("every byte of an image is the same, wherever one begins to read", () => {
  const layout = new Qcow2Layout(
    mapOf(600 * 2 ** 20 + 512, [
      [0, 3],
      [9000, 2],
      [9600, 1],
    ]),
  );
  for (let at = 0; at < layout.size; at += clusterBytes) {
    const whole = layout.at(at);
    for (const inside of [1, 512, 40_001, clusterBytes - 1]) {
      const part = layout.at(at + inside);
      if ("tables" in whole) assert.ok("tables" in part && part.tables.equals(whole.tables.subarray(inside)));
      else assert.deepEqual(part, { disk: { offset: whole.disk.offset + inside, length: clusterBytes - inside } });
    }
  }
});

void test("a disk that QEMU could not open as qcow2 is refused", () => {
  const tooLarge = { clusters: 1, diskBytes: 3 * 2 ** 51, groups: 4 * 1024 * 1024 + 1 } as unknown as DataClusters;
  assert.throws(() => new Qcow2Layout(tooLarge), { code: "too-large" });
});
