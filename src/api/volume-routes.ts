import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { CreateVolumeRequest, HydrationChange, VolumeChangeRequest } from "../daemon/views.ts";
import { idempotencyHeaders, requestKeyOf } from "./idempotency.ts";
import { jobObject } from "./job-object.ts";
import { cursor, nextCursor, page, placeOf } from "./paging.ts";
import { problemResponses, ref } from "./schemas.ts";

const maxPageVolumes = 1000;
const maxPageRuns = 10_000;

const byName = {
  type: "object",
  properties: { name: { type: "string", description: "the volume's name" } },
  required: ["name"],
} as const;
const volumeAnswer = { 200: ref("Volume"), ...problemResponses };

type Named = { Params: { name: string } };

/** /v1/volumes and everything below it */
export function addVolumeRoutes(app: FastifyInstance, ullage: Ullage): void {
  app.route<{ Querystring: { cursor?: string; limit: number } }>({
    method: "GET",
    url: "/v1/volumes",
    schema: {
      operationId: "listVolumes",
      summary: "Volumes, ordered by name",
      querystring: page(maxPageVolumes, { cursor }),
      response: { 200: ref("VolumeList"), ...problemResponses },
    },
    handler: async (request) => {
      const { limit } = request.query;
      const after = placeOf(request.query.cursor);
      const volumes = await ullage.listVolumes(after, limit);
      return { volumes, next: nextCursor(volumes, limit, ({ name }) => name) };
    },
  });

  app.route<{ Body: CreateVolumeRequest }>({
    method: "POST",
    url: "/v1/volumes",
    schema: {
      operationId: "createVolume",
      summary: "Make a volume; it can be used when the answer comes, unless its image is downloaded first",
      headers: idempotencyHeaders("volume"),
      body: ref("VolumeCreate"),
      response: {
        201: { ...ref("Volume"), description: "it can be used" },
        202: {
          ...ref("Job"),
          description: "its image is being downloaded (`download`); the job's result is the volume",
        },
        ...problemResponses,
      },
    },
    handler: async (request, reply) => {
      const guarded = request.caller.kind !== "unix";
      const made = await ullage.createVolumeOrJob(request.body, requestKeyOf(request), { guarded });
      if (made.kind === "job") {
        return reply.code(202).header("location", `/v1/jobs/${made.job.id}`).send(jobObject(made.job));
      }
      const { volume } = made;
      return reply.code(201).header("location", `/v1/volumes/${volume.name}`).send(volume);
    },
  });

  app.route<Named>({
    method: "GET",
    url: "/v1/volumes/:name",
    schema: { operationId: "getVolume", summary: "One volume", params: byName, response: volumeAnswer },
    handler: (request) => ullage.showVolume(request.params.name),
  });

  app.route<Named & { Body: VolumeChangeRequest }>({
    method: "PATCH",
    url: "/v1/volumes/:name",
    schema: {
      operationId: "changeVolume",
      summary: "Change name, size or settings",
      params: byName,
      body: ref("VolumeChange"),
      response: volumeAnswer,
    },
    handler: (request) => ullage.changeVolume(request.params.name, request.body),
  });

  app.route<Named & { Querystring: { force: boolean; snapshots: boolean } }>({
    method: "DELETE",
    url: "/v1/volumes/:name",
    schema: {
      operationId: "removeVolume",
      summary: "Remove a volume and everything written to it",
      params: byName,
      querystring: {
        type: "object",
        additionalProperties: false,
        properties: {
          force: { type: "boolean", default: false, description: "close its connections first" },
          snapshots: { type: "boolean", default: false, description: "remove its snapshots too; clones live on" },
        },
      },
      response: { 204: { type: "null", description: "it is gone" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      await ullage.removeVolume(request.params.name, request.query);
      return reply.code(204).send();
    },
  });

  app.route<Named>({
    method: "GET",
    url: "/v1/volumes/:name/hydration",
    schema: {
      operationId: "getHydration",
      summary: "How far the local cache is filled",
      params: byName,
      response: { 200: ref("Hydration"), ...problemResponses },
    },
    handler: async (request) => (await ullage.showVolume(request.params.name)).hydration,
  });

  app.route<Named & { Body: HydrationChange }>({
    method: "PATCH",
    url: "/v1/volumes/:name/hydration",
    schema: {
      operationId: "steerHydration",
      summary: "Start, pause, resume, limit or prefer the filling of the local cache",
      params: byName,
      body: ref("HydrationChange"),
      response: { 200: ref("Hydration"), ...problemResponses },
    },
    handler: (request) => ullage.steerHydration(request.params.name, request.body),
  });

  app.route<Named & { Querystring: { offset: number; limit: number } }>({
    method: "GET",
    url: "/v1/volumes/:name/map",
    schema: {
      operationId: "getMap",
      summary: "Which ranges are local, remote, written or zero",
      params: byName,
      querystring: page(maxPageRuns, {
        offset: { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER, default: 0 },
      }),
      response: { 200: ref("VolumeMap"), ...problemResponses },
    },
    handler: (request) => ullage.mapVolume(request.params.name, request.query.offset, request.query.limit),
  });

  app.route<Named>({
    method: "GET",
    url: "/v1/volumes/:name/connections",
    schema: {
      operationId: "listConnections",
      summary: "Who is connected",
      params: byName,
      response: { 200: ref("ConnectionList"), ...problemResponses },
    },
    handler: (request) => ({ connections: ullage.connections(request.params.name), next: null }),
  });

  app.route<Named & { Body: { acceptLoss?: boolean } }>({
    method: "POST",
    url: "/v1/volumes/:name/reopen",
    schema: {
      operationId: "reopenVolume",
      summary: "Let writers in again after a failed sync or a power cut",
      params: byName,
      body: ref("Reopen"),
      response: volumeAnswer,
    },
    handler: (request) => ullage.reopenVolume(request.params.name, request.body.acceptLoss === true),
  });
}
