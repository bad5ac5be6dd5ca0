import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { UllageError } from "../base/errors.ts";
import type { Caller } from "./caller.ts";
import { accessOf } from "./connection-access.ts";
import { demandOwnHost } from "./host-check.ts";
import type { OpenCalls } from "./open-calls.ts";
import type { RateLimiter } from "./rate-limit.ts";
import { demandScope, type RouteScope } from "./scopes.ts";
import { expired, type Tokens } from "./tokens.ts";

/*
 * The gate in front of every route, and of paths that do not exist: who calls, and may they? In this order, so that each
 * step is as cheap as what it lets through: the Host header, the token, the rate, the scope.
 */

const nobody: Caller = { kind: "nobody" };

export interface Gate {
  tokens: Tokens;
  limiter: RateLimiter;
  openCalls: OpenCalls;
  /** further names that this server goes by, in lower case */
  hostNames: readonly string[];
}

export function guardRoutes(app: FastifyInstance, gate: Gate): void {
  app.decorateRequest("caller", null!); // the hook sets it before anything looks
  app.decorateRequest("revoked", undefined);
  app.addHook("onRequest", async (request, reply) => {
    request.caller = nobody;
    const demanded: RouteScope = request.routeOptions.config.scope ?? "read";
    reply.header("x-content-type-options", "nosniff");
    if (demanded !== "public") reply.header("cache-control", "no-store");
    try {
      await admit(request, reply, gate, demanded);
    } catch (error) {
      // The rest of the request is not waited for.
      reply.header("connection", "close");
      throw error;
    }
  });
}

async function admit(request: FastifyRequest, reply: FastifyReply, gate: Gate, demanded: RouteScope): Promise<void> {
  const access = accessOf(request.raw.socket);
  if (access.kind === "unix") {
    request.caller = { kind: "unix", scope: "admin" };
    return;
  }
  try {
    demandOwnHost(request.headers, gate.hostNames);
  } catch (error) {
    await gate.limiter.countStranger(request, reply);
    throw error;
  }
  if (access.auth === "off") {
    request.caller = { kind: "loopback", scope: "admin" };
    await gate.limiter.countRequest(request, reply);
    return;
  }
  const found = callerOf(request, gate.tokens);
  if (!(found instanceof UllageError)) {
    request.caller = found;
    gate.openCalls.note(request, reply, found);
  }
  await gate.limiter.countRequest(request, reply);
  if (demanded === "public") return;
  if (found instanceof UllageError) {
    await gate.limiter.countStranger(request, reply);
    reply.header("www-authenticate", challenge(found));
    throw found;
  }
  try {
    demandScope(found.scope, demanded);
  } catch (error) {
    reply.header("www-authenticate", `Bearer realm="ullage", error="insufficient_scope", scope="${demanded}"`);
    throw error;
  }
}

/** @returns the caller, or why there is none: `no-token`, `bad-token`, `expired-token` */
function callerOf({ headers }: FastifyRequest, tokens: Tokens): (Caller & { kind: "token" }) | UllageError {
  const { authorization } = headers;
  if (authorization === undefined) {
    return new UllageError("no-token", "this takes a token, in a header `Authorization: Bearer TOKEN`", {
      hint: "make one with `ullage token create NAME --scope read` on the daemon's machine",
    });
  }
  const presented = /^bearer +(\S+)$/i.exec(authorization)?.[1];
  const checked = presented === undefined ? undefined : tokens.check(presented);
  if (checked === undefined) {
    return new UllageError("bad-token", "the token is not one of this server's", {
      hint: "`ullage token ls` shows which there are; a lost one is replaced by removing it and making another",
    });
  }
  const { name, scope, id } = checked.token;
  return checked.kind === "valid" ? { kind: "token", name, scope, id } : expired(checked.token);
}

/** RFC 6750, section 3: without a token no error is named. */
function challenge({ code, message }: UllageError): string {
  if (code === "no-token") return 'Bearer realm="ullage"';
  return `Bearer realm="ullage", error="invalid_token", error_description="${message.replaceAll(/["\\]/g, "'")}"`;
}
