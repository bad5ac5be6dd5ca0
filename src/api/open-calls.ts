import type { FastifyReply, FastifyRequest } from "fastify";
import { UllageError } from "../base/errors.ts";
import type { KnownToken, Tokens } from "./tokens.ts";

/*
 * Answers under way over TCP, with the tokens that they are for. A check that finds a token void, and those after it, end
 * what it opened:
 *
 *     first     `request.revoked` is aborted: streams and uploads listen, say so in their own way, and end
 *     second    what has no answer yet gets one, 401; what is being done goes on, and the answer says so
 *     last      the connection is cut
 */

declare module "fastify" {
  interface FastifyRequest {
    /** Aborted, with a UllageError, when the caller's token is void; undefined for callers without one. */
    revoked: AbortSignal | undefined;
  }
}

/** How long an answer may outlive its token unnoticed. */
const checkMs = 1000;
/** The last of the checks that a call sees. */
const lastCheck = 4;

interface OpenCall {
  token: KnownToken;
  reply: FastifyReply;
  revoking: AbortController;
  /** Checks that have found its token void. */
  found: number;
}

export class OpenCalls {
  readonly #tokens: Tokens;
  readonly #open = new Set<OpenCall>();

  constructor(tokens: Tokens, everyMs = checkMs) {
    this.#tokens = tokens;
    setInterval(() => this.#check(), everyMs).unref();
  }

  /** @param token that the request came with; it is valid now */
  note(request: FastifyRequest, reply: FastifyReply, token: KnownToken): void {
    const call: OpenCall = { token, reply, revoking: new AbortController(), found: 0 };
    request.revoked = call.revoking.signal;
    this.#open.add(call);
    reply.raw.once("close", () => this.#open.delete(call));
  }

  #check(): void {
    for (const call of this.#open) {
      const why = this.#tokens.whyVoid(call.token);
      if (why !== undefined) revoke(call, why);
    }
  }
}

function revoke(call: OpenCall, why: UllageError): void {
  const { reply, revoking } = call;
  call.found++;
  if (call.found === 1) revoking.abort(why);
  if (call.found === lastCheck) reply.raw.destroy();
  if (call.found !== 2 || reply.sent || reply.raw.headersSent) return;
  reply.header("connection", "close").header("www-authenticate", 'Bearer realm="ullage", error="invalid_token"');
  void reply.send(
    new UllageError(why.code, `${why.message}, while this request was under way`, {
      hint: "what it asked for may be done all the same: look, with a token that is valid",
    }),
  );
}
