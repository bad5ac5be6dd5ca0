import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { SourceLimitsView } from "../daemon/views.ts";
import { problemResponses, ref } from "./schemas.ts";

const limits = {
  bytesPerSecond: {
    type: ["integer", "null"],
    minimum: 1,
    maximum: Number.MAX_SAFE_INTEGER,
    description: "null: no limit",
  },
} as const;

const limitsSchema = {
  $id: "SourceLimits",
  type: "object",
  description: "what all sources of the host together may deliver; files of the host itself are not counted",
  additionalProperties: false,
  required: Object.keys(limits),
  properties: limits,
};

/** /v1/sources/limits */
export function addSourceRoutes(app: FastifyInstance, ullage: Ullage): void {
  app.addSchema(limitsSchema);
  const response = { 200: ref("SourceLimits"), ...problemResponses };
  app.route({
    method: "GET",
    url: "/v1/sources/limits",
    schema: { operationId: "getSourceLimits", summary: "How fast sources may be read", response },
    handler: () => ullage.sourceLimits(),
  });
  app.route<{ Body: SourceLimitsView }>({
    method: "PATCH",
    url: "/v1/sources/limits",
    config: { scope: "admin" },
    schema: {
      operationId: "changeSourceLimits",
      summary: "Change how fast sources may be read, at once and until the daemon ends",
      body: ref("SourceLimits"),
      response,
    },
    handler: (request) => ullage.sourceLimits(request.body),
  });
}
