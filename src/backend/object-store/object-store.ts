import { SourceError } from "../../base/errors.ts";
import type { CredentialSource, Credentials } from "../credentials.ts";
import { type ResponseHead, header, retryAfterMs, statusError } from "../http/http-answer.ts";
import type { Headers, HttpObject, Place, Refusal } from "../http/http-object.ts";
import { SourceBusyError, sourceChanged } from "../source-errors.ts";

/*
 * What S3 and OSS have in common: buckets and keys, requests signed with a key pair and the time of day, errors in XML.
 * What differs is a `StoreDialect`: s3.ts, oss.ts.
 */

/** `s3://bucket/key?versionId=…`, `oss://…` */
export interface StoreAddress {
  bucket: string;
  /** As it is: nothing in it is escaped. */
  key: string;
  versionId: string | undefined;
}

export interface StoreDialect {
  readonly scheme: "s3" | "oss";
  /** Where the bucket is asked when nobody has said another region. */
  readonly region: string;
  /** What permits reading, for hints. */
  readonly permission: string;
  /** What else is refused as if it were not permitted. */
  readonly deniedToo?: string;
  place(address: StoreAddress, region: string): URL;
  /** Headers that prove who asks. @param date of the store's clock */
  sign(request: SignedRequest, credentials: Credentials, date: Date): Headers | Promise<Headers>;
}

export interface SignedRequest {
  url: URL;
  address: StoreAddress;
  region: string;
}

/** Buckets whose region is remembered. */
const maxRegions = 1000;
/** A clock that is off by less is not what was refused. */
const leastSkewMs = 60_000;
const maxMessageLength = 300;

const expiredCodes = new Set(["ExpiredToken", "TokenRefreshRequired", "SecurityTokenExpired", "InvalidToken"]);
const credentialCodes = new Set([
  ...expiredCodes,
  "InvalidAccessKeyId",
  "SignatureDoesNotMatch",
  "InvalidSecurityToken",
  "AccessDenied",
]);
const busyCodes = new Set([
  "SlowDown",
  "ServiceUnavailable",
  "InternalError",
  "RequestTimeout",
  "Throttling",
  "ThrottlingException",
  "RequestLimitExceeded",
  "DownloadTrafficRateLimitExceeded",
]);

/**
 * @param source as the user wrote it: everything between the bucket and an optional `?versionId=` is the key, literally
 * @throws SourceError `source-invalid`
 */
export function parseStoreSource(source: string, scheme: "s3" | "oss"): StoreAddress {
  const match = /^\w+:\/\/([^/]*)\/(.+?)(?:\?versionId=([^&?]*))?$/s.exec(source);
  if (match === null) throw invalid(source, scheme, "it names no object");
  const [, bucket, key, versionId] = match;
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$/.test(bucket)) throw invalid(source, scheme, "the bucket's name is none");
  if (/\p{Cc}/u.test(key)) throw invalid(source, scheme, "the key has a control character");
  if (!key.isWellFormed()) throw invalid(source, scheme, "the key is no Unicode text");
  // Every URL parser on the way would take these away.
  if (key.split("/").some((part) => part === "." || part === ".."))
    throw invalid(source, scheme, "the key has . or .. in it");
  return { bucket, key, versionId: versionId === "" ? undefined : versionId };
}

/** The one form of an address; see `parseStoreSource`. */
export function canonicalStoreSource(source: string, scheme: "s3" | "oss"): string {
  const { bucket, key, versionId } = parseStoreSource(source, scheme);
  return `${scheme}://${bucket}/${key}${versionId === undefined ? "" : `?versionId=${versionId}`}`;
}

/** RFC 3986: everything but letters, digits, `-._~` as %XX. */
export function percentEncode(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** The same for a path, whose slashes stay. */
export function percentEncodePath(path: string): string {
  return path.split("/").map(percentEncode).join("/");
}

/** What the objects of one endpoint, opened with the same credentials, share. */
export class StoreSite {
  readonly dialect: StoreDialect;
  readonly credentials: CredentialSource | undefined;
  readonly #regions = new Map<string, string>();
  /** By how much the store's clock is ahead of ours. */
  skewMs = 0;

  /** @param credentials absent: every request is anonymous */
  constructor(dialect: StoreDialect, credentials: CredentialSource | undefined) {
    this.dialect = dialect;
    this.credentials = credentials;
  }

  object(source: string): HttpObject {
    return new StoreObject(this, source);
  }

  regionOf(bucket: string): string {
    return this.#regions.get(bucket) ?? this.dialect.region;
  }

  /** @returns whether that is news */
  learnRegion(bucket: string, region: string): boolean {
    if (region === this.regionOf(bucket)) return false;
    if (this.#regions.size >= maxRegions) this.#regions.clear();
    this.#regions.set(bucket, region);
    return true;
  }
}

class StoreObject implements HttpObject {
  readonly url: string;
  readonly #site: StoreSite;
  readonly #address: StoreAddress;
  /** How the last request was opened, for what is said about its refusal. */
  #anonymous = true;

  constructor(site: StoreSite, source: string) {
    const { scheme } = site.dialect;
    this.#site = site;
    this.#address = parseStoreSource(source, scheme);
    this.url = canonicalStoreSource(source, scheme);
  }

  locate(): Place {
    const { dialect } = this.#site;
    const { bucket } = this.#address;
    return { target: { url: dialect.place(this.#address, this.#site.regionOf(bucket)), authorization: undefined } };
  }

  async authorize(url: URL): Promise<Headers> {
    if (!this.#owns(url)) return {};
    const credentials = await this.#site.credentials?.get();
    this.#anonymous = credentials?.accessKeyId === undefined;
    if (credentials === undefined || this.#anonymous) return {};
    const region = this.#site.regionOf(this.#address.bucket);
    const date = new Date(Date.now() + this.#site.skewMs);
    return this.#site.dialect.sign({ url, address: this.#address, region }, credentials, date);
  }

  refuses({ status, headers }: ResponseHead): boolean {
    const region = bucketRegion(headers);
    // A new bucket's requests are redirected for a while; where they lead, they would have to be signed for that region.
    if (status === 307) return region !== undefined && region !== this.#site.regionOf(this.#address.bucket);
    return status === 301 && (header(headers, "location") === undefined || region !== undefined);
  }

  async renew(refusal: Refusal): Promise<boolean> {
    if (!this.#owns(refusal.url)) return false;
    const { status, headers, body } = refusal;
    const code = element(body, "Code") ?? "";
    const region = bucketRegion(headers) ?? element(body, "Region");
    const misplaced =
      status === 301 || status === 307 || code === "AuthorizationHeaderMalformed" || code === "PermanentRedirect";
    if (misplaced || status === 400) {
      if (region !== undefined && /^[a-z0-9-]{1,64}$/.test(region)) {
        if (this.#site.learnRegion(this.#address.bucket, region)) return true;
      }
      if (misplaced) return false;
    }
    if (code === "RequestTimeTooSkewed" || code === "RequestExpired") {
      const skewMs = Date.parse(header(headers, "date") ?? "") - Date.now();
      if (Number.isNaN(skewMs) || Math.abs(skewMs - this.#site.skewMs) < leastSkewMs) return false;
      this.#site.skewMs = skewMs;
      return true;
    }
    if (status !== 400 && status !== 401 && status !== 403) return false;
    return credentialCodes.has(code) && (await this.#site.credentials?.renew()) === true;
  }

  errorOf(where: string, refusal: Refusal): SourceError {
    const { status, headers, body } = refusal;
    const code = element(body, "Code");
    if (code === undefined || !this.#owns(refusal.url)) return this.#statusError(where, refusal);
    const said = (element(body, "Message") ?? "").replace(/\p{Cc}+/gu, " ").slice(0, maxMessageLength);
    const message = `${where} answered ${status} ${code}${said === "" ? "" : `: ${said}`}`;
    if (busyCodes.has(code)) return new SourceBusyError(message, retryAfterMs(headers));
    if (status === 412) return sourceChanged(message);
    if (code === "NoSuchKey" || code === "NoSuchBucket" || code === "NoSuchVersion" || code === "MethodNotAllowed") {
      const hint =
        code === "NoSuchBucket" ? "check the bucket, and the endpoint and region of this source" : "check the key";
      return new SourceError("source-not-found", message, { transient: false, hint });
    }
    if (code === "InvalidObjectState") {
      return new SourceError("source-denied", message, { transient: false, hint: "it is archived: restore it first" });
    }
    if (expiredCodes.has(code)) {
      // Whoever renews them may be late: that is no reason for a guest's disk to fail.
      const hint = `renew the credentials (${this.#reference}): they are looked at again by themselves`;
      return new SourceError("source-denied", message, { transient: true, hint });
    }
    if (status === 301 || code === "AuthorizationHeaderMalformed") {
      return new SourceError("source-redirect", message, { transient: false, hint: "check the endpoint and region" });
    }
    if (status === 401 || status === 403) {
      return new SourceError("source-denied", message, { transient: false, hint: this.#deniedHint() });
    }
    return this.#statusError(message.slice(0, message.indexOf(" answered")), refusal, message);
  }

  #statusError(where: string, refusal: Refusal, message?: string): SourceError {
    const error = statusError(where, refusal);
    if (message === undefined || error instanceof SourceBusyError) return error;
    const { code, transient, hint } = error;
    return new SourceError(code, message, { transient, ...(hint === undefined ? {} : { hint }) });
  }

  #deniedHint(): string {
    if (this.#site.credentials === undefined)
      return "it is not public, and no credentials are configured for this source";
    if (this.#anonymous) return `it is not public, and there are no credentials (${this.#reference})`;
    const { permission, deniedToo = "" } = this.#site.dialect;
    return `the credentials (${this.#reference}) must permit ${permission}${deniedToo}`;
  }

  get #reference(): string {
    return this.#site.credentials?.reference ?? "none";
  }

  /** A signature is only for the store itself, not for where it redirects to. */
  #owns(url: URL): boolean {
    return url.origin === this.locate().target.url.origin;
  }
}

function bucketRegion(headers: ResponseHead["headers"]): string | undefined {
  return header(headers, "x-amz-bucket-region");
}

const entities: Record<string, string> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

/** The text of the first element of that name, in the small and flat documents that stores send with errors. */
export function element(xml: string, name: string): string | undefined {
  const text = new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1];
  return text?.replace(/&(lt|gt|amp|quot|apos);/g, (_, entity: string) => entities[entity]).trim();
}

function invalid(source: string, scheme: string, why: string): SourceError {
  return new SourceError("source-invalid", `'${source.slice(0, 200)}' is no object of a store: ${why}`, {
    transient: false,
    hint: `write ${scheme}://bucket/key, with the key as it is, or ${scheme}://bucket/key?versionId=ID`,
  });
}
