import { SourceError } from "../../base/errors.ts";
import type { Identity } from "../backend.ts";
import type { Connections, Document } from "../http/connections.ts";
import type { CredentialSource } from "../credentials.ts";
import { digestIdentity, digestOf, header, statusError } from "../http/http-answer.ts";
import type { Headers, HttpObject, Place, Refusal } from "../http/http-object.ts";
import { shown } from "../http/http-target.ts";
import { isLoopback } from "../http/proxy.ts";
import { RegistryAuth } from "./registry-auth.ts";
import { chooseBlob, choosePlatform, digestLike, isDigest, manifestTypes, parseManifest } from "./registry-manifest.ts";
import { SourceBusyError, badAnswer } from "../source-errors.ts";

/*
 * Disks in OCI registries (OCI distribution specification 1.1): `oci://host/repository:tag`. The reference leads to a
 * manifest, perhaps by way of an index, and the manifest to the blob that is the disk. That blob's digest and size are the
 * identity: once they are pinned, no tag is looked at again, and requests name the blob by its digest.
 */

export interface RegistryAddress {
  host: string;
  repository: string;
  /** A tag, or a digest. */
  reference: string;
  /** Title or digest of the blob that is wanted. */
  blob: string | undefined;
}

const maxIndexDepth = 3;
const renewalLimit = 2;

const architectures: Record<string, string> = { x64: "amd64", ia32: "386" };
const platform = `linux/${architectures[process.arch] ?? process.arch}`;

/** @throws SourceError `source-invalid` */
export function parseRegistrySource(source: string): RegistryAddress {
  const [, host, path, tag, digest, blob] =
    /^oci:\/\/([^/@#?]+)\/([^:@#?]+)(?::([\w][\w.-]{0,127}))?(?:@([a-z0-9]+:[0-9a-f]+))?(?:#(.+))?$/is.exec(source) ??
    [];
  const url = host === undefined ? null : URL.parse(`https://${host}/`);
  if (url === null || url.username !== "" || url.hostname === "") throw invalid("it names no registry and repository");
  if (
    path.length > 255 ||
    !/^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$/.test(path)
  ) {
    throw invalid("the repository's name is none");
  }
  if (digest !== undefined && !isDigest(digest)) throw invalid("the digest is none");
  if (blob !== undefined && /\p{Cc}/u.test(blob)) throw invalid("the blob's name has a control character");
  return { host: url.host, repository: path, reference: digest ?? tag ?? "latest", blob };
}

/** The one form of an address: with its tag or, when there is one, its digest. */
export function canonicalRegistrySource(source: string): string {
  const { host, repository, reference, blob } = parseRegistrySource(source);
  const separator = reference.includes(":") ? "@" : ":";
  return `oci://${host}/${repository}${separator}${reference}${blob === undefined ? "" : `#${blob}`}`;
}

/** Where a registry's API is. Plain http is for this machine only, unless somebody says otherwise. */
export function registryEndpoint(host: string, endpoint: string | undefined): string {
  if (endpoint !== undefined) return endpoint.replace(/\/$/, "");
  if (host === "docker.io" || host === "index.docker.io") return "https://registry-1.docker.io";
  return isLoopback(new URL(`https://${host}/`).hostname) ? `http://${host}` : `https://${host}`;
}

/** What the blobs of one registry, opened with the same credentials, share. */
export class RegistrySite {
  readonly connections: Connections;
  readonly auth: RegistryAuth;
  readonly #endpoint: string;

  constructor(endpoint: string, connections: Connections, credentials: CredentialSource | undefined) {
    this.#endpoint = endpoint;
    this.connections = connections;
    this.auth = new RegistryAuth(connections, credentials);
  }

  object(source: string): HttpObject {
    return new RegistryBlob(this, source);
  }

  url(repository: string, ...path: string[]): URL {
    return new URL(`${this.#endpoint}/v2/${repository}/${path.join("/")}`);
  }

  owns(url: URL): boolean {
    return url.origin === new URL(this.#endpoint).origin;
  }
}

class RegistryBlob implements HttpObject {
  readonly url: string;
  readonly #site: RegistrySite;
  readonly #address: RegistryAddress;

  constructor(site: RegistrySite, source: string) {
    this.#site = site;
    this.#address = parseRegistrySource(source);
    this.url = canonicalRegistrySource(source);
  }

  async locate(identity: Identity | undefined, signal: AbortSignal): Promise<Place> {
    const digest = identity === undefined ? undefined : digestOf(identity);
    if (identity !== undefined && digest === undefined)
      throw new TypeError("a registry's blob is pinned by its digest");
    if (digest !== undefined) return { target: this.#target(digest), identity: identity! };
    const found = await this.#resolve(signal);
    return {
      target: this.#target(found.digest),
      identity: digestIdentity(found.digest, found.size),
      mediaType: found.mediaType,
    };
  }

  #target(digest: string): Place["target"] {
    return { url: this.#site.url(this.#address.repository, "blobs", digest), authorization: undefined };
  }

  authorize(url: URL, signal: AbortSignal): Headers | Promise<Headers> {
    return this.#site.owns(url) ? this.#site.auth.headers(this.#address.repository, signal) : {};
  }

  async renew(refusal: Refusal, signal: AbortSignal): Promise<boolean> {
    if (!this.#site.owns(refusal.url)) return false;
    return this.#site.auth.renew(this.#address.repository, refusal, signal);
  }

  errorOf(where: string, refusal: Refusal): SourceError {
    const error = statusError(where, refusal);
    if (error instanceof SourceBusyError || !this.#site.owns(refusal.url)) return error;
    const { code, transient } = error;
    const said = reasonIn(refusal.body);
    const hint = this.#hintFor(code, refusal.url);
    return new SourceError(code, `${error.message}${said === undefined ? "" : ` ${said}`}`, { transient, hint });
  }

  #hintFor(code: string, url: URL): string {
    if (code === "source-denied")
      return `check the registry's credentials (${this.#site.auth.reference}); many registries answer like this for what is not there`;
    if (code === "source-not-found" && url.pathname.includes("/blobs/"))
      return "the registry has that blob no more: push it again, or create a new volume from what the tag is now";
    return "check the repository, tag or digest";
  }

  async #resolve(signal: AbortSignal): Promise<{ digest: string; size: number; mediaType: string }> {
    const { repository, blob } = this.#address;
    let { reference } = this.#address;
    for (let depth = 0; depth < maxIndexDepth; depth++) {
      const url = this.#site.url(repository, "manifests", reference);
      const where = shown(url);
      const answer = await this.#fetchManifest(url, signal);
      demandDigest(where, reference, answer);
      const manifest = parseManifest(where, answer.body);
      if (manifest.kind === "blobs") return chooseBlob(this.url, manifest.blobs, blob);
      reference = choosePlatform(where, manifest.manifests, platform).digest;
    }
    throw badAnswer(`${this.url}: an index of indexes of indexes`);
  }

  async #fetchManifest(url: URL, signal: AbortSignal): Promise<Document> {
    for (let renewals = 0; ; renewals++) {
      const sent = await this.authorize(url, signal);
      const headers = { accept: manifestTypes, ...sent };
      const answer = await this.#site.connections.fetchDocument({ url, authorization: undefined }, headers, { signal });
      if (answer.status === 200) return answer;
      const refusal: Refusal = { ...answer, url, sent, body: answer.body.toString("utf8", 0, 16 * 1024) };
      if (renewals >= renewalLimit || !(await this.renew(refusal, signal))) throw this.errorOf(shown(url), refusal);
    }
  }
}

/** A manifest is believed only when it has the digest that it was asked for by, or that the registry says it has. */
function demandDigest(where: string, reference: string, answer: Document): void {
  const named = isDigest(reference) ? reference : header(answer.headers, "docker-content-digest");
  if (named === undefined) return;
  if (!isDigest(named) || digestLike(named, answer.body) !== named) {
    throw badAnswer(`${where} answered with a manifest whose digest is not ${named}`);
  }
}

/** `(MANIFEST_UNKNOWN: manifest unknown)` of an error answer. */
function reasonIn(body: string): string | undefined {
  try {
    const { errors } = JSON.parse(body) as { errors?: { code?: unknown; message?: unknown }[] };
    const [first] = errors ?? [];
    if (typeof first?.code !== "string") return undefined;
    const message = typeof first.message === "string" ? first.message : "";
    return `(${first.code}: ${message})`.replace(/\p{Cc}+/gu, " ").slice(0, 300);
  } catch {
    return undefined;
  }
}

function invalid(why: string): SourceError {
  return new SourceError("source-invalid", `this is no address in a registry: ${why}`, {
    transient: false,
    hint: "write oci://host/repository:tag or oci://host/repository@sha256:…; #TITLE or #DIGEST behind it names one of several blobs",
  });
}
