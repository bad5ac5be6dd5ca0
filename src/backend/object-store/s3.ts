import { createHash, createHmac, type Hash, type Hmac } from "node:crypto";
import type { Credentials } from "../credentials.ts";
import type { Headers } from "../http/http-object.ts";
import {
  type SignedRequest,
  type StoreAddress,
  type StoreDialect,
  percentEncode,
  percentEncodePath,
} from "./object-store.ts";

export interface S3Options {
  /** Absent: Amazon's own, which depends on the region. */
  endpoint?: string | undefined;
  region?: string | undefined;
  /** The bucket in the path, not in front of the host; default: with an endpoint of one's own. */
  pathStyle?: boolean | undefined;
}

const emptySha256 = createHash("sha256").digest("hex");

/** Signatures of version 4 (the official SDK makes them) over the host and the `x-amz-` headers. */
export class S3Dialect implements StoreDialect {
  readonly scheme = "s3";
  readonly region: string;
  readonly permission = "s3:GetObject (with a version: s3:GetObjectVersion)";
  readonly deniedToo = "; without s3:ListBucket a key that is not there is denied, too";
  readonly #endpoint: URL | undefined;
  readonly #pathStyle: boolean;

  constructor(options: S3Options) {
    this.region = options.region ?? "us-east-1";
    this.#endpoint = options.endpoint === undefined ? undefined : new URL(options.endpoint);
    this.#pathStyle = options.pathStyle ?? this.#endpoint !== undefined;
  }

  place({ bucket, key, versionId }: StoreAddress, region: string): URL {
    const suffix = region.startsWith("cn-") ? "amazonaws.com.cn" : "amazonaws.com";
    const url = new URL(this.#endpoint ?? `https://s3.${region}.${suffix}`);
    // A certificate for *.host does not cover a bucket with dots.
    const inHost = !this.#pathStyle && /^[a-z0-9-]{3,63}$/.test(bucket);
    if (inHost) url.hostname = `${bucket}.${url.hostname}`;
    const base = url.pathname.replace(/\/$/, "");
    url.pathname = `${base}/${inHost ? "" : `${bucket}/`}${percentEncodePath(key)}`;
    if (versionId !== undefined) url.search = `?versionId=${percentEncode(versionId)}`;
    return url;
  }

  async sign({ url, address, region }: SignedRequest, credentials: Credentials, date: Date): Promise<Headers> {
    const { accessKeyId = "", secretAccessKey = "", sessionToken } = credentials;
    const { SignatureV4 } = await import("@smithy/signature-v4");
    const signer = new SignatureV4({
      service: "s3",
      region,
      credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) },
      sha256: Sha256,
      uriEscapePath: false,
    });
    const { headers } = await signer.sign(
      {
        method: "GET",
        protocol: url.protocol,
        hostname: url.hostname,
        path: url.pathname,
        query: address.versionId === undefined ? {} : { versionId: address.versionId },
        headers: { host: url.host, "x-amz-content-sha256": emptySha256 },
      },
      { signingDate: date },
    );
    return headers;
  }
}

/** Node's hashes in the form that the SDK takes. */
export class Sha256 {
  readonly #hash: Hash | Hmac;

  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#hash = secret === undefined ? createHash("sha256") : createHmac("sha256", bytesOf(secret));
  }

  update(chunk: Uint8Array | string): void {
    this.#hash.update(chunk);
  }

  digest(): Promise<Uint8Array> {
    return Promise.resolve(this.#hash.digest());
  }

  reset(): void {
    throw new Error("a hash is used once");
  }
}

function bytesOf(data: string | ArrayBuffer | ArrayBufferView): string | Uint8Array {
  if (typeof data === "string") return data;
  return ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data);
}
