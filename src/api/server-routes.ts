import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import { problemResponses, ref } from "./schemas.ts";

/** /v1/stats, /v1/space */
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

  app.route({
    method: "GET",
    url: "/v1/space",
    schema: {
      operationId: "getAllSpace",
      summary: "Where the bytes of the data directory are",
      response: { 200: ref("AllSpace"), ...problemResponses },
    },
    handler: () => ullage.space(),
  });
}
