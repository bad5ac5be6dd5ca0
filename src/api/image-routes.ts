import type { FastifyInstance } from "fastify";
import { imagePlace } from "../daemon/cache/images.ts";
import type { Ullage } from "../daemon/ullage.ts";
import { cursor, nextCursor, page, placeOf } from "./paging.ts";
import { problemResponses, ref } from "./schemas.ts";

/** Of what is not in use files are read: a page is not too long. */
const maxPage = 200;

const text = { type: "string" } as const;
const nullableText = { type: ["string", "null"] } as const;
const time = { type: "string", format: "date-time" } as const;
const bytes = (description: string): object => ({
  type: "integer",
  minimum: 0,
  maximum: Number.MAX_SAFE_INTEGER,
  description,
});
const names = (description: string): object => ({ type: "array", items: text, description });

const common = {
  source: { ...text, description: "without the query of an address, which may be secret" },
  format: text,
  identity: { ...nullableText, description: "by what a change of the source is noticed; null: by nothing" },
  pinned: { type: "boolean", description: "a change of the source can't go unnoticed" },
  verified: {
    type: ["boolean", "null"],
    description: "all of it was compared with the digest that pins it; null: there is no digest of what the cache has",
  },
  size: bytes("bytes of the image"),
};

const image = {
  id: { ...text, description: "by source and format: the same for all versions" },
  ...common,
  blobs: names("ids of its versions in the cache, the newest first"),
  volumes: names("volumes that were made from any version"),
  readyBytes: bytes("bytes of all versions that are here"),
  diskBytes: bytes("bytes of all versions on disk"),
  createdAt: { ...time, description: "when the newest version was first asked for" },
};

const blob = {
  id: text,
  image: { ...text, description: "id of its image" },
  ...common,
  cache: {
    enum: ["shared", "none"],
    description: "none: it is read through for volumes that are made so, and nothing of it is kept on disk",
  },
  unitBytes: bytes("what is fetched at least"),
  readyBytes: bytes("bytes of the image that are here"),
  diskBytes: bytes("bytes of the cache file on disk"),
  foregroundBytes: bytes("bytes received because somebody waited for them, since it was made"),
  readaheadBytes: bytes("bytes received because a reader would probably want them"),
  backgroundBytes: bytes("bytes received to fill it"),
  users: { type: "integer", minimum: 0, description: "open volumes and snapshots that read it; 0: it is closed" },
  volumes: names("volumes that were made from it, clones included"),
  detached: names("volumes that are detached from the source: they can't do without it"),
  kept: { type: "boolean", description: "somebody wants it to be kept, whether a volume needs it or not" },
  usedAt: { ...time, type: ["string", "null"], description: "when it was opened or closed last; null: unknown" },
  sourceState: ref("SourceState"),
  createdAt: time,
};

const sourceState = {
  state: {
    enum: ["notNeeded", "notAsked", "ok", "failing"],
    description: "notNeeded: everything is here; notAsked: not since it was opened; else what the last request came to",
  },
  reason: { ...nullableText, description: "what failed" },
  at: { ...nullableText, description: "when it failed" },
};

const imageSchemas = [
  objectOf("SourceState", "how the source of a blob is", sourceState),
  objectOf("Blob", "one version of an image in the local cache, which all volumes made from it share", blob),
  objectOf("BlobList", "a page of blobs, ordered by id", {
    blobs: { type: "array", items: ref("Blob") },
    next: nullableText,
  }),
  objectOf(
    "Image",
    "a source that something was fetched from; what differs between versions is that of the newest",
    image,
  ),
  objectOf("ImageList", "a page of images, ordered by source", {
    images: { type: "array", items: ref("Image") },
    next: nullableText,
  }),
];

type Paged = { Querystring: { cursor?: string; limit: number } };
type ById = { Params: { id: string } };

/** /v1/images and /v1/blobs */
export function addImageRoutes(app: FastifyInstance, ullage: Ullage): void {
  for (const schema of imageSchemas) app.addSchema(schema);

  app.route<Paged>({
    method: "GET",
    url: "/v1/images",
    schema: {
      operationId: "listImages",
      summary: "What volumes were made from, ordered by source",
      querystring: page(maxPage, { cursor }),
      response: { 200: ref("ImageList"), ...problemResponses },
    },
    handler: async (request) => {
      const { limit } = request.query;
      const images = await ullage.listImages(placeOf(request.query.cursor), limit);
      return { images, next: nextCursor(images, limit, imagePlace) };
    },
  });

  app.route<ById>({
    method: "GET",
    url: "/v1/images/:id",
    schema: {
      operationId: "getImage",
      summary: "One image",
      params: byId("the image's id"),
      response: { 200: ref("Image"), ...problemResponses },
    },
    handler: (request) => ullage.showImage(request.params.id),
  });

  app.route<Paged>({
    method: "GET",
    url: "/v1/blobs",
    schema: {
      operationId: "listBlobs",
      summary: "What is in the cache, ordered by id",
      querystring: page(maxPage, { cursor }),
      response: { 200: ref("BlobList"), ...problemResponses },
    },
    handler: async (request) => {
      const { limit } = request.query;
      const blobs = await ullage.listBlobs(placeOf(request.query.cursor), limit);
      return { blobs, next: nextCursor(blobs, limit, ({ id }) => id) };
    },
  });

  app.route<ById>({
    method: "GET",
    url: "/v1/blobs/:id",
    schema: {
      operationId: "getBlob",
      summary: "One blob",
      params: byId("the blob's id"),
      response: { 200: ref("Blob"), ...problemResponses },
    },
    handler: (request) => ullage.showBlob(request.params.id),
  });
}

function objectOf(id: string, description: string, properties: Record<string, object>): object {
  return {
    $id: id,
    type: "object",
    description,
    additionalProperties: false,
    required: Object.keys(properties),
    properties,
  };
}

function byId(meaning: string): object {
  return { type: "object", properties: { id: { type: "string", description: meaning } }, required: ["id"] };
}
