import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { CacheChange, EvictRequest, SourceRequest } from "../daemon/views.ts";
import { jobObject } from "./job-object.ts";
import { problemResponses, ref } from "./schemas.ts";

const bytes = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;

const cacheSchemas = [
  {
    $id: "Cache",
    type: "object",
    description: "the cache that all volumes share",
    additionalProperties: false,
    required: ["blobs", "diskBytes", "capacityBytes", "reserve", "evictedBytes"],
    properties: {
      blobs: { ...bytes, description: "versions of images in it" },
      diskBytes: { ...bytes, description: "bytes on disk" },
      capacityBytes: {
        ...bytes,
        type: ["integer", "null"],
        description: "that it may take; null: no limit of its own",
      },
      reserve: { type: "number", minimum: 0, maximum: 1, description: "share of the file system that is left free" },
      evictedBytes: { ...bytes, description: "since the process started" },
    },
  },
  {
    $id: "CacheChange",
    type: "object",
    description: "what is left out stays; in force until the process ends",
    additionalProperties: false,
    properties: {
      capacityBytes: { ...bytes, type: ["integer", "null"] },
      reserve: { type: "number", minimum: 0, maximum: 1 },
    },
  },
  {
    $id: "Evict",
    type: "object",
    description: "what to throw out; nothing named: all that no volume needs",
    additionalProperties: false,
    properties: { blob: { type: "string", description: "id of a blob" }, bytes },
  },
  {
    $id: "Evicted",
    type: "object",
    description: "what came of it",
    additionalProperties: false,
    required: ["freedBytes"],
    properties: { freedBytes: bytes },
  },
];

type ById = { Params: { id: string } };

/** /v1/cache, and what is done with images and blobs */
export function addCacheRoutes(app: FastifyInstance, { cache }: Ullage): void {
  for (const schema of cacheSchemas) app.addSchema(schema);

  app.route({
    method: "GET",
    url: "/v1/cache",
    schema: {
      operationId: "getCache",
      summary: "How much the cache takes, and may take",
      response: { 200: ref("Cache"), ...problemResponses },
    },
    handler: () => cache.view(),
  });

  app.route<{ Body: CacheChange }>({
    method: "PATCH",
    url: "/v1/cache",
    schema: {
      operationId: "changeCache",
      summary: "Change how much the cache may take, until the process ends; the configuration file says it for good",
      body: ref("CacheChange"),
      response: { 200: ref("Cache"), ...problemResponses },
    },
    handler: (request) => cache.setLimits(request.body),
  });

  app.route<{ Body: EvictRequest }>({
    method: "POST",
    url: "/v1/cache/evict",
    schema: {
      operationId: "evict",
      summary: "Throw out what no volume needs, or one blob",
      body: ref("Evict"),
      response: { 200: ref("Evicted"), ...problemResponses },
    },
    handler: (request) => cache.evict(request.body),
  });

  for (const [method, pinned] of [
    ["POST", true],
    ["DELETE", false],
  ] as const) {
    app.route<ById>({
      method,
      url: "/v1/blobs/:id/pin",
      schema: {
        operationId: pinned ? "pinBlob" : "unpinBlob",
        summary: pinned ? "Keep a blob, whether a volume needs it or not" : "Keep it only while a volume needs it",
        params: byId("the blob's id"),
        response: { 200: ref("Blob"), ...problemResponses },
      },
      handler: (request) => cache.setPinned(request.params.id, pinned),
    });
  }

  app.route<{ Body: SourceRequest }>({
    method: "POST",
    url: "/v1/images",
    schema: {
      operationId: "pullImage",
      summary: "Fetch an image whole, before a volume is made from it",
      body: ref("VolumeSource"),
      response: {
        202: { ...ref("Job"), description: "it is being fetched; the job's result is the image" },
        ...problemResponses,
      },
    },
    handler: async (request, reply) => {
      const job = await cache.pull(request.body, request.caller.kind !== "unix");
      return reply.code(202).header("location", `/v1/jobs/${job.id}`).send(jobObject(job));
    },
  });

  app.route<ById>({
    method: "DELETE",
    url: "/v1/images/:id",
    schema: {
      operationId: "removeImage",
      summary: "Throw out every version of an image that no volume was made from",
      params: byId("the image's id"),
      response: { 204: { type: "null", description: "it is gone" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      await cache.removeImage(request.params.id);
      return reply.code(204).send();
    },
  });
}

function byId(meaning: string): object {
  return { type: "object", properties: { id: { type: "string", description: meaning } }, required: ["id"] };
}
