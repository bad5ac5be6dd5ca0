import type { IncomingMessage } from "node:http";
import type { FastifyInstance } from "fastify";

/*
 * A client that sends or reads a byte now and then must not hold a connection for ever. The listener bounds the time for
 * headers and between requests; here the time for a body is bounded, and the time without progress for an answer that is
 * complete on our side. A handler may take as long as it needs, and a stream may be silent.
 */

export interface TransferLimits {
  /** for all of a request's body */
  bodyMs: number;
  /** while a finished answer makes no progress */
  answerStallMs: number;
}

export const defaultTransferLimits: TransferLimits = { bodyMs: 30_000, answerStallMs: 30_000 };

export function limitTransfers(app: FastifyInstance, { bodyMs, answerStallMs }: TransferLimits): void {
  app.addHook("onRequest", async ({ raw }) => {
    if (!hasBody(raw)) return;
    const timer = setTimeout(() => raw.socket.destroy(), bodyMs);
    raw.once("close", () => clearTimeout(timer)); // after the last byte, or with the connection
  });
  app.addHook("onSend", async (_request, reply, payload) => {
    if (typeof payload === "string" || Buffer.isBuffer(payload)) reply.raw.setTimeout(answerStallMs);
  });
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}
