import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { docsPage, type OpenApiDocument } from "./docs-page.ts";
import { readStaticFiles, type StaticFile } from "../dashboard/static-files.ts";

/** Nothing from elsewhere, nothing inline, in nobody's frame: a script that got into a page could not run or report. */
const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join("; ");

const pageHeaders = {
  "content-security-policy": contentSecurityPolicy,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache",
};

/**
 * The dashboard: a page at `/`, and its files below `/dashboard/`; and the API's description at `/docs`. They hold no
 * secrets; what the dashboard shows needs a token.
 */
export function addDashboardRoutes(app: FastifyInstance): void {
  let files: Map<string, StaticFile> | undefined;

  const send = (path: string, request: FastifyRequest, reply: FastifyReply): unknown => {
    files ??= readStaticFiles(); // on first use: most daemons are steered by other means
    const file = files.get(path);
    if (file === undefined) {
      reply.callNotFound();
      return reply;
    }
    reply.headers({ ...pageHeaders, etag: file.etag });
    if (request.headers["if-none-match"] === file.etag) return reply.code(304).send();
    return reply.type(file.type).send(file.body);
  };

  app.route({
    method: "GET",
    url: "/",
    schema: { hide: true },
    config: { scope: "public" },
    handler: (request, reply) => send("dashboard/index.html", request, reply),
  });
  app.route<{ Params: { "*": string } }>({
    method: "GET",
    url: "/dashboard/*",
    schema: { hide: true },
    config: { scope: "public" },
    handler: (request, reply) => send(`dashboard/${request.params["*"]}`, request, reply),
  });
  let docs: string | undefined;
  app.route({
    method: "GET",
    url: "/docs",
    schema: { hide: true },
    config: { scope: "public" },
    handler: (_request, reply) => {
      docs ??= docsPage(app.swagger() as unknown as OpenApiDocument);
      return reply.headers(pageHeaders).type("text/html; charset=utf-8").send(docs);
    },
  });
}
