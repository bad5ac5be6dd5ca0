import type { FastifyInstance } from "fastify";
import { checkNames } from "../daemon/health/health.ts";
import type { ApiContext } from "./route-module.ts";
import { problemResponses, ref } from "./schemas.ts";

const text = { type: "string" } as const;
const status = {
  enum: ["ok", "warn", "fail"],
  description: "warn: somebody should look at it; fail: something that users rely on does not work",
} as const;
const check = {
  name: { enum: checkNames },
  status,
  message: { type: ["string", "null"], description: "null: all is well" },
} as const;
const health = {
  status,
  checks: { type: "array", items: ref("HealthCheck") },
  warnings: { type: "array", items: ref("Warning"), description: "everything that the checks found" },
  version: text,
  pid: { type: "integer", minimum: 0 },
  dataDirectory: text,
  listeners: { type: "array", items: ref("Listener") },
} as const;

const schemas = [
  {
    $id: "HealthCheck",
    type: "object",
    description: "one thing that was looked at",
    additionalProperties: false,
    required: Object.keys(check),
    properties: check,
  },
  {
    $id: "Health",
    type: "object",
    description: "whether all is well; the status is the worst of the checks",
    additionalProperties: false,
    required: Object.keys(health),
    properties: health,
  },
];

/** GET /v1/health: 200, or 503 when something fails. */
export function addHealthRoutes(app: FastifyInstance, { ullage }: ApiContext): void {
  for (const schema of schemas) app.addSchema(schema);

  app.route({
    method: "GET",
    url: "/v1/health",
    config: { scope: "read" },
    schema: {
      operationId: "getHealth",
      summary: "Whether all is well",
      response: {
        200: ref("Health"),
        ...problemResponses,
        503: { ...ref("Health"), description: "something fails" },
      },
    },
    handler: async (_request, reply) => {
      const answer = await ullage.checkHealth();
      return reply.code(answer.status === "fail" ? 503 : 200).send(answer);
    },
  });
}
