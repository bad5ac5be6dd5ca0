import assert from "node:assert/strict";
import { test } from "node:test";
import * as fc from "fast-check";
import { clusterBytes, DataClusters, groupClusters } from "../../src/image/data-clusters.ts";

const maxClusters = 3 * groupClusters;

/** A disk, and ranges of it that hold data; some disks end inside a cluster. */
const worlds = fc
  .record({ clusters: fc.integer({ min: 1, max: maxClusters }), cut: fc.integer({ min: 0, max: 127 }) })
  .chain(({ clusters, cut }) => {
    const size = clusters * clusterBytes - cut * 512;
    const range = fc
      .tuple(fc.integer({ min: 0, max: size - 1 }), fc.integer({ min: 1, max: 40 * clusterBytes }))
      .map(([offset, length]) => ({ offset, length: Math.min(length, size - offset) }));
    return fc.record({ size: fc.constant(size), ranges: fc.array(range, { maxLength: 12 }) });
  });

void test("it is known which clusters hold data, by number, by group, and as runs of bytes", () => {
  fc.assert(
    fc.property(worlds, ({ size, ranges }) => {
      const map = new DataClusters(size);
      const set = new Set<number>();
      for (const { offset, length } of ranges) {
        map.add(offset, length);
        for (let at = Math.floor(offset / clusterBytes); at * clusterBytes < offset + length; at++) set.add(at);
      }
      map.seal();
      const clusters = [...set].sort((a, b) => a - b);
      assert.equal(map.count, clusters.length);
      for (const [index, cluster] of clusters.entries()) {
        assert.equal(map.nth(index), cluster);
        assert.ok(map.has(cluster));
      }
      for (let group = 0; group <= map.groups; group++) {
        assert.equal(map.before(group), clusters.filter((cluster) => cluster < group * groupClusters).length);
      }
      const found: number[] = [];
      let end = -1;
      for (let run = map.next(0); run !== undefined; run = map.next(run.offset + run.length)) {
        assert.ok(run.length > 0 && run.offset + run.length <= size);
        assert.ok(run.offset > end, "runs are as long as they can be");
        end = run.offset + run.length;
        for (let at = run.offset / clusterBytes; at * clusterBytes < end; at++) found.push(at);
      }
      assert.deepEqual(found, clusters);
      assert.equal(map.next(size), undefined);
    }),
    { numRuns: 150 },
  );
});

void test("a run that is asked for in its middle begins there", () => {
  const map = new DataClusters(10 * clusterBytes);
  map.add(2 * clusterBytes, 3 * clusterBytes);
  map.seal();
  assert.deepEqual(map.next(3 * clusterBytes + 7), { offset: 3 * clusterBytes + 7, length: 2 * clusterBytes - 7 });
  assert.equal(map.next(5 * clusterBytes), undefined);
});
