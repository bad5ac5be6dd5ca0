import assert from "node:assert/strict";
import { test } from "node:test";
import { IoBuffer } from "../../src/base/io-buffer.ts";
import type { Blob } from "../../src/blob/blob.ts";
import { OwnerMap } from "../../src/volume/map/owner-map.ts";
import { OwnerReader } from "../../src/volume/owner-reader.ts";
import { OwnerTable } from "../../src/volume/map/owner-table.ts";
import { SealedLayers } from "../../src/volume/layers/sealed-layers.ts";
import { blockBytes, volumeEnvironment } from "../support/volume-env.ts";

void test("durability rule 13: a unit that was lost and fetched again while a read waited is read again", async (t) => {
  const [lost, fetched] = [0xee, 0x11];
  let reads = 0;
  const blob = {
    size: blockBytes,
    losses: 0,
    isReady: () => true, // at every look: before the loss, and after the fetch
    noteRead: () => undefined,
    file: {
      tryRead: () => 0,
      read: (buffer: IoBuffer, at: number, length: number) => {
        buffer.bytes.fill(reads++ === 0 ? lost : fetched, at, at + length);
        if (reads === 1) blob.losses++;
        return Promise.resolve(length);
      },
    },
  };
  const map = new OwnerMap(1);
  map.set(0, 1, 1);
  const layers = new SealedLayers(volumeEnvironment(t), new OwnerTable());
  const reader = new OwnerReader(map, undefined, layers, new Map([[1, blob as unknown as Blob]]));
  const buffer = new IoBuffer(blockBytes);
  await reader.read(0, blockBytes, buffer, 0);
  assert.deepEqual(buffer.bytes, Buffer.alloc(blockBytes, fetched));
  assert.equal(reads, 2);
});
