import { createHash, createHmac } from "node:crypto";
import { type Answer, type Asked, type FakeServer, rangeAnswer, startFakeServer } from "./fake-server.ts";

/*
 * S3 and OSS in small, with exact semantics as far as reading goes: they check every signature by their own arithmetic, the
 * clock, the region and the session token, keep versions, and answer errors in XML as the real ones do.
 */

export interface StoreKey {
  secret: string;
  /** The session token that must come along. */
  token?: string;
  expired?: boolean;
  denied?: boolean;
}

export interface StoredVersion {
  id: string;
  content: Buffer;
  etag: string;
}

export interface FakeStore extends FakeServer {
  /** Access key ids and what belongs to them. May be changed at any time. */
  readonly keys: Map<string, StoreKey>;
  /** Buckets that anybody may read. */
  readonly publicBuckets: Set<string>;
  /** Where buckets are; others are where the fake is. */
  readonly regions: Map<string, string>;
  /** It answers with what it has, whatever version was asked for. */
  ignoresConditions: boolean;
  /** By how much its clock is ahead. */
  skewMs: number;
  put(bucket: string, key: string, content: Buffer): StoredVersion;
  remove(bucket: string, key: string): void;
  /** Answers `307` to requests for the bucket, to this origin. */
  readonly moved: Map<string, string>;
}

class StoreError extends Error {
  readonly answer: Answer;

  constructor(status: number, code: string, message: string, extra = "", headers: Record<string, string> = {}) {
    super(code);
    const body = `<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>${code}</Code><Message>${message}</Message>${extra}<RequestId>tx01</RequestId></Error>`;
    this.answer = { status, headers: { "content-type": "application/xml", ...headers }, body };
  }
}

const skewLimitMs = 15 * 60_000;

interface Signed {
  asked: Asked;
  bucket: string;
  key: string;
  region: string;
  now: Date;
  keys: FakeStore["keys"];
}

type Check = (signed: Signed) => void;

/** @param options.host buckets may stand in front of it, as `bucket.host`; default: only in the path */
export async function startFakeStore(
  kind: "s3" | "oss",
  options: { region?: string; host?: string } = {},
): Promise<FakeStore> {
  const { region = kind === "s3" ? "us-east-1" : "cn-hangzhou" } = options;
  const objects = new Map<string, StoredVersion[]>();
  let versions = 0;

  const find = (asked: Asked): { bucket: string; key: string } => {
    const path = asked.target.split("?")[0];
    const host = (asked.headers.host ?? "").split(":")[0];
    const inHost = options.host !== undefined && host.endsWith(`.${options.host}`);
    const [, first, rest = ""] = /^\/([^/]*)(?:\/(.*))?$/s.exec(path) ?? [];
    const bucket = inHost ? host.slice(0, -options.host!.length - 1) : first;
    return { bucket, key: decodeURIComponent(inHost ? path.slice(1) : rest) };
  };

  const answer = (asked: Asked): Answer => {
    const { bucket, key } = find(asked);
    const now = new Date(Date.now() + store.skewMs);
    const dated = { date: now.toUTCString() };
    try {
      const moved = store.moved.get(bucket);
      if (moved !== undefined) return { status: 307, headers: { location: moved + asked.target } };
      const place = store.regions.get(bucket) ?? region;
      const signed = { asked, bucket, key, region: place, now, keys: store.keys };
      if (asked.headers.authorization !== undefined) (kind === "s3" ? checkS3 : checkOss)(signed);
      else if (!store.publicBuckets.has(bucket)) throw new StoreError(403, "AccessDenied", "Access Denied");
      if (![...objects.keys()].some((name) => name.startsWith(`${bucket}/`))) {
        throw new StoreError(404, "NoSuchBucket", "The specified bucket does not exist");
      }
      const found = objects.get(`${bucket}/${key}`) ?? [];
      const wanted = asked.url.searchParams.get("versionId");
      const version = wanted === null ? found.at(-1) : found.find(({ id }) => id === wanted);
      if (version === undefined) {
        if (wanted !== null) throw new StoreError(404, "NoSuchVersion", "The specified version does not exist.");
        throw new StoreError(404, "NoSuchKey", "The specified key does not exist.", `<Key>${xml(key)}</Key>`);
      }
      const name = kind === "s3" ? "x-amz-version-id" : "x-oss-version-id";
      const headers = store.ignoresConditions ? unconditional(asked.headers) : asked.headers;
      const result = rangeAnswer({ ...asked, headers }, version.content, { etag: version.etag, [name]: version.id });
      if (result.status === 412) {
        throw new StoreError(
          412,
          "PreconditionFailed",
          "At least one of the pre-conditions you specified did not hold",
        );
      }
      return { ...result, headers: { ...dated, ...result.headers } };
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      return { ...error.answer, headers: { ...dated, ...error.answer.headers } };
    }
  };

  const server = await startFakeServer(answer);
  const store = Object.assign(server, {
    keys: new Map<string, StoreKey>(),
    publicBuckets: new Set<string>(),
    regions: new Map<string, string>(),
    moved: new Map<string, string>(),
    ignoresConditions: false,
    skewMs: 0,
    put: (bucket: string, key: string, content: Buffer): StoredVersion => {
      const etag = `"${createHash("md5").update(content).digest("hex")}"`;
      const version = { id: `v${++versions}.+/=`, content, etag };
      const name = `${bucket}/${key}`;
      objects.set(name, [...(objects.get(name) ?? []), version]);
      return version;
    },
    remove: (bucket: string, key: string): void => void objects.delete(`${bucket}/${key}`),
  });
  return store;
}

function unconditional(headers: Asked["headers"]): Asked["headers"] {
  return Object.fromEntries(Object.entries(headers).filter(([name]) => !name.startsWith("if-")));
}

const checkS3: Check = ({ asked, bucket, key, region, now, keys }) => {
  const [, id, day, scoped, names, signature] =
    /^AWS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/s3\/aws4_request, SignedHeaders=([^,]+), Signature=([0-9a-f]{64})$/.exec(
      asked.headers.authorization ?? "",
    ) ?? [];
  if (id === undefined)
    throw new StoreError(400, "AuthorizationHeaderMalformed", "The authorization header is malformed");
  if (scoped !== region) {
    const message = `The authorization header is malformed; the region '${scoped}' is wrong; expecting '${region}'`;
    throw new StoreError(400, "AuthorizationHeaderMalformed", message, `<Region>${region}</Region>`);
  }
  const date = String(asked.headers["x-amz-date"]);
  checkTime(date, now);
  const owner = ownerOf(keys, id, "InvalidAccessKeyId");
  const signedNames = names.split(";");
  for (const name of Object.keys(asked.headers)) {
    if ((name === "host" || name.startsWith("x-amz-")) && !signedNames.includes(name)) {
      throw new StoreError(
        403,
        "AccessDenied",
        `There were headers present in the request which were not signed: ${name}`,
      );
    }
  }
  const inHost = asked.headers.host?.startsWith(`${bucket}.`) === true;
  const path = encode(inHost ? `/${key}` : `/${bucket}/${key}`, true);
  const query = [...asked.url.searchParams].map(([name, value]) => `${encode(name)}=${encode(value)}`).sort();
  const headers = signedNames.map((name) => `${name}:${String(asked.headers[name]).trim()}\n`);
  const content = String(asked.headers["x-amz-content-sha256"]);
  const canonical = [asked.method, path, query.join("&"), headers.join(""), names, content].join("\n");
  const scope = `${day}/${region}/s3/aws4_request`;
  const text = `AWS4-HMAC-SHA256\n${date}\n${scope}\n${createHash("sha256").update(canonical).digest("hex")}`;
  const signingKey = chain(`AWS4${owner.secret}`, day, region, "s3", "aws4_request");
  if (hmac(signingKey, text).toString("hex") !== signature) throw mismatch();
  checkToken(owner, asked.headers["x-amz-security-token"], "ExpiredToken", 400);
};

const checkOss: Check = (signed) => {
  const { asked, bucket, key, region, now, keys } = signed;
  const authorization = asked.headers.authorization ?? "";
  const [, oldId, oldSignature] = /^OSS ([^:]+):(\S+)$/.exec(authorization) ?? [];
  if (oldId !== undefined) {
    const owner = ownerOf(keys, oldId, "InvalidAccessKeyId");
    const date = asked.headers.date ?? "";
    if (Math.abs(Date.parse(date) - now.getTime()) > skewLimitMs) throw skewed();
    const own = ossHeaders(asked).map(([name, value]) => `${name}:${value}\n`);
    const version = asked.url.searchParams.get("versionId");
    const resource = `/${bucket}/${key}${version === null ? "" : `?versionId=${version}`}`;
    const text = `${asked.method}\n\n\n${date}\n${own.join("")}${resource}`;
    if (createHmac("sha1", owner.secret).update(text).digest("base64") !== oldSignature) throw mismatch();
    checkToken(owner, asked.headers["x-oss-security-token"], "SecurityTokenExpired", 403);
    return;
  }
  const [, id, day, scoped, signature] =
    /^OSS4-HMAC-SHA256 Credential=([^/]+)\/(\d{8})\/([^/]+)\/oss\/aliyun_v4_request,Signature=([0-9a-f]{64})$/.exec(
      authorization,
    ) ?? [];
  if (id === undefined) throw new StoreError(400, "InvalidArgument", "Authorization header is invalid.");
  if (scoped !== region)
    throw new StoreError(403, "SignatureDoesNotMatch", "Invalid signing region in Authorization header.");
  const owner = ownerOf(keys, id, "InvalidAccessKeyId");
  const date = String(asked.headers["x-oss-date"]);
  checkTime(date, now);
  const query = [...asked.url.searchParams].map(([name, value]) => `${encode(name)}=${encode(value)}`).sort();
  const headers = ossHeaders(asked).map(([name, value]) => `${name}:${value}\n`);
  const canonical = [
    asked.method,
    encode(`/${bucket}/${key}`, true),
    query.join("&"),
    headers.join(""),
    "",
    "UNSIGNED-PAYLOAD",
  ];
  const hash = createHash("sha256").update(canonical.join("\n")).digest("hex");
  const text = `OSS4-HMAC-SHA256\n${date}\n${day}/${region}/oss/aliyun_v4_request\n${hash}`;
  const signingKey = chain(`aliyun_v4${owner.secret}`, day, region, "oss", "aliyun_v4_request");
  if (hmac(signingKey, text).toString("hex") !== signature) throw mismatch();
  checkToken(owner, asked.headers["x-oss-security-token"], "SecurityTokenExpired", 403);
};

function ownerOf(keys: Map<string, StoreKey>, id: string, code: string): StoreKey {
  const owner = keys.get(id);
  if (owner === undefined)
    throw new StoreError(403, code, "The access key Id you provided does not exist in our records.");
  if (owner.denied === true) throw new StoreError(403, "AccessDenied", "Access Denied");
  return owner;
}

function checkTime(date: string, now: Date): void {
  const time = Date.parse(date.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, "$1-$2-$3T$4:$5:$6Z"));
  if (!(Math.abs(time - now.getTime()) <= skewLimitMs)) throw skewed();
}

function checkToken(owner: StoreKey, sent: string | string[] | undefined, code: string, status: number): void {
  if (owner.expired === true) throw new StoreError(status, code, "The provided token has expired.");
  if (sent !== owner.token)
    throw new StoreError(400, "InvalidToken", "The provided token is malformed or otherwise invalid.");
}

const skewed = (): StoreError =>
  new StoreError(
    403,
    "RequestTimeTooSkewed",
    "The difference between the request time and the current time is too large.",
  );

const mismatch = (): StoreError =>
  new StoreError(
    403,
    "SignatureDoesNotMatch",
    "The request signature we calculated does not match the signature you provided.",
  );

function ossHeaders(asked: Asked): [string, string][] {
  return Object.entries(asked.headers)
    .filter(([name]) => name.startsWith("x-oss-"))
    .map(([name, value]) => [name, String(value).trim()] as [string, string])
    .sort(([a], [b]) => (a < b ? -1 : 1));
}

/** Every byte but the unreserved ones, by hand. */
function encode(text: string, path = false): string {
  return [...Buffer.from(text, "utf8")]
    .map((byte) => {
      const char = String.fromCharCode(byte);
      if (/[A-Za-z0-9\-._~]/.test(char) || (path && char === "/")) return char;
      return `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
    })
    .join("");
}

const hmac = (key: string | Buffer, text: string): Buffer => createHmac("sha256", key).update(text).digest();

const chain = (secret: string, ...parts: string[]): Buffer =>
  parts.reduce((key: Buffer, part) => hmac(key, part), Buffer.from(secret));

const xml = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
