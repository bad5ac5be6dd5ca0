import { Readable } from "node:stream";
import type { FastifyInstance } from "fastify";
import { Metrics } from "../metrics/metrics.ts";
import type { ApiContext } from "./route-module.ts";
import { problemResponses } from "./schemas.ts";

/** GET /metrics, for Prometheus; and every request to the API is counted, and logged at level debug. */
export function addMetricsRoutes(app: FastifyInstance, { ullage, log }: ApiContext): void {
  const metrics = new Metrics();

  app.addHook("onResponse", async ({ id, method, routeOptions: { url: route = "unknown" } }, reply) => {
    const ms = reply.elapsedTime;
    metrics.apiRequestEnded(method, route, reply.statusCode, ms);
    log("debug", `${method} ${route}: ${reply.statusCode} after ${ms.toFixed(1)} ms (request ${id})`, {
      requestId: id,
      method,
      route,
      status: reply.statusCode,
      durationMs: Math.round(ms * 10) / 10,
    });
  });

  app.route({
    method: "GET",
    url: "/metrics",
    config: { scope: "read" },
    schema: {
      operationId: "getMetrics",
      summary: "Metrics, for Prometheus",
      response: {
        200: { description: "its text format", content: { "text/plain": { schema: { type: "string" } } } },
        ...problemResponses,
      },
    },
    handler: async (_request, reply) => {
      const text = metrics.text(await ullage.measure());
      return reply.type(metrics.contentType).send(Readable.from(text));
    },
  });
}
