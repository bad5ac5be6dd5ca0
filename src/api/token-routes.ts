import type { FastifyInstance } from "fastify";
import { namePattern } from "../catalog/names.ts";
import { idempotencyHeaders, requestKeyOf } from "./idempotency.ts";
import { problemResponses, ref } from "./schemas.ts";
import { scopes, type Scope } from "./scopes.ts";
import type { Tokens } from "./tokens.ts";

/** 100 years: what never ends can be said plainly. */
const maxLifeSeconds = 100 * 365 * 86_400;

const text = { type: "string" } as const;
const time = { type: "string", format: "date-time" } as const;
const name = { type: "string", pattern: namePattern } as const;
const scope = {
  enum: scopes,
  description: "read: look; write: and make, change, remove; admin: and tokens, and accepting the loss of data",
} as const;
const token = {
  id: text,
  name: text,
  scope,
  createdAt: time,
  expiresAt: { type: ["string", "null"], description: "null: never" },
  expired: { type: "boolean" },
  lastUsedAt: { type: ["string", "null"], description: "null: not since the daemon started" },
} as const;

const schemas = [
  {
    $id: "Token",
    type: "object",
    description: "what opens the API over TCP, without its secret",
    additionalProperties: false,
    required: Object.keys(token),
    properties: token,
  },
  {
    $id: "NewToken",
    type: "object",
    description: "a token with its secret, which is told this once",
    additionalProperties: false,
    required: [...Object.keys(token), "secret"],
    properties: { ...token, secret: { ...text, description: "for `Authorization: Bearer`; only its hash is kept" } },
  },
  {
    $id: "TokenCreate",
    type: "object",
    description: "a token to make",
    additionalProperties: false,
    required: ["name", "scope"],
    properties: {
      name,
      scope,
      expiresInSeconds: {
        type: ["integer", "null"],
        minimum: 1,
        maximum: maxLifeSeconds,
        description: "null, the default: it never expires",
      },
    },
  },
  {
    $id: "TokenList",
    type: "object",
    description: "all tokens, ordered by name",
    additionalProperties: false,
    required: ["tokens", "next"],
    properties: { tokens: { type: "array", items: ref("Token") }, next: { type: ["string", "null"] } },
  },
];

interface TokenCreate {
  name: string;
  scope: Scope;
  expiresInSeconds?: number | null;
}

/** /v1/tokens and what is below it: for admins only */
export function addTokenRoutes(app: FastifyInstance, tokens: Tokens): void {
  for (const schema of schemas) app.addSchema(schema);
  const config = { scope: "admin" } as const;

  app.route({
    method: "GET",
    url: "/v1/tokens",
    config,
    schema: {
      operationId: "listTokens",
      summary: "Who may use the API over TCP",
      response: { 200: ref("TokenList"), ...problemResponses },
    },
    handler: () => ({ tokens: tokens.list(), next: null }),
  });

  app.route<{ Body: TokenCreate }>({
    method: "POST",
    url: "/v1/tokens",
    config,
    schema: {
      operationId: "createToken",
      summary: "Make a token; its secret is in this answer and nowhere else",
      description: `A repeated request with the same \`Idempotency-Key\` makes no second token, and is refused with \`secret-told\`: the
secret is not kept, so that it can't be told again.`,
      headers: idempotencyHeaders("token"),
      body: ref("TokenCreate"),
      response: { 201: ref("NewToken"), ...problemResponses },
    },
    handler: async (request, reply) => {
      const { body } = request;
      const made = await tokens.create(body.name, body.scope, body.expiresInSeconds ?? null, requestKeyOf(request));
      return reply.code(201).send({ ...made.token, secret: made.secret });
    },
  });

  app.route<{ Params: { name: string } }>({
    method: "DELETE",
    url: "/v1/tokens/:name",
    config,
    schema: {
      operationId: "removeToken",
      summary: "Remove a token: it opens nothing any more",
      params: { type: "object", properties: { name: text }, required: ["name"] },
      response: { 204: { type: "null", description: "it is void" }, ...problemResponses },
    },
    handler: async (request, reply) => {
      await tokens.remove(request.params.name);
      return reply.code(204).send();
    },
  });
}
