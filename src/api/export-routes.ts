import type { FastifyInstance } from "fastify";
import { namePattern } from "../catalog/names.ts";
import type { Ullage } from "../daemon/ullage.ts";
import type { AddExportRequest, ExportView } from "../daemon/views.ts";
import { idempotencyHeaders, requestKeyOf } from "./idempotency.ts";
import { cursor, nextCursor, page, placeOf } from "./paging.ts";
import { problemResponses, ref } from "./schemas.ts";

const maxPage = 1000;
const text = { type: "string" } as const;
const nullableText = { type: ["string", "null"] } as const;
const description = { ...nullableText, maxLength: 256, description: "for people; NBD clients that list names see it" };

const view = {
  id: { ...text, description: "of the volume or snapshot when the name is its own" },
  name: text,
  protocol: { enum: ["nbd"] },
  volume: { ...text, description: "name of the volume that it is, or that it is a snapshot of" },
  snapshot: { ...nullableText, description: "null: the volume itself" },
  readOnly: { type: "boolean" },
  description,
  implicit: { type: "boolean", description: "the own name of the volume or snapshot: it comes and goes with it" },
  uris: { type: "array", items: text, description: "where clients reach it: one for each listener" },
  createdAt: { type: "string", format: "date-time" },
};

const exportSchemas = [
  {
    $id: "Export",
    type: "object",
    description: "a name under which a disk is exported",
    additionalProperties: false,
    required: Object.keys(view),
    properties: view,
  },
  {
    $id: "ExportList",
    type: "object",
    description: "a page of exports, ordered by name",
    additionalProperties: false,
    required: ["exports", "next"],
    properties: { exports: { type: "array", items: ref("Export") }, next: nullableText },
  },
  {
    $id: "ExportAdd",
    type: "object",
    description: "a further name for a volume or a snapshot; it follows a rename, and goes with what it names",
    additionalProperties: false,
    required: ["name", "target"],
    properties: {
      name: { type: "string", pattern: namePattern, description: "no volume may have it" },
      target: { type: "string", maxLength: 257, description: "VOLUME or VOLUME@SNAPSHOT" },
      readOnly: { type: "boolean", description: "refuse writes that come under this name; snapshots do anyway" },
      description,
    },
  },
];

type Named = { Params: { name: string } };
type Paged = { Querystring: { cursor?: string; limit: number } };

/** /v1/exports, and those of a volume */
export function addExportRoutes(app: FastifyInstance, ullage: Ullage): void {
  for (const schema of exportSchemas) app.addSchema(schema);

  const list = (query: Paged["Querystring"], volume?: string): { exports: ExportView[]; next: string | null } => {
    const { limit } = query;
    const exports = ullage.listExports(placeOf(query.cursor), limit, volume);
    return { exports, next: nextCursor(exports, limit, ({ name }) => name) };
  };

  app.route<Paged>({
    method: "GET",
    url: "/v1/exports",
    schema: {
      operationId: "listExports",
      summary: "Exports, ordered by name: the own names of volumes and snapshots, and those that were added",
      querystring: page(maxPage, { cursor }),
      response: { 200: ref("ExportList"), ...problemResponses },
    },
    handler: (request) => list(request.query),
  });

  app.route<{ Body: AddExportRequest }>({
    method: "POST",
    url: "/v1/exports",
    schema: {
      operationId: "addExport",
      summary: "Export a volume or a snapshot under a further name, perhaps read-only",
      headers: idempotencyHeaders("export"),
      body: ref("ExportAdd"),
      response: { 201: { ...ref("Export"), description: "clients can use it" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      const added = await ullage.addExport(request.body, requestKeyOf(request));
      return reply.code(201).header("location", `/v1/exports/${added.name}`).send(added);
    },
  });

  app.route<Named>({
    method: "GET",
    url: "/v1/exports/:name",
    schema: {
      operationId: "getExport",
      summary: "One export",
      params: byName("the export's name"),
      response: { 200: ref("Export"), ...problemResponses },
    },
    handler: (request) => ullage.showExport(request.params.name),
  });

  app.route<Named>({
    method: "DELETE",
    url: "/v1/exports/:name",
    schema: {
      operationId: "removeExport",
      summary: "Remove a name that was added; connections that are open stay",
      params: byName("the export's name"),
      response: { 204: { type: "null", description: "it is gone" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      await ullage.removeExport(request.params.name);
      return reply.code(204).send();
    },
  });

  app.route<Named & Paged>({
    method: "GET",
    url: "/v1/volumes/:name/exports",
    schema: {
      operationId: "listVolumeExports",
      summary: "Exports of a volume and its snapshots",
      params: byName("the volume's name"),
      querystring: page(maxPage, { cursor }),
      response: { 200: ref("ExportList"), ...problemResponses },
    },
    handler: (request) => list(request.query, request.params.name),
  });
}

function byName(meaning: string): object {
  return { type: "object", properties: { name: { type: "string", description: meaning } }, required: ["name"] };
}
