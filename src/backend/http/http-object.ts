import type { SourceError } from "../../base/errors.ts";
import type { Identity } from "../backend.ts";
import type { CredentialSource } from "../credentials.ts";
import { type ResponseHead, statusError } from "./http-answer.ts";
import { type Target, basic, parseTarget } from "./http-target.ts";

/**
 * What an object over HTTP is, besides its bytes: where it is asked for, what opens that place, and what pins it. How
 * bytes are asked for, checked and handed on is HttpBackend's, the same for all.
 */
export interface HttpObject {
  /** The source as it may be shown and stored: no credentials. */
  readonly url: string;

  /**
   * Where the next request goes; asked before each one, so what it takes trouble to find is remembered.
   * @param identity what is pinned; absent: the object as it is now
   * @throws SourceError
   */
  locate(identity: Identity | undefined, signal: AbortSignal): Place | Promise<Place>;

  /**
   * Headers that open a place. Asked for redirects' targets as well: for an origin that is not its own it has none.
   * @throws SourceError
   */
  authorize?(url: URL, signal: AbortSignal): Headers | Promise<Headers>;

  /** Whether an answer that is no error is one to this object: a redirect to be judged by it, for instance. */
  refuses?(answer: ResponseHead): boolean;

  /**
   * Looks at a refusal from a place of its own and renews what was the matter: a token, the clock, the region.
   * @returns whether the request is worth sending again
   * @throws SourceError
   */
  renew?(refusal: Refusal, signal: AbortSignal): Promise<boolean>;

  /** The error behind a refusal that stays. */
  errorOf(where: string, refusal: Refusal): SourceError;
}

export type Headers = Record<string, string>;

/** Where an object is. */
export interface Place {
  target: Target;
  /** What it is, when that is known without asking the place. */
  identity?: Identity;
  /** As who keeps the object calls its type. */
  mediaType?: string;
}

/** An answer that brought no bytes of the object. */
export interface Refusal extends ResponseHead {
  url: URL;
  /** What `authorize` had said for it. */
  sent: Headers;
  /** The beginning of the body, where stores say what the matter is. */
  body: string;
}

/** An object at an http(s) address, opened by the name and password in it or by configured credentials. */
export class PlainObject implements HttpObject {
  readonly url: string;
  readonly #target: Target;
  readonly #credentials: CredentialSource | undefined;

  constructor(source: string, credentials?: CredentialSource) {
    this.#target = parseTarget(source);
    this.url = this.#target.url.href;
    this.#credentials = credentials;
  }

  locate(): Place {
    return { target: this.#target };
  }

  async authorize(url: URL): Promise<Headers> {
    if (this.#credentials === undefined || url.origin !== this.#target.url.origin) return {};
    const found = await this.#credentials.get();
    if (found?.token !== undefined) return { authorization: `Bearer ${found.token}` };
    if (found?.username !== undefined) return { authorization: basic(found.username, found.password ?? "") };
    return {};
  }

  async renew(refusal: Refusal): Promise<boolean> {
    return refusal.status === 401 && this.#credentials !== undefined && (await this.#credentials.renew());
  }

  errorOf(where: string, refusal: Refusal): SourceError {
    return statusError(where, refusal);
  }
}
