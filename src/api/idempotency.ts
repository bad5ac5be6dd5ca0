import { createHash } from "node:crypto";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { RequestKey } from "../daemon/request-key.ts";
import { describeCaller } from "./caller.ts";

/**
 * Binds every `Idempotency-Key` to its caller, before a route sees it: two callers may happen to use the same key, and
 * nobody gets an answer that was somebody else's. Those on unix sockets are one caller, whose keys stay as they are.
 */
export function bindIdempotencyKeys(app: FastifyInstance): void {
  app.addHook("preHandler", async ({ raw, caller }) => {
    const key = raw.headers["idempotency-key"];
    if (typeof key === "string" && caller.kind !== "unix") {
      raw.headers["idempotency-key"] = `${describeCaller(caller)}/${key}`;
    }
  });
}

/** Of routes that make something. @param what it is */
export function idempotencyHeaders(what: string): object {
  return {
    type: "object",
    properties: {
      "idempotency-key": {
        type: "string",
        minLength: 1,
        maxLength: 255,
        description: `repeating a request with the same key makes no second ${what}`,
      },
    },
  };
}

/** What recognises a repeated request: the client's key, and a digest of what it asked for; by default, the body. */
export function requestKeyOf(request: FastifyRequest, asked: unknown = request.body): RequestKey | undefined {
  const key = request.headers["idempotency-key"];
  if (typeof key !== "string") return undefined;
  return { key, digest: createHash("sha256").update(JSON.stringify(asked)).digest("hex") };
}
