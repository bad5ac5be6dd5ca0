import type { Scope } from "./scopes.ts";

/**
 * Who sent a request.
 * - unix: over a unix socket, whose file's mode decides who may; everything is allowed, any source included
 * - token: over TCP, with a token
 * - loopback: over TCP from this machine, where tokens were switched off
 * - nobody: over TCP without a token; gets no further than public routes
 */
export type Caller =
  | { kind: "unix"; scope: "admin" }
  | { kind: "token"; scope: Scope; name: string; id: string }
  | { kind: "loopback"; scope: "admin" }
  | { kind: "nobody" };

declare module "fastify" {
  interface FastifyRequest {
    /** Known from the first hook of a route on. */
    caller: Caller;
  }
}

/** For logs: `unix`, `token:NAME`, `loopback`, `nobody`. */
export function describeCaller(caller: Caller): string {
  return caller.kind === "token" ? `token:${caller.name}` : caller.kind;
}
