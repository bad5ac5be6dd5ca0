import swagger from "@fastify/swagger";
import Fastify, { type FastifyInstance } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { Log } from "../daemon/log.ts";
import { packageVersion } from "../daemon/version.ts";
import type { Caller } from "./caller.ts";
import { problem, problemContentType, problemOf } from "./problems.ts";
import { schemas } from "./schemas.ts";
import { declareScopes, demandScope } from "./scopes.ts";
import { addServerRoutes } from "./server-routes.ts";
import { addSnapshotRoutes } from "./snapshot-routes.ts";
import { addVolumeRoutes } from "./volume-routes.ts";

/** Requests carry small objects only; nothing streams through here. */
const maxBodyBytes = 256 * 1024;

/** What route modules are given besides the app. */
export interface ApiContext {
  ullage: Ullage;
  log: Log;
}

/**
 * Adds routes to the app. Who may call a route is its `config.scope` (scopes.ts; read for GET, write for changes when it
 * says nothing); who calls is `request.caller` (caller.ts).
 */
export type RouteModule = (app: FastifyInstance, context: ApiContext) => void | Promise<void>;

/** Everything that the API offers, in the order of the OpenAPI document. */
const routeModules: readonly RouteModule[] = [
  (app, { ullage }) => addVolumeRoutes(app, ullage),
  (app, { ullage }) => addSnapshotRoutes(app, ullage),
  (app, { ullage }) => addServerRoutes(app, ullage),
];

/** The REST API as a request handler (`app.routing`), ready to be put on listeners. */
export async function buildApi(ullage: Ullage, log: Log): Promise<FastifyInstance> {
  const app = Fastify({
    logger: false,
    bodyLimit: maxBodyBytes,
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    schemaErrorFormatter: (errors, part) => new Error(describeInvalid(errors[0], part)),
    routerOptions: { querystringParser: parseQuery },
  });
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Ullage",
        version: packageVersion,
        description: "Writable disks from any image, at once. Errors are problem documents with a stable `code`.",
        license: { name: "Apache-2.0", identifier: "Apache-2.0" },
      },
      components: {
        securitySchemes: { token: { type: "http", scheme: "bearer", description: "over TCP; unix sockets need none" } },
      },
    },
    refResolver: { buildLocalReference: (schema) => schema.$id as string },
  });
  for (const schema of schemas) app.addSchema(schema);

  app.setErrorHandler((error, request, reply) => {
    const answer = problemOf(error);
    if (answer.status >= 500) log("error", `${request.method} ${request.url}: ${answer.detail}`);
    return reply.code(answer.status).type(problemContentType).send(answer);
  });
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?")[0];
    const answer = problem(404, "no-such-path", `there is no ${request.method} ${path}`, "GET /openapi.json lists all");
    return reply.code(404).type(problemContentType).send(answer);
  });

  declareScopes(app);
  app.decorateRequest<Caller>("caller", { getter: () => ({ kind: "unix", scope: "admin" }) });
  app.addHook("onRequest", async ({ caller, routeOptions }) => {
    if (caller.kind !== "nobody") demandScope(caller.scope, routeOptions.config.scope ?? "read");
  });

  for (const add of routeModules) await add(app, { ullage, log });
  app.get("/openapi.json", { schema: { hide: true } }, () => app.swagger());
  await app.ready();
  return app;
}

interface Invalid {
  instancePath: string;
  params: Record<string, unknown>;
  message?: string;
}

/** `body: there is no key 'colour'`, `body/name must match …` */
function describeInvalid(error: Invalid | undefined, part: string): string {
  if (error === undefined) return `${part} is not valid`;
  const where = `${part}${error.instancePath}`;
  const unknown = error.params["additionalProperty"];
  return typeof unknown === "string" ? `${where}: there is no key '${unknown}'` : `${where} ${error.message}`;
}

/** `limit=10&force=true` as numbers and booleans, since nothing is coerced: a body must have the right types already. */
function parseQuery(query: string): Record<string, unknown> {
  const typed = (value: string): unknown => {
    if (/^(0|[1-9]\d{0,15})$/.test(value)) return Number(value);
    return value === "true" || value === "false" ? value === "true" : value;
  };
  return Object.fromEntries([...new URLSearchParams(query)].map(([key, value]) => [key, typed(value)]));
}
