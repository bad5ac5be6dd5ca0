import type { IncomingMessage } from "node:http";
import type { FastifyInstance } from "fastify";
import { UllageError } from "../base/errors.ts";

/*
 * A client that sends or reads a byte now and then must not hold a connection for ever. The listener bounds the time for
 * headers and between requests; here the time for a body is bounded, and the time without progress for an answer that is
 * complete on our side. A handler may take as long as it needs, and a stream may be silent. Where bodies are streams of any
 * length, the route itself bounds the time in which nothing comes.
 *
 * A client that asks first (`Expect: 100-continue`) is told to go on when it has been let in, not before.
 */

declare module "fastify" {
  interface FastifyContextConfig {
    /** The body is a stream: the route says when it may come, and for how long it may stop. */
    streams?: boolean;
  }
}

export interface TransferLimits {
  /** for all of a request's body */
  bodyMs: number;
  /** while a finished answer, a download or an upload makes no progress */
  answerStallMs: number;
}

export const defaultTransferLimits: TransferLimits = { bodyMs: 30_000, answerStallMs: 30_000 };

export function limitTransfers(app: FastifyInstance, { bodyMs, answerStallMs }: TransferLimits): void {
  app.addHook("onRequest", async ({ raw, routeOptions }, reply) => {
    if (!hasBody(raw) || routeOptions.config.streams === true) return;
    const timer = setTimeout(() => {
      if (reply.sent) raw.socket.destroy();
      else void reply.header("connection", "close").send(tooSlow(bodyMs)); // what still comes of the body goes nowhere
    }, bodyMs).unref();
    raw.once("close", () => clearTimeout(timer)); // after the last byte, or with the connection
  });
  app.addHook("preParsing", async ({ raw, routeOptions }, reply) => {
    if (raw.headers.expect !== undefined && routeOptions.config.streams !== true) reply.raw.writeContinue();
  });
  app.addHook("onSend", async (_request, reply, payload) => {
    if (typeof payload === "string" || Buffer.isBuffer(payload)) reply.raw.setTimeout(answerStallMs);
  });
}

function tooSlow(bodyMs: number): UllageError {
  return new UllageError("too-slow-request", `the body did not arrive within ${bodyMs / 1000} seconds`, {
    hint: "send it again, at once",
  });
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}
