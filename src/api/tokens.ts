import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { systemClock, type Clock } from "../base/clock.ts";
import { UllageError } from "../base/errors.ts";
import type { FileSystem } from "../base/file-system.ts";
import { realFileSystem } from "../base/real-file-system.ts";
import { checkName } from "../catalog/names.ts";
import { demandSameRequest, type RequestKey } from "../daemon/request-key.ts";
import { Turns } from "../daemon/turns.ts";
import type { Scope } from "./scopes.ts";
import { readTokenFile, writeTokenFile, type TokenRecord } from "./token-file.ts";

/*
 * The tokens that open the API over TCP. A token is `ullage_ID_SECRET`: 128 random bits that find it (no secret), and 256
 * that prove it. Kept are a SHA-256 of the whole text and what it may do; a hash that is slow on purpose would protect
 * passwords, but nobody can try 2^256 secrets. Tokens that people make are durable; those for the dashboard are in memory.
 *
 * Expiry goes by the time of day, since that is what people state it in: a clock that is set back prolongs a token.
 */

const maxTokens = 1000;
/** In memory; the oldest goes. Each start of the daemon makes one. */
const maxPassing = 16;
const pattern = /^ullage_([0-9a-f]{32})_[A-Za-z0-9_-]{43}$/;

/** A token as its owner sees it. */
export interface TokenView {
  id: string;
  name: string;
  scope: Scope;
  createdAt: string;
  /** null: never */
  expiresAt: string | null;
  expired: boolean;
  /** null: not since the daemon started */
  lastUsedAt: string | null;
}

export interface TokensOptions {
  fs?: FileSystem;
  clock?: Clock;
}

/** A token that was valid when somebody came with it. */
export type KnownToken = Pick<TokenRecord, "id" | "name">;

/** What a presented token turned out to be. */
export type TokenCheck = { kind: "valid"; token: TokenRecord } | { kind: "expired"; token: TokenRecord } | undefined;

export class Tokens {
  readonly #fs: FileSystem;
  readonly #clock: Clock;
  readonly #dir: string;
  readonly #turns = new Turns();
  readonly #lastUsed = new Map<string, string>();
  #durable: readonly TokenRecord[];
  #passing: readonly TokenRecord[] = [];
  #byId = new Map<string, TokenRecord>();

  private constructor(dir: string, fs: FileSystem, clock: Clock, durable: TokenRecord[]) {
    this.#dir = dir;
    this.#fs = fs;
    this.#clock = clock;
    this.#durable = durable;
    this.#index();
  }

  /** @param dir the data directory @throws CorruptionError, UllageError `tokens-version`, IoError */
  static async open(dir: string, { fs = realFileSystem, clock = systemClock }: TokensOptions = {}): Promise<Tokens> {
    return new Tokens(dir, fs, clock, await readTokenFile(fs, dir));
  }

  /**
   * Makes a token that outlives the daemon. Durable when it resolves.
   * @param lifeSeconds null: it never expires
   * @param request recognises a repeated one, which can't be told the secret again
   * @returns the only time that the secret is told
   * @throws UllageError `bad-name`, `name-taken`, `token-limit`, `request-key-reused`, `secret-told`; IoError
   */
  create(
    name: string,
    scope: Scope,
    lifeSeconds: number | null,
    request?: RequestKey,
  ): Promise<{ token: TokenView; secret: string }> {
    return this.#turns.run(async () => {
      if (request !== undefined) this.#demandFirst(request);
      checkName(name);
      if (this.#durable.some((token) => token.name === name)) {
        throw new UllageError("name-taken", `there is a token '${name}' already`, {
          hint: `choose another name, or \`ullage token rm ${name}\` first`,
        });
      }
      if (this.#durable.length >= maxTokens) {
        throw new UllageError("token-limit", `there are ${maxTokens} tokens already, and no more are kept`, {
          hint: "`ullage token ls` shows which have expired, `ullage token rm NAME` removes them",
        });
      }
      const { record, secret } = this.#make(name, scope, lifeSeconds);
      await this.#keep([...this.#durable, request === undefined ? record : { ...record, request }]);
      return { token: this.#view(record), secret };
    });
  }

  #demandFirst(request: RequestKey): void {
    const made = this.#durable.find((token) => token.request?.key === request.key);
    if (made === undefined) return;
    demandSameRequest(request, made.request!.digest);
    throw new UllageError(
      "secret-told",
      `this request has made the token '${made.name}' already, and its secret is told once`,
      { hint: `if nobody got it, \`ullage token rm ${made.name}\` and make another, with a new Idempotency-Key` },
    );
  }

  /** Makes a token that ends with the process at the latest, for links that are shown once. @returns the secret */
  issue(name: string, scope: Scope, lifeSeconds: number): string {
    const { record, secret } = this.#make(name, scope, lifeSeconds);
    this.#passing = [...this.#passing, record].slice(-maxPassing);
    this.#index();
    return secret;
  }

  /** Ordered by name, without those in memory. */
  list(): TokenView[] {
    return [...this.#durable].sort((a, b) => (a.name < b.name ? -1 : 1)).map((record) => this.#view(record));
  }

  /** From when it resolves on the token opens nothing, after a crash neither. @throws UllageError `not-found`; IoError */
  remove(name: string): Promise<void> {
    return this.#turns.run(async () => {
      const rest = this.#durable.filter((token) => token.name !== name);
      if (rest.length === this.#durable.length) {
        throw new UllageError("not-found", `there is no token '${name}'`, { hint: "`ullage token ls` lists them" });
      }
      await this.#keep(rest);
    });
  }

  /** Recognises what a client presents, in a time that tells nothing of the secret. @returns undefined for a stranger */
  check(presented: string): TokenCheck {
    const id = pattern.exec(presented)?.[1];
    const token = id === undefined ? undefined : this.#byId.get(id);
    if (token === undefined || !timingSafeEqual(digest(presented), Buffer.from(token.sha256, "hex"))) return undefined;
    if (this.#isExpired(token)) return { kind: "expired", token };
    this.#lastUsed.set(token.id, this.#clock.wallTime());
    return { kind: "valid", token };
  }

  /** Why a token that was valid is not any more: `bad-token`, `expired-token`; undefined: it still is. */
  whyVoid({ id, name }: KnownToken): UllageError | undefined {
    const token = this.#byId.get(id);
    if (token === undefined) {
      return new UllageError("bad-token", `the token '${name}' was removed`, {
        hint: "make a new one with `ullage token create`",
      });
    }
    return this.#isExpired(token) ? expired(token) : undefined;
  }

  #make(name: string, scope: Scope, lifeSeconds: number | null): { record: TokenRecord; secret: string } {
    const id = randomBytes(16).toString("hex");
    const secret = `ullage_${id}_${randomBytes(32).toString("base64url")}`;
    const createdAt = this.#clock.wallTime();
    const expiresAt = lifeSeconds === null ? null : new Date(Date.parse(createdAt) + lifeSeconds * 1000).toISOString();
    return { record: { id, name, scope, sha256: digest(secret).toString("hex"), createdAt, expiresAt }, secret };
  }

  async #keep(tokens: readonly TokenRecord[]): Promise<void> {
    await writeTokenFile(this.#fs, this.#dir, tokens);
    this.#durable = tokens;
    this.#index();
  }

  #index(): void {
    this.#byId = new Map([...this.#durable, ...this.#passing].map((token) => [token.id, token]));
    for (const id of this.#lastUsed.keys()) if (!this.#byId.has(id)) this.#lastUsed.delete(id);
  }

  #isExpired({ expiresAt }: TokenRecord): boolean {
    return expiresAt !== null && Date.parse(expiresAt) <= Date.parse(this.#clock.wallTime());
  }

  #view(token: TokenRecord): TokenView {
    const { id, name, scope, createdAt, expiresAt } = token;
    const lastUsedAt = this.#lastUsed.get(id) ?? null;
    return { id, name, scope, createdAt, expiresAt, expired: this.#isExpired(token), lastUsedAt };
  }
}

/** What a client hears whose token was valid once. */
export function expired({ name, expiresAt }: Pick<TokenRecord, "name" | "expiresAt">): UllageError {
  return new UllageError("expired-token", `the token '${name}' expired at ${expiresAt}`, {
    hint: "make a new one with `ullage token create`",
  });
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}
