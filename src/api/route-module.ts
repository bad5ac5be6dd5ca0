import type { FastifyInstance } from "fastify";
import type { Log } from "../daemon/log.ts";
import type { Ullage } from "../daemon/ullage.ts";
import type { TransferLimits } from "./time-limits.ts";
import type { Tokens } from "./tokens.ts";

/** What route modules are given besides the app. */
export interface ApiContext {
  ullage: Ullage;
  tokens: Tokens;
  log: Log;
  transfers: TransferLimits;
}

/**
 * Adds routes to the app. Who may call a route is its `config.scope` (scopes.ts; read for GET, write for changes when it
 * says nothing); who calls is `request.caller` (caller.ts).
 */
export type RouteModule = (app: FastifyInstance, context: ApiContext) => void | Promise<void>;
