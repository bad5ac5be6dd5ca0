import type { FastifyInstance } from "fastify";
import { maxTracedReads } from "../blob/boot-trace.ts";
import type { Ullage } from "../daemon/ullage.ts";
import { jobObject } from "./job-object.ts";
import { problemResponses, ref } from "./schemas.ts";

const bytes = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;

type ById = { Params: { id: string } };

const traceBody = {
  type: "object",
  description: "what was read first of an image",
  additionalProperties: false,
  required: ["imageBytes", "recordedAt", "reads"],
  properties: {
    imageBytes: { ...bytes, description: "of the disk" },
    recordedAt: { type: "string", format: "date-time" },
    reads: {
      type: "array",
      maxItems: maxTracedReads,
      description: "in this order: ms since the first one, offset, length",
      items: { type: "array", minItems: 3, maxItems: 3, items: bytes },
    },
  },
};

/** Many short rows. */
const maxTraceBytes = 4 * 1024 * 1024;

/** /v1/images/{id}/trace, and how one is made */
export function addTraceRoutes(app: FastifyInstance, ullage: Ullage): void {
  const { cache } = ullage;
  app.addSchema({ $id: "BootTrace", ...traceBody });

  app.route<{ Params: { name: string }; Body: { seconds: number } }>({
    method: "POST",
    url: "/v1/volumes/:name/trace",
    schema: {
      operationId: "recordTrace",
      summary: "Note what is read of the image from now on: disks made from it will fetch that first",
      params: { type: "object", properties: { name: { type: "string" } }, required: ["name"] },
      body: {
        type: "object",
        additionalProperties: false,
        required: ["seconds"],
        properties: { seconds: { type: "integer", minimum: 1, maximum: 3600, description: "for so long" } },
      },
      response: {
        200: {
          description: "it began",
          type: "object",
          additionalProperties: false,
          required: ["until"],
          properties: { until: { type: "string", format: "date-time" } },
        },
        ...problemResponses,
      },
    },
    handler: (request) => ullage.recordTrace(request.params.name, request.body.seconds),
  });

  app.route<ById>({
    method: "GET",
    url: "/v1/images/:id/trace",
    schema: {
      operationId: "getTrace",
      summary: "What was read first of an image's newest version",
      params: byId("the image's id"),
      response: { 200: ref("BootTrace"), ...problemResponses },
    },
    handler: (request) => cache.trace(request.params.id),
  });

  app.route<ById>({
    method: "POST",
    url: "/v1/images/:id/trace",
    bodyLimit: maxTraceBytes,
    schema: {
      operationId: "setTrace",
      summary: "Use a trace that was recorded elsewhere",
      params: byId("the image's id"),
      body: ref("BootTrace"),
      response: { 200: ref("BootTrace"), ...problemResponses },
    },
    handler: (request) => cache.setTrace(request.params.id, request.body),
  });

  app.route<ById>({
    method: "POST",
    url: "/v1/images/:id/trace/replay",
    schema: {
      operationId: "replayTrace",
      summary: "Fetch now what the trace names",
      params: byId("the image's id"),
      response: {
        202: { ...ref("Job"), description: "it is being fetched; the job's result is the image" },
        ...problemResponses,
      },
    },
    handler: async (request, reply) => {
      const job = await cache.replayTrace(request.params.id);
      return reply.code(202).header("location", `/v1/jobs/${job.id}`).send(jobObject(job));
    },
  });
}

function byId(meaning: string): object {
  return { type: "object", properties: { id: { type: "string", description: meaning } }, required: ["id"] };
}
