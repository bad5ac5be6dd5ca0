import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import { problemResponses, ref } from "./schemas.ts";

const count = { type: "integer", minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;
const bytes = { ...count, description: "bytes" } as const;

const traffic = {
  name: { type: "string", description: "of the volume" },
  reads: count,
  writes: count,
  flushes: count,
  requests: { ...count, description: "operations of all kinds" },
  readBytes: bytes,
  writtenBytes: bytes,
} as const;

const trafficSchemas = [
  {
    $id: "VolumeTraffic",
    type: "object",
    description: "what clients did with a volume and its snapshots, since the daemon started",
    additionalProperties: false,
    required: Object.keys(traffic),
    properties: traffic,
  },
  {
    $id: "TrafficList",
    type: "object",
    description: "the traffic of volumes that had any",
    additionalProperties: false,
    required: ["traffic", "next"],
    properties: { traffic: { type: "array", items: ref("VolumeTraffic") }, next: { type: ["string", "null"] } },
  },
];

/** /v1/traffic */
export function addTrafficRoutes(app: FastifyInstance, ullage: Ullage): void {
  for (const schema of trafficSchemas) app.addSchema(schema);
  app.route({
    method: "GET",
    url: "/v1/traffic",
    schema: {
      operationId: "getTraffic",
      summary: "Counters of what clients did with volumes; ask twice for rates",
      response: { 200: ref("TrafficList"), ...problemResponses },
    },
    handler: () => ({ traffic: ullage.traffic(), next: null }),
  });
}
