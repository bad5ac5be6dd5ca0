import { createHash, createHmac } from "node:crypto";
import ipaddr from "ipaddr.js";
import { SourceError } from "../../base/errors.ts";
import type { Credentials } from "../credentials.ts";
import type { Headers } from "../http/http-object.ts";
import {
  type SignedRequest,
  type StoreAddress,
  type StoreDialect,
  percentEncode,
  percentEncodePath,
} from "./object-store.ts";

export interface OssOptions {
  endpoint?: string | undefined;
  region?: string | undefined;
  /** The bucket in the path, not in front of the host; default: where the endpoint is an address. OSS itself never wants it. */
  pathStyle?: boolean | undefined;
  /** Default: v4 when the region is known, which it needs. */
  signature?: "v1" | "v4" | undefined;
}

/** Alibaba Cloud OSS: the bucket in front of the host, signatures of version 1 or 4. */
export class OssDialect implements StoreDialect {
  readonly scheme = "oss";
  readonly region: string;
  readonly permission = "oss:GetObject (with a version: oss:GetObjectVersion)";
  readonly #endpoint: URL;
  readonly #pathStyle: boolean;
  readonly #signature: "v1" | "v4";

  /** @throws SourceError `source-invalid` when nothing says where it is, or v4 lacks the region */
  constructor({ endpoint, region, pathStyle, signature }: OssOptions) {
    if (endpoint === undefined && region === undefined) throw unknownPlace("an endpoint or a region");
    this.#endpoint = new URL(endpoint ?? `https://oss-${region}.aliyuncs.com`);
    // oss-cn-hangzhou.aliyuncs.com, oss-cn-hangzhou-internal.aliyuncs.com
    const named = /^oss-([a-z0-9-]+?)(?:-internal)?\.aliyuncs\.com$/.exec(this.#endpoint.hostname)?.[1];
    this.region = region ?? named ?? "";
    this.#pathStyle = pathStyle ?? ipaddr.isValid(this.#endpoint.hostname.replace(/^\[(.*)\]$/, "$1"));
    this.#signature = signature ?? (this.region === "" ? "v1" : "v4");
    if (this.#signature === "v4" && this.region === "") throw unknownPlace("a region, for signatures of version 4");
  }

  place({ bucket, key, versionId }: StoreAddress): URL {
    const url = new URL(this.#endpoint);
    if (!this.#pathStyle) url.hostname = `${bucket}.${url.hostname}`;
    const base = url.pathname.replace(/\/$/, "");
    url.pathname = `${base}/${this.#pathStyle ? `${bucket}/` : ""}${percentEncodePath(key)}`;
    if (versionId !== undefined) url.search = `?versionId=${percentEncode(versionId)}`;
    return url;
  }

  sign({ address, region }: SignedRequest, credentials: Credentials, date: Date): Headers {
    const { bucket, key, versionId } = address;
    const path = `/${bucket}/${key}`;
    const query: Record<string, string> = versionId === undefined ? {} : { versionId };
    const { sessionToken } = credentials;
    const token: Headers = sessionToken === undefined ? {} : { "x-oss-security-token": sessionToken };
    if (this.#signature === "v1") {
      const headers = { date: date.toUTCString(), ...token };
      return { ...headers, authorization: signV1({ method: "GET", path, query, headers }, credentials) };
    }
    const headers = { "x-oss-date": isoDate(date), "x-oss-content-sha256": "UNSIGNED-PAYLOAD", ...token };
    return { ...headers, authorization: signV4({ method: "GET", path, query, headers }, credentials, region, date) };
  }
}

export interface OssRequest {
  method: string;
  /** `/bucket/key`, nothing in it escaped */
  path: string;
  query: Record<string, string>;
  /** Names in lower case. */
  headers: Headers;
}

type KeyPair = Pick<Credentials, "accessKeyId" | "secretAccessKey">;

/**
 * The Authorization header of version 1 ("Include signatures in the Authorization header" in OSS's documentation):
 * HMAC-SHA1 over the method, three headers, the `x-oss-` headers and the resource.
 */
export function signV1(
  { method, path, query, headers }: OssRequest,
  { accessKeyId, secretAccessKey = "" }: KeyPair,
): string {
  const own = ossHeaders(headers).map(([name, value]) => `${name}:${value}\n`);
  const sub = Object.entries(query)
    .sort(byName)
    .map(([name, value]) => (value === "" ? name : `${name}=${value}`));
  const resource = `${path}${sub.length === 0 ? "" : `?${sub.join("&")}`}`;
  const lines = [method, headers["content-md5"] ?? "", headers["content-type"] ?? "", headers["date"] ?? ""];
  const signature = createHmac("sha1", secretAccessKey).update(`${lines.join("\n")}\n${own.join("")}${resource}`);
  return `OSS ${accessKeyId}:${signature.digest("base64")}`;
}

/**
 * The Authorization header of version 4 ("Include a V4 signature in the Authorization header"): HMAC-SHA256 with a key for
 * the day and the region; `headers` must hold `x-oss-date` of the same date and `x-oss-content-sha256`.
 */
export function signV4(request: OssRequest, credentials: KeyPair, region: string, date: Date): string {
  const { accessKeyId, secretAccessKey = "" } = credentials;
  const time = isoDate(date);
  const day = time.slice(0, 8);
  const scope = `${day}/${region}/oss/aliyun_v4_request`;
  const hash = createHash("sha256").update(canonicalRequest(request)).digest("hex");
  let key: string | Buffer = `aliyun_v4${secretAccessKey}`;
  for (const part of [day, region, "oss", "aliyun_v4_request"]) key = createHmac("sha256", key).update(part).digest();
  const text = `OSS4-HMAC-SHA256\n${time}\n${scope}\n${hash}`;
  const signature = createHmac("sha256", key).update(text).digest("hex");
  return `OSS4-HMAC-SHA256 Credential=${accessKeyId}/${scope},Signature=${signature}`;
}

function canonicalRequest({ method, path, query, headers }: OssRequest): string {
  const pairs = Object.entries(query)
    .map(([name, value]) => [percentEncode(name), percentEncode(value)] as [string, string])
    .sort(byName)
    .map(([name, value]) => (value === "" ? name : `${name}=${value}`));
  const signed = Object.entries(headers)
    .filter(([name]) => name.startsWith("x-oss-") || name === "content-type" || name === "content-md5")
    .sort(byName)
    .map(([name, value]) => `${name}:${value.trim()}\n`);
  const content = headers["x-oss-content-sha256"] ?? "UNSIGNED-PAYLOAD";
  return [method, percentEncodePath(path), pairs.join("&"), signed.join(""), "", content].join("\n");
}

function ossHeaders(headers: Headers): [string, string][] {
  return Object.entries(headers)
    .filter(([name]) => name.startsWith("x-oss-"))
    .sort(byName);
}

/** By code units, which for what is signed here is by bytes. */
function byName([a]: [string, string], [b]: [string, string]): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** `20231216T162057Z` */
export function isoDate(date: Date): string {
  return date.toISOString().replace(/[-:]|\.\d{3}/g, "");
}

function unknownPlace(what: string): SourceError {
  return new SourceError("source-invalid", `nothing says where this OSS bucket is: it takes ${what}`, {
    transient: false,
    hint: "set endpoint and region for its prefix in the configuration file, or OSS_ENDPOINT and OSS_REGION",
  });
}
