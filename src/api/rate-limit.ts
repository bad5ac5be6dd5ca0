import rateLimit, { normalizeIP } from "@fastify/rate-limit";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { UllageError } from "../base/errors.ts";

/*
 * How often one client may ask over TCP. Two counts:
 *
 * - requests, per token (or per address where there is none): keeps a client that runs wild from starving the others;
 * - strangers, per address: requests without a token that is valid. They may be guesses, and each is a line in the log.
 *   An address with too many is answered 429 whatever it presents, so that even a right guess tells nothing; except for
 *   tokens that were used from there before, since behind a proxy or on one machine all clients have the same address,
 *   and one with an old token must not lock the others out.
 */

export interface RateLimits {
  requestsPerSecond: number;
  /** in `strangerWindowMs` */
  strangers: number;
  strangerWindowMs: number;
}

export const defaultRateLimits: RateLimits = { requestsPerSecond: 200, strangers: 20, strangerWindowMs: 10_000 };

/** Clients that are counted at the same time; the one that was silent longest is forgotten. */
const maxClients = 5000;

type Limiter = ReturnType<FastifyInstance["createRateLimit"]>;

export class RateLimiter {
  readonly #requests: Limiter;
  readonly #strangers: Limiter;
  /** `token id @ address` of tokens that were right, the oldest first */
  readonly #acquainted = new Set<string>();

  private constructor(requests: Limiter, strangers: Limiter) {
    this.#requests = requests;
    this.#strangers = strangers;
  }

  static async create(app: FastifyInstance, limits: RateLimits): Promise<RateLimiter> {
    await app.register(rateLimit, { global: false, cache: maxClients });
    const address = ({ ip }: FastifyRequest): string => normalizeIP(ip);
    return new RateLimiter(
      app.createRateLimit({
        max: limits.requestsPerSecond,
        timeWindow: 1000,
        keyGenerator: (request) => (request.caller.kind === "token" ? request.caller.id : address(request)),
      }),
      app.createRateLimit({ max: limits.strangers, timeWindow: limits.strangerWindowMs, keyGenerator: address }),
    );
  }

  /** Counts a request of `request.caller`. @throws UllageError `rate-limited`, with `retry-after` set on the reply */
  async countRequest(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    const { caller } = request;
    if (caller.kind === "token") await this.#demandTrust(request, reply, caller.id);
    refuse(await this.#requests(request), reply, "too many requests");
  }

  /** Counts a request that comes without a valid token, or under a wrong name. @throws UllageError `rate-limited`, with `retry-after` set on the reply */
  async countStranger(request: FastifyRequest, reply: FastifyReply): Promise<void> {
    refuse(await this.#strangers(request), reply, "too many requests without a valid token");
  }

  async #demandTrust(request: FastifyRequest, reply: FastifyReply, tokenId: string): Promise<void> {
    const key = `${tokenId} @ ${normalizeIP(request.ip)}`;
    if (this.#acquainted.has(key)) return;
    refuse(await this.#strangers(request, { increment: false }), reply, "too many requests without a valid token");
    this.#acquainted.add(key);
    if (this.#acquainted.size <= maxClients) return;
    const [oldest] = this.#acquainted;
    this.#acquainted.delete(oldest);
  }
}

function refuse(verdict: Awaited<ReturnType<Limiter>>, reply: FastifyReply, what: string): void {
  if (verdict.isAllowed || !verdict.isExceeded) return;
  reply.header("retry-after", Math.max(1, verdict.ttlInSeconds));
  throw new UllageError("rate-limited", `${what}: at most ${verdict.max} in ${verdict.timeWindow / 1000} s`, {
    hint: "wait as long as the header Retry-After says",
  });
}
