import { namePattern } from "../catalog/names.ts";

/** JSON schemas of snapshots; see schemas.ts. */
const name = { type: "string", pattern: namePattern } as const;
const force = { type: "boolean", description: "close read-write connections first" } as const;

const snapshot = {
  id: { type: "string" },
  name: { type: "string" },
  volume: { type: "string", description: "name of its volume" },
  size: { type: "integer", minimum: 0, description: "bytes" },
  createdAt: { type: "string", format: "date-time" },
};

export const snapshotSchemas = [
  {
    $id: "Snapshot",
    type: "object",
    description: "a volume as it was at one moment; never changes; NBD export VOLUME@SNAPSHOT, read-only",
    additionalProperties: false,
    required: Object.keys(snapshot),
    properties: snapshot,
  },
  {
    $id: "SnapshotList",
    type: "object",
    description: "snapshots by volume, oldest first",
    additionalProperties: false,
    required: ["snapshots", "next"],
    properties: {
      snapshots: { type: "array", items: { $ref: "Snapshot#" } },
      next: { type: ["string", "null"] },
    },
  },
  {
    $id: "SnapshotDiff",
    type: "object",
    description: "a page of the bytes that may differ; `next` is the offset to go on from",
    additionalProperties: false,
    required: ["runs", "next"],
    properties: {
      runs: {
        type: "array",
        items: {
          type: "object",
          additionalProperties: false,
          required: ["offset", "length"],
          properties: { offset: { type: "integer" }, length: { type: "integer" } },
        },
      },
      next: { type: ["integer", "null"] },
    },
  },
  {
    $id: "Space",
    type: "object",
    description: "bytes on disk; what several volumes use is in the figures of each of them",
    additionalProperties: false,
    required: ["exclusiveBytes", "sharedBytes", "cachedBytes"],
    properties: {
      exclusiveBytes: { type: "integer", description: "in layers that only this volume and its snapshots need" },
      sharedBytes: { type: "integer", description: "in layers that other volumes need as well" },
      cachedBytes: {
        type: "integer",
        description: "in the cache of the image that it was made from, which all volumes made from that share",
      },
    },
  },
  {
    $id: "AllSpace",
    type: "object",
    description: "bytes on disk: what `du` says of the files in layers/ and of the caches in blobs/",
    additionalProperties: false,
    required: ["exclusiveBytes", "sharedBytes", "unusedBytes", "cachedBytes"],
    properties: {
      exclusiveBytes: { type: "integer", description: "in layers that one volume needs: the sum over all volumes" },
      sharedBytes: { type: "integer", description: "in layers that several volumes need, each counted once" },
      unusedBytes: {
        type: "integer",
        description: "in layers that nothing needs: about to be removed, or left by a removal that failed",
      },
      cachedBytes: { type: "integer", description: "of images, each counted once" },
    },
  },
  {
    $id: "SnapshotCreate",
    type: "object",
    description: "a snapshot to take",
    additionalProperties: false,
    required: ["name"],
    properties: { name },
  },
  {
    $id: "Revert",
    type: "object",
    description: "the snapshot that the volume is to become; what was written since is lost",
    additionalProperties: false,
    required: ["snapshot"],
    properties: { snapshot: name, force },
  },
];
