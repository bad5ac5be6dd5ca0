import { SourceError } from "../../base/errors.ts";
import { orAborted } from "../../base/or-aborted.ts";
import type { Connections, Document } from "../http/connections.ts";
import type { CredentialSource, Credentials } from "../credentials.ts";
import { statusError } from "../http/http-answer.ts";
import type { Headers, Refusal } from "../http/http-object.ts";
import { basic, redirectedTarget, shown, type Target } from "../http/http-target.ts";
import { badAnswer } from "../source-errors.ts";
import { parseChallenges } from "../http/www-authenticate.ts";

/*
 * Who may pull what, as the distribution specification has it: the registry answers 401 with a challenge, `Basic`, or
 * `Bearer` with a realm that trades credentials for a token. One token per repository; all reads share it.
 *
 *     unasked --401--> asking (one request, everybody waits for it) --> token --old, 401--> asking
 *
 * A token that will soon expire is renewed beside the reads, which go on with it while it is valid.
 */

/** What a token without `expires_in` lives for (docker's token specification). */
const defaultLifeSeconds = 60;
/** Not used any more this long before it ends, so that a request that takes its time is not refused. */
const marginMs = 5_000;
/** Repositories whose tokens are kept. */
const maxTokens = 1000;

interface Token {
  value: string;
  /** Wall time, ms. */
  renewAt: number;
  expiresAt: number;
}

/** How one repository opens. */
interface Opening {
  /** What the registry's challenge asked for; absent: nothing yet. */
  realm?: { url: URL; service: string | undefined; scope: string };
  isBasic: boolean;
  token?: Token | undefined;
  asking?: Promise<void> | undefined;
}

export class RegistryAuth {
  readonly #connections: Connections;
  readonly #credentials: CredentialSource | undefined;
  /** By repository. */
  readonly #openings = new Map<string, Opening>();

  constructor(connections: Connections, credentials: CredentialSource | undefined) {
    this.#connections = connections;
    this.#credentials = credentials;
  }

  get reference(): string {
    return this.#credentials?.reference ?? "none";
  }

  /** Headers for a request about a repository; none before the registry has asked for any. @throws SourceError */
  async headers(repository: string, signal: AbortSignal): Promise<Headers> {
    const opening = this.#openings.get(repository);
    if (opening === undefined) {
      const given = await this.#credentials?.get();
      return given?.token === undefined ? {} : { authorization: `Bearer ${given.token}` };
    }
    if (opening.isBasic) return this.#basic();
    const { token } = opening;
    const now = Date.now();
    if (token === undefined || now >= token.expiresAt) await orAborted(this.#ask(opening), signal);
    else if (now >= token.renewAt) this.#ask(opening).catch(() => undefined); // the reads still have one that is valid
    return opening.token === undefined ? {} : { authorization: `Bearer ${opening.token.value}` };
  }

  /**
   * A request was refused: does what the challenge asks for.
   * @returns whether it is worth to be sent again
   */
  async renew(repository: string, refusal: Refusal, signal: AbortSignal): Promise<boolean> {
    // Amazon's says of a token that was given as a password, and has ended, that it is denied.
    const ended = refusal.status === 403 && /token has expired/i.test(refusal.body);
    if (ended) return (await this.#credentials?.renew()) === true;
    if (refusal.status !== 401) return false;
    const challenges = parseChallenges(refusal.headers["www-authenticate"]);
    const bearer = challenges.find(({ scheme }) => scheme === "bearer");
    const known = this.#openings.get(repository);
    if (bearer?.params["realm"] !== undefined) {
      const url = this.#realmUrl(bearer.params["realm"], refusal.url);
      const scope = bearer.params["scope"] ?? `repository:${repository}:pull`;
      const opening: Opening = known ?? { isBasic: false };
      const refused = opening.token;
      // Another read has brought a new one meanwhile.
      if (refused !== undefined && refusal.sent["authorization"] !== `Bearer ${refused.value}`) return true;
      opening.realm = { url, service: bearer.params["service"], scope };
      opening.isBasic = false;
      opening.token = undefined;
      this.#remember(repository, opening);
      await orAborted(this.#ask(opening), signal);
      return opening.token !== undefined && (opening.token as Token).value !== refused?.value;
    }
    if (challenges.some(({ scheme }) => scheme === "basic")) {
      if (known?.isBasic === true) return (await this.#credentials?.renew()) === true;
      this.#remember(repository, { isBasic: true });
      return (await this.#basic())["authorization"] !== undefined;
    }
    return (await this.#credentials?.renew()) === true;
  }

  #remember(repository: string, opening: Opening): void {
    if (this.#openings.size >= maxTokens) this.#openings.clear();
    this.#openings.set(repository, opening);
  }

  async #basic(): Promise<Headers> {
    const credentials = await this.#credentials?.get();
    return credentials?.username === undefined
      ? {}
      : { authorization: basic(credentials.username, credentials.password ?? "") };
  }

  /** Like a redirect: not from https to plain http. */
  #realmUrl(realm: string, from: URL): URL {
    const target = redirectedTarget({ url: from, authorization: undefined }, realm);
    return target.url;
  }

  #ask(opening: Opening): Promise<void> {
    opening.asking ??= this.#fetchToken(opening).finally(() => (opening.asking = undefined));
    return opening.asking;
  }

  async #fetchToken(opening: Opening): Promise<void> {
    const { url, service, scope } = opening.realm!;
    const credentials = await this.#credentials?.get();
    // Everybody waits for it: it ends by its own time-outs, not when the first of them goes away.
    const { signal } = new AbortController();
    let answer = await this.#request(url, service, scope, credentials, signal);
    if (answer.status === 401 && (await this.#credentials?.renew()) === true) {
      answer = await this.#request(url, service, scope, await this.#credentials?.get(), signal);
    }
    const where = shown(url);
    if (answer.status === 401 || answer.status === 403) {
      throw new SourceError("source-denied", `${where} gives no token: it answered ${answer.status}`, {
        transient: false,
        hint: `check the registry's credentials (${this.reference})`,
      });
    }
    if (answer.status !== 200) throw statusError(where, answer);
    opening.token = tokenOf(where, answer);
  }

  #request(
    url: URL,
    service: string | undefined,
    scope: string,
    credentials: Credentials | undefined,
    signal: AbortSignal,
  ): Promise<Document> {
    const params = new URLSearchParams(service === undefined ? { scope } : { service, scope });
    if (credentials?.refreshToken !== undefined) {
      params.set("grant_type", "refresh_token");
      params.set("refresh_token", credentials.refreshToken);
      params.set("client_id", "ullage");
      const headers = { "content-type": "application/x-www-form-urlencoded" };
      return this.#connections.fetchDocument({ url, authorization: undefined }, headers, {
        signal,
        body: params.toString(),
      });
    }
    const target: Target = { url: new URL(url), authorization: undefined };
    for (const [name, value] of params) target.url.searchParams.set(name, value);
    const headers: Headers =
      credentials?.username === undefined
        ? {}
        : { authorization: basic(credentials.username, credentials.password ?? "") };
    return this.#connections.fetchDocument(target, headers, { signal });
  }
}

function tokenOf(where: string, answer: Document): Token {
  let fields: { token?: unknown; access_token?: unknown; expires_in?: unknown };
  try {
    fields = (JSON.parse(answer.body.toString("utf8")) ?? {}) as typeof fields;
  } catch {
    throw badAnswer(`${where} answered with something that is no token`); // the parser's message would quote it
  }
  const value = fields.token ?? fields.access_token;
  if (typeof value !== "string" || !/^[\x21-\x7e]+$/.test(value)) throw badAnswer(`${where} answered without a token`);
  const seconds =
    typeof fields.expires_in === "number" && fields.expires_in > 0 ? fields.expires_in : defaultLifeSeconds;
  const lifeMs = seconds * 1000;
  const now = Date.now();
  const expiresAt = now + Math.max(lifeMs - marginMs, lifeMs / 2);
  return { value, renewAt: now + Math.min(lifeMs * 0.75, Math.max(lifeMs - 60_000, lifeMs / 2)), expiresAt };
}
