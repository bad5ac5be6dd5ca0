import type { FastifyInstance, FastifyRequest } from "fastify";
import type { Log } from "../daemon/log.ts";
import { describeCaller } from "./caller.ts";
import { loggable, loggablePath } from "./loggable.ts";

/*
 * The audit log: one line at level info for each change that was asked for, refused ones included, one for each disk that was
 * asked for to be downloaded, and one at level warn for each request that was refused for want of rights. What is refused for its rate is not logged: that bounds the log.
 *
 * Fields, which stay as they are: event ("change", "download" or "denied"), caller (`unix`, `token:NAME`, `loopback`, `nobody`),
 * address, method, path, name (the body's, when the path does not tell what is made), status, code (of the problem),
 * requestId, durationMs.
 */

declare module "fastify" {
  interface FastifyContextConfig {
    /** It only looks, but at what is worth a line in the audit log. */
    audited?: boolean;
  }
  interface FastifyRequest {
    /** Code of the problem that is answered; null for none. */
    problemCode: string | null;
    /** Monotonic milliseconds. */
    arrivedAt: number;
  }
}

const looks = new Set(["GET", "HEAD", "OPTIONS"]);

export function auditChanges(app: FastifyInstance, log: Log): void {
  app.decorateRequest("problemCode", null);
  app.decorateRequest("arrivedAt", 0);
  app.addHook("onRequest", async (request) => {
    request.arrivedAt = performance.now();
  });
  // When the answer is known, and not when it has arrived: a client may be gone by then.
  app.addHook("onSend", async (request, reply) => {
    const status = reply.statusCode;
    const denied = status === 401 || status === 403 || status === 421;
    const looked = looks.has(request.method);
    if (status === 429 || (!denied && looked && request.routeOptions.config.audited !== true)) return;
    const caller = describeCaller(request.caller);
    const address = request.caller.kind === "unix" ? "unix" : `${request.ip}:${request.raw.socket.remotePort}`;
    const who = address === caller ? caller : `${caller} from ${address}`;
    const path = loggablePath(request.url);
    const name = nameInBody(request);
    const code = request.problemCode;
    const what = `${request.method} ${path}${name === undefined ? "" : ` '${name}'`}`;
    const result = code === null ? String(status) : `${status} ${code}`;
    log(denied ? "warn" : "info", `${who}: ${what}: ${result} (request ${request.id})`, {
      event: denied ? "denied" : looked ? "download" : "change",
      caller,
      address,
      method: request.method,
      path,
      ...(name === undefined ? {} : { name }),
      status,
      ...(code === null ? {} : { code }),
      requestId: request.id,
      durationMs: Math.round(performance.now() - request.arrivedAt),
    });
  });
}

function nameInBody({ body }: FastifyRequest): string | undefined {
  const { name } = (body ?? {}) as { name?: unknown };
  return typeof name === "string" ? loggable(name).slice(0, 128) : undefined;
}
