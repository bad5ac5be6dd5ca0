import { createHash } from "node:crypto";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { RequestKey } from "../daemon/volumes.ts";
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

/** What recognises a repeated request: the client's key, and a digest of what it asks for. */
export function requestKeyOf({ headers }: FastifyRequest, asked: unknown): RequestKey | undefined {
  const key = headers["idempotency-key"];
  if (typeof key !== "string") return undefined;
  return { key, digest: createHash("sha256").update(JSON.stringify(asked)).digest("hex") };
}
