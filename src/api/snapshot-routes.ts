import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { SnapshotView } from "../daemon/views.ts";
import { badCursor, decodeCursor, encodeCursor } from "./cursor.ts";
import { idempotencyHeaders, requestKeyOf } from "./idempotency.ts";
import { problemResponses, ref } from "./schemas.ts";
import { snapshotSchemas } from "./snapshot-schemas.ts";

const byVolume = {
  type: "object",
  properties: { name: { type: "string", description: "the volume's name" } },
  required: ["name"],
} as const;
const bySnapshot = {
  type: "object",
  properties: { ...byVolume.properties, snapshot: { type: "string", description: "the snapshot's name" } },
  required: ["name", "snapshot"],
} as const;
const maxPage = 1000;
const maxDiffRuns = 10_000;

type OfVolume = { Params: { name: string } };
type OfSnapshot = { Params: { name: string; snapshot: string } };

/** /v1/snapshots, and what hangs below a volume */
export function addSnapshotRoutes(app: FastifyInstance, ullage: Ullage): void {
  for (const schema of snapshotSchemas) app.addSchema(schema);

  app.route<{ Querystring: { volume?: string; cursor?: string; limit: number } }>({
    method: "GET",
    url: "/v1/snapshots",
    schema: {
      operationId: "listSnapshots",
      summary: "Snapshots of one volume, or of all",
      querystring: {
        type: "object",
        additionalProperties: false,
        properties: {
          volume: { type: "string" },
          cursor: { type: "string", description: "`next` of the page before" },
          limit: { type: "integer", minimum: 1, maximum: maxPage, default: maxPage },
        },
      },
      response: { 200: ref("SnapshotList"), ...problemResponses },
    },
    handler: (request) => {
      const { volume, cursor, limit } = request.query;
      const all = ullage.listSnapshots(volume);
      const from = cursor === undefined ? 0 : behind(all, placeOf(cursor));
      const snapshots = all.slice(from, from + limit);
      const last = from + limit < all.length ? snapshots.at(-1) : undefined;
      return { snapshots, next: last === undefined ? null : encodeCursor(placeIn(last)) };
    },
  });

  app.route<OfVolume & { Body: { name: string } }>({
    method: "POST",
    url: "/v1/volumes/:name/snapshots",
    schema: {
      operationId: "createSnapshot",
      summary: "Take a snapshot; it is there, durably, when the answer comes",
      params: byVolume,
      headers: idempotencyHeaders("snapshot"),
      body: ref("SnapshotCreate"),
      response: { 201: ref("Snapshot"), ...problemResponses },
    },
    handler: async (request, reply) => {
      const { params, body } = request;
      const key = requestKeyOf(request, [params.name, body.name]);
      const snapshot = await ullage.createSnapshot(params.name, body.name, key);
      const path = `/v1/volumes/${snapshot.volume}/snapshots/${snapshot.name}`;
      return reply.code(201).header("location", path).send(snapshot);
    },
  });

  app.route<OfVolume>({
    method: "GET",
    url: "/v1/volumes/:name/snapshots",
    schema: {
      operationId: "listVolumeSnapshots",
      summary: "Snapshots of a volume, oldest first",
      params: byVolume,
      response: { 200: ref("SnapshotList"), ...problemResponses },
    },
    handler: (request) => ({ snapshots: ullage.listSnapshots(request.params.name), next: null }),
  });

  app.route<OfSnapshot>({
    method: "GET",
    url: "/v1/volumes/:name/snapshots/:snapshot",
    schema: {
      operationId: "getSnapshot",
      summary: "One snapshot",
      params: bySnapshot,
      response: { 200: ref("Snapshot"), ...problemResponses },
    },
    handler: (request) => ullage.showSnapshot(request.params.name, request.params.snapshot),
  });

  app.route<OfSnapshot & { Querystring: { force: boolean } }>({
    method: "DELETE",
    url: "/v1/volumes/:name/snapshots/:snapshot",
    schema: {
      operationId: "removeSnapshot",
      summary: "Remove a snapshot; clones live on",
      params: bySnapshot,
      querystring: {
        type: "object",
        additionalProperties: false,
        properties: { force: { type: "boolean", default: false, description: "close its connections first" } },
      },
      response: { 204: { type: "null", description: "it is gone" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      await ullage.removeSnapshot(request.params.name, request.params.snapshot, request.query);
      return reply.code(204).send();
    },
  });

  app.route<OfVolume>({
    method: "GET",
    url: "/v1/volumes/:name/space",
    schema: {
      operationId: "getSpace",
      summary: "Where a volume's bytes are on this host",
      params: byVolume,
      response: { 200: ref("Space"), ...problemResponses },
    },
    handler: (request) => ullage.spaceOf(request.params.name),
  });

  app.route<OfSnapshot & { Querystring: { to?: string; offset: number; limit: number } }>({
    method: "GET",
    url: "/v1/volumes/:name/snapshots/:snapshot/diff",
    schema: {
      operationId: "diffSnapshot",
      summary: "What was written since a snapshot, until another one or until now",
      params: bySnapshot,
      querystring: {
        type: "object",
        additionalProperties: false,
        properties: {
          to: { type: "string", description: "a later snapshot; absent: the volume as it is now" },
          offset: { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: 0 },
          limit: { type: "integer", minimum: 1, maximum: maxDiffRuns, default: maxPage },
        },
      },
      response: { 200: ref("SnapshotDiff"), ...problemResponses },
    },
    handler: (request) => ullage.diffSnapshot(request.params.name, request.params.snapshot, request.query),
  });

  app.route<OfVolume & { Body: { snapshot: string; force?: boolean } }>({
    method: "POST",
    url: "/v1/volumes/:name/revert",
    schema: {
      operationId: "revertVolume",
      summary: "Make a volume what one of its snapshots is",
      params: byVolume,
      body: ref("Revert"),
      response: { 200: ref("Volume"), ...problemResponses },
    },
    handler: (request) => {
      const { snapshot, force = false } = request.body;
      return ullage.revertVolume(request.params.name, snapshot, { force });
    },
  });
}

/** Where a snapshot stands in the list of all, whether or not it is still there. */
function placeIn({ volume, createdAt, id }: SnapshotView): string {
  return [volume, createdAt, id].join("\n");
}

/** @throws UllageError `bad-cursor` */
function placeOf(cursor: string): string {
  const place = decodeCursor(cursor);
  if (place.split("\n").length === 3) return place;
  throw badCursor(cursor);
}

/** The index of the first one behind a place. Names and times have no character below the one that parts them. */
function behind(all: readonly SnapshotView[], place: string): number {
  const index = all.findIndex((snapshot) => placeIn(snapshot) > place);
  return index === -1 ? all.length : index;
}
