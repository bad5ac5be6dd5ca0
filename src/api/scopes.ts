import type { FastifyInstance } from "fastify";
import { UllageError } from "../base/errors.ts";

/**
 * What a caller may do; each scope includes the ones before it.
 * - read: look at everything
 * - write: make, change and remove
 * - admin: hand out access, and accept the loss of data
 */
export type Scope = "read" | "write" | "admin";

export const scopes: readonly Scope[] = ["read", "write", "admin"];

/** What a route demands. `public`: nothing at all; only for files that hold no secret, such as the dashboard's. */
export type RouteScope = Scope | "public";

declare module "fastify" {
  interface FastifyContextConfig {
    /** Who may call the route. Default: read for GET, write for everything else. */
    scope?: RouteScope;
  }
}

/** Routes that demand more than their method tells. */
const demanding: Readonly<Record<string, RouteScope>> = { "POST /v1/volumes/:name/reopen": "admin" };

/** Gives every route that is added from now on its scope, and states it in the OpenAPI document. */
export function declareScopes(app: FastifyInstance): void {
  app.addHook("onRoute", (route) => {
    const method = String(route.method);
    const usual = method === "GET" || method === "HEAD" ? "read" : "write";
    const scope = route.config?.scope ?? demanding[`${method} ${route.url}`] ?? usual;
    route.config = { ...route.config, scope };
    if (scope !== "public") route.schema = { ...route.schema, security: [{ token: [scope] }] };
  });
}

/** @throws UllageError `forbidden` */
export function demandScope(granted: Scope, demanded: RouteScope): void {
  if (demanded === "public" || scopes.indexOf(granted) >= scopes.indexOf(demanded)) return;
  throw new UllageError("forbidden", `this takes a token with scope ${demanded}; this one has scope ${granted}`, {
    hint: `ask for one made with \`ullage token create NAME --scope ${demanded}\``,
  });
}
