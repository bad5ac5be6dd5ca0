import swagger from "@fastify/swagger";
import Fastify, { type FastifyInstance, type FastifyReply } from "fastify";
import type { Ullage } from "../daemon/ullage.ts";
import type { Log } from "../daemon/log.ts";
import { packageVersion } from "../daemon/version.ts";
import { auditChanges } from "./audit.ts";
import { guardRoutes } from "./auth.ts";
import { namePattern, nameRule } from "../catalog/names.ts";
import { addCacheRoutes } from "./cache-routes.ts";
import { addContentRoutes } from "./content-routes.ts";
import { addDashboardRoutes } from "./dashboard-routes.ts";
import { addEventRoutes } from "./event-routes.ts";
import { addExportRoutes } from "./export-routes.ts";
import { addHealthRoutes } from "./health-routes.ts";
import { bindIdempotencyKeys } from "./idempotency.ts";
import { addImageRoutes } from "./image-routes.ts";
import { addJobRoutes } from "./job-routes.ts";
import { loggablePath } from "./loggable.ts";
import { addMetricsRoutes } from "./metrics-routes.ts";
import { OpenCalls } from "./open-calls.ts";
import { problem, problemContentType, problemOf } from "./problems.ts";
import { defaultRateLimits, RateLimiter, type RateLimits } from "./rate-limit.ts";
import { requestIdOf } from "./request-id.ts";
import type { RouteModule } from "./route-module.ts";
import { schemas } from "./schemas.ts";
import { declareScopes } from "./scopes.ts";
import { lazySerializers } from "./serializers.ts";
import { addServerRoutes } from "./server-routes.ts";
import { addSourceRoutes } from "./source-routes.ts";
import { addSnapshotRoutes } from "./snapshot-routes.ts";
import { defaultTransferLimits, limitTransfers, type TransferLimits } from "./time-limits.ts";
import { addTokenRoutes } from "./token-routes.ts";
import { addTraceRoutes } from "./trace-routes.ts";
import { addTrafficRoutes } from "./traffic-routes.ts";
import { Tokens } from "./tokens.ts";
import { addVolumeRoutes } from "./volume-routes.ts";

/** Requests carry small objects; what streams says so (content-routes.ts). */
const maxBodyBytes = 256 * 1024;

/** Longer than any name: what is too long is not found, or refused by what checks it. */
const maxParameterLength = 512;

const description = `Writable disks from any image, at once. Errors are problem documents (RFC 9457) with a stable \`code\`.

Over a unix socket everything is allowed; over TCP a request carries a token, \`Authorization: Bearer TOKEN\`, and the
security of each operation names the scope that it takes: read, write, which includes read, or admin, which includes both.

Creating is idempotent under \`Idempotency-Key\`: a request that is repeated with the same key gets the same thing, another
request with that key is refused. Keys belong to the caller: the same key of another token is another key.

A request is named by its header \`x-request-id\` (at most 64 letters, digits, '.', '_' and '-'), or gets a name; the answer
and the log carry it.`;

export interface ApiOptions {
  /** Default: those of the data directory. */
  tokens?: Tokens;
  /** Further names that the server goes by over TCP, in lower case. */
  hostNames?: readonly string[];
  rateLimits?: RateLimits;
  transferLimits?: TransferLimits;
}

/** Everything that the API offers, in the order of the OpenAPI document. */
const routeModules: readonly RouteModule[] = [
  (app, { ullage }) => addVolumeRoutes(app, ullage),
  (app, { ullage }) => addSnapshotRoutes(app, ullage),
  addContentRoutes,
  (app, { ullage }) => addExportRoutes(app, ullage),
  (app, { ullage }) => addImageRoutes(app, ullage),
  (app, { ullage }) => addSourceRoutes(app, ullage),
  (app, { ullage }) => addServerRoutes(app, ullage),
  (app, { ullage }) => addTrafficRoutes(app, ullage),
  (app, { ullage }) => addCacheRoutes(app, ullage),
  (app, { ullage }) => addTraceRoutes(app, ullage),
  (app, { ullage }) => addJobRoutes(app, ullage),
  (app, { ullage }) => addEventRoutes(app, ullage),
  addHealthRoutes,
  addMetricsRoutes,
  (app, { tokens }) => addTokenRoutes(app, tokens),
  (app) => addDashboardRoutes(app),
];

/** The REST API as a request handler (`app.routing`), ready to be put on listeners. */
export async function buildApi(ullage: Ullage, log: Log, options: ApiOptions = {}): Promise<FastifyInstance> {
  const tokens = options.tokens ?? (await Tokens.open(ullage.health().dataDirectory));
  const app = Fastify({
    logger: false,
    genReqId: requestIdOf,
    frameworkErrors: (error, _request, reply: FastifyReply) => {
      const answer = problemOf(error);
      void reply.code(answer.status).type(problemContentType).send(JSON.stringify(answer));
    },
    bodyLimit: maxBodyBytes,
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    schemaErrorFormatter: (errors, part) => new Error(describeInvalid(errors[0], part)),
    schemaController: { compilersFactory: { buildSerializer: lazySerializers } },
    routerOptions: { maxParamLength: maxParameterLength },
  });
  app.removeContentTypeParser("text/plain"); // bodies are JSON, and say so
  readQueriesBySchema(app);
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Ullage",
        version: packageVersion,
        description,
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
    const { code } = answer;
    if (answer.status >= 500) {
      const what = `${request.method} ${loggablePath(request.url)}: ${answer.detail} (request ${request.id})`;
      log("error", what, { requestId: request.id, code });
    }
    request.problemCode = code;
    return reply.code(answer.status).type(problemContentType).send(answer);
  });
  const methodsOf = methodsByPath(app);
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split("?")[0];
    const methods = methodsOf(path).join(", ");
    if (methods !== "") reply.header("allow", methods);
    const answer =
      methods === ""
        ? problem(404, "no-such-path", `there is no ${request.method} ${path}`, "GET /openapi.json lists all")
        : problem(405, "wrong-method", `${path} does not take ${request.method}`, `it takes ${methods}`);
    request.problemCode = answer.code;
    return reply.code(answer.status).type(problemContentType).send(answer);
  });

  declareScopes(app);
  app.addHook("onRequest", async (request, reply) => {
    reply.header("x-request-id", request.id);
  });
  auditChanges(app, log);
  const transfers = options.transferLimits ?? defaultTransferLimits;
  limitTransfers(app, transfers);
  guardRoutes(app, {
    tokens,
    limiter: await RateLimiter.create(app, options.rateLimits ?? defaultRateLimits),
    openCalls: new OpenCalls(tokens),
    hostNames: options.hostNames ?? [],
  });
  bindIdempotencyKeys(app);

  for (const add of routeModules) await add(app, { ullage, tokens, log, transfers });
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
  if (typeof unknown === "string") return `${where}: there is no key '${unknown}'`;
  if (error.params["pattern"] === namePattern) return `${where}: ${nameRule}`;
  const allowed = error.params["allowedValues"];
  return `${where} ${Array.isArray(allowed) ? `must be ${allowed.join(" or ")}` : error.message}`;
}

/**
 * Text of a query becomes a number or a boolean where the route's schema says so and it is written like one; nothing else
 * is coerced: a body must have the right types already. What is given twice counts as it was given last.
 */
function readQueriesBySchema(app: FastifyInstance): void {
  app.addHook("preValidation", async (request) => {
    const schema = request.routeOptions.schema?.querystring as
      { properties: Record<string, { type: string }> } | undefined;
    if (schema === undefined) return;
    const read = ([key, given]: [string, unknown]): [string, unknown] => {
      const text: unknown = Array.isArray(given) ? given.at(-1) : given;
      const type = Object.hasOwn(schema.properties, key) ? schema.properties[key].type : undefined;
      if (type === "integer" && /^(0|[1-9]\d{0,15})$/.test(String(text))) return [key, Number(text)];
      if (type === "boolean" && (text === "true" || text === "false")) return [key, text === "true"];
      return [key, text];
    };
    request.query = Object.fromEntries(Object.entries(request.query as object).map(read));
  });
}

/** @returns a function that tells which methods a path takes; none for one that does not exist, or stands for files */
function methodsByPath(app: FastifyInstance): (path: string) => string[] {
  const routes: { path: RegExp; methods: string[] }[] = [];
  app.addHook("onRoute", ({ url, method }) => {
    if (url.includes("*")) return;
    const pattern = url.replaceAll(".", "\\.").replaceAll(/:\w+/g, "[^/]+");
    routes.push({ path: new RegExp(`^${pattern}$`), methods: [method].flat() });
  });
  return (path) => [...new Set(routes.flatMap((route) => (route.path.test(path) ? route.methods : [])))];
}
