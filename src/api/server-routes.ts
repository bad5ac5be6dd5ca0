import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import { problemResponses, ref } from "./schemas.ts";

/** /v1/stats */
export function addServerRoutes(app: FastifyInstance, ullage: Ullage): void {
  app.route({
    method: "GET",
    url: "/v1/stats",
    schema: {
      operationId: "getStats",
      summary: "Figures of the process",
      response: { 200: ref("Stats"), ...problemResponses },
    },
    handler: () => ullage.stats(),
  });
}
