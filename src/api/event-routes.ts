import type { FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import { EventStreams } from "./event-stream.ts";
import { problemResponses, ref } from "./schemas.ts";

/** What the data of events is, beside Volume, Snapshot, Export, Job and Warning. */
const eventSchemas = [
  {
    $id: "ConnectionEvent",
    type: "object",
    description: "data of `connection-opened` and `connection-closed`",
    additionalProperties: false,
    required: ["export", "connection"],
    properties: { export: { type: "string", description: "name of the export" }, connection: ref("Connection") },
  },
  {
    $id: "ResetEvent",
    type: "object",
    description: "data of `reset`",
    additionalProperties: false,
    required: ["reason"],
    properties: { reason: { type: "string" } },
  },
  {
    $id: "ClosedEvent",
    type: "object",
    description: "data of `closed`",
    additionalProperties: false,
    required: ["code", "detail"],
    properties: { code: { type: "string" }, detail: { type: "string" }, hint: { type: "string" } },
  },
];

const description = `Server-sent events. Each has an id, a name, and as data the object as it is afterwards, in JSON:

| event | data | when |
| --- | --- | --- |
| \`volume-created\` | Volume | it is in lists from now on, perhaps still \`creating\` |
| \`volume-changed\` | Volume | its state, name, size, settings, connections, or the state of its hydration, or what is damaged at its source |
| \`volume-removed\` | Volume | it is not in lists any more |
| \`hydration\` | Volume | more of it is here; twice a second at most |
| \`snapshot-created\`, \`snapshot-removed\` | Snapshot | one was taken or removed; those of a removed volume go with it |
| \`export-added\`, \`export-removed\` | Export | a name was added or removed; those of a removed volume or snapshot go with it |
| \`connection-opened\`, \`connection-closed\` | ConnectionEvent | a client came or went |
| \`job\` | Job | its state, or its progress, the latter twice a second at most |
| \`space-reclaimed\` | Reclaimed | blocks that nothing needed any more were freed |
| \`warning\` | Warning | something that an operator should know |
| \`reset\` | ResetEvent | events were missed: ask for the objects anew, then go on listening |
| \`closed\` | ClosedEvent | the token expired or was removed; the stream ends |

A client that comes back with the last id in \`Last-Event-ID\` gets what it missed, or a \`reset\` when that is not kept any
more. To know everything, listen first and ask for the objects then. A client that does not read is cut off.`;

/** /v1/events */
export function addEventRoutes(app: FastifyInstance, { events }: Ullage): void {
  for (const schema of eventSchemas) app.addSchema(schema);
  const streams = new EventStreams(events);

  app.route<{ Headers: { "last-event-id"?: string } }>({
    method: "GET",
    url: "/v1/events",
    exposeHeadRoute: false,
    schema: {
      operationId: "listenToEvents",
      summary: "What happens, as it happens",
      description,
      headers: {
        type: "object",
        properties: {
          "last-event-id": { type: "string", maxLength: 64, description: "id of the last event received" },
        },
      },
      response: {
        200: { description: "events without end", content: { "text/event-stream": { schema: { type: "string" } } } },
        ...problemResponses,
      },
    },
    handler: (request, reply) =>
      reply
        .header("content-type", "text/event-stream; charset=utf-8")
        .header("cache-control", "no-store")
        .header("x-accel-buffering", "no") // nginx would keep events until it has a bufferful
        .send(streams.open(request.headers["last-event-id"], request.revoked)),
  });
}
