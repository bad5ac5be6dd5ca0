import { createHash, randomUUID } from "node:crypto";
import { type Answer, type Asked, type FakeServer, rangeAnswer, startFakeServer } from "./fake-server.ts";

/*
 * An OCI registry in small: manifests, blobs with ranges, redirects of blobs to a store of its own whose addresses expire,
 * and who may pull by the token flow or by Basic.
 */

export interface RegistryUser {
  password: string;
}

export interface FakeRegistry extends FakeServer {
  /** What it asks for. `token`: a bearer token of its own realm. */
  auth: "none" | "basic" | "token";
  readonly users: Map<string, RegistryUser>;
  /** Refresh tokens that the realm takes. */
  readonly refreshTokens: Set<string>;
  /** Lifetime that tokens are given out with, seconds; null: it does not say. */
  expiresIn: number | null;
  /** Tokens that were given out. */
  tokensGiven: number;
  /** All tokens given out so far are worth nothing any more. */
  revokeTokens(): void;
  /** Answers of the realm go wrong like this, as often as there are statuses. */
  readonly realmFailures: number[];
  /** Blobs are redirected (307) to addresses of the same server under another name, `store.localhost`-like, that expire. */
  redirects: boolean;
  /** What an address that has expired is answered with. */
  expiredStatus: number;
  /** Addresses that were given out expire now. */
  expireRedirects(): void;
  /** Extra parameters of the challenge. */
  challengeSuffix: string;
  putBlob(content: Buffer): { digest: string; size: number };
  /** @returns its digest */
  putManifest(repository: string, reference: string, manifest: unknown): string;
  dropBlob(digest: string): void;
  /** `127.0.0.1:PORT` */
  readonly host: string;
}

const digestOf = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;

export async function startFakeRegistry(): Promise<FakeRegistry> {
  const blobs = new Map<string, Buffer>();
  const manifests = new Map<string, Buffer>();
  let tokens = new Set<string>();
  let links = new Map<string, string>();

  const error = (status: number, code: string, headers: Record<string, string> = {}): Answer => ({
    status,
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ errors: [{ code, message: code.toLowerCase().replaceAll("_", " ") }] }),
  });

  const isUser = (authorization: string | undefined): boolean => {
    const pair = Buffer.from(/^Basic (.*)$/.exec(authorization ?? "")?.[1] ?? "", "base64").toString();
    const at = pair.indexOf(":");
    return at > 0 && registry.users.get(pair.slice(0, at))?.password === pair.slice(at + 1);
  };

  const challenge = (repository: string): Answer => {
    const realm = `http://${registry.host}/token?account=a=b`;
    const value =
      registry.auth === "basic"
        ? 'Basic realm="a, \\"quoted\\" one"'
        : `Bearer realm="${realm}",service="registry=\\"fake\\"",scope="repository:${repository}:pull"${registry.challengeSuffix}`;
    return error(401, "UNAUTHORIZED", { "www-authenticate": value });
  };

  const giveToken = (asked: Asked): Answer => {
    const failure = registry.realmFailures.shift();
    if (failure !== undefined) return { status: failure };
    if (asked.url.searchParams.get("account") !== "a=b") return { status: 400 };
    const form = asked.method === "POST" ? new URLSearchParams(asked.body) : asked.url.searchParams;
    if (form.get("service") !== 'registry="fake"') return { status: 400 };
    const byRefresh = form.get("grant_type") === "refresh_token";
    const may = byRefresh
      ? registry.refreshTokens.has(form.get("refresh_token") ?? "")
      : registry.users.size === 0 || isUser(asked.headers.authorization);
    if (!may) return { status: 401 };
    const token = `${randomUUID()}==`;
    tokens.add(token);
    registry.tokensGiven++;
    const life = registry.expiresIn === null ? {} : { expires_in: registry.expiresIn };
    return { status: 200, body: JSON.stringify({ [byRefresh ? "access_token" : "token"]: token, ...life }) };
  };

  const answer = (asked: Asked): Answer => {
    const { pathname } = asked.url;
    if (pathname === "/token") return giveToken(asked);
    const link = /^\/store\/(.*)$/.exec(pathname)?.[1];
    if (link !== undefined) {
      const digest = links.get(link);
      if (asked.headers.authorization !== undefined) return { status: 400, body: "two kinds of authorization" };
      return digest === undefined
        ? { status: registry.expiredStatus }
        : rangeAnswer(asked, blobs.get(digest)!, { etag: `"${link}"` });
    }
    const [, repository, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/(.+)$/.exec(pathname) ?? [];
    if (repository === undefined) return error(404, "NAME_UNKNOWN");
    const { authorization } = asked.headers;
    if (registry.auth === "basic" && !isUser(authorization)) return challenge(repository);
    if (registry.auth === "token" && !tokens.has(/^Bearer (.*)$/.exec(authorization ?? "")?.[1] ?? ""))
      return challenge(repository);
    if (kind === "manifests") {
      const found = manifests.get(`${repository}/${reference}`);
      if (found === undefined) return error(404, "MANIFEST_UNKNOWN");
      return { status: 200, headers: { "docker-content-digest": digestOf(found) }, body: found };
    }
    const blob = blobs.get(reference);
    if (blob === undefined) return error(404, "BLOB_UNKNOWN");
    if (!registry.redirects) return rangeAnswer(asked, blob, { etag: `"${reference}"` });
    const name = randomUUID();
    links.set(name, reference);
    return { status: 307, headers: { location: `http://localhost:${registry.port}/store/${name}?X-Signature=secret` } };
  };

  const server = await startFakeServer(answer);
  const own: Omit<FakeRegistry, keyof FakeServer> = {
    auth: "none",
    users: new Map<string, RegistryUser>(),
    refreshTokens: new Set<string>(),
    expiresIn: 300,
    tokensGiven: 0,
    revokeTokens: () => void (tokens = new Set()),
    realmFailures: [],
    redirects: false,
    expiredStatus: 403,
    expireRedirects: () => void (links = new Map()),
    challengeSuffix: "",
    putBlob: (content: Buffer) => {
      const digest = digestOf(content);
      blobs.set(digest, content);
      return { digest, size: content.length };
    },
    dropBlob: (digest: string) => void blobs.delete(digest),
    putManifest: (repository: string, reference: string, manifest: unknown) => {
      const bytes = Buffer.from(JSON.stringify(manifest));
      manifests.set(`${repository}/${reference}`, bytes);
      manifests.set(`${repository}/${digestOf(bytes)}`, bytes);
      return digestOf(bytes);
    },
    host: `127.0.0.1:${server.port}`,
  };
  const registry: FakeRegistry = Object.assign(server, own);
  return registry;
}

/** A manifest of an artifact with these blobs. */
export function artifact(...layers: { digest: string; size: number; mediaType?: string; title?: string }[]): unknown {
  return {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: { mediaType: "application/vnd.oci.empty.v1+json", digest: digestOf(Buffer.from("{}")), size: 2 },
    layers: layers.map(({ title, mediaType = "application/octet-stream", ...rest }) => ({
      mediaType,
      ...rest,
      ...(title === undefined ? {} : { annotations: { "org.opencontainers.image.title": title } }),
    })),
  };
}
