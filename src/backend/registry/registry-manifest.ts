import { createHash } from "node:crypto";
import { SourceError } from "../../base/errors.ts";
import { badAnswer } from "../source-errors.ts";

/** What a manifest says about a blob (OCI image specification, "Descriptor"). */
export interface Descriptor {
  digest: string;
  size: number;
  mediaType: string;
  /** `org.opencontainers.image.title`, as ORAS sets it to the file's name. */
  title: string | undefined;
}

/** Which manifests are understood. */
export const manifestTypes = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
].join(", ");

const maxEntries = 1000;
const emptyType = "application/vnd.oci.empty.v1+json";

export const isDigest = (text: string): boolean => /^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/.test(text);

/** The digest of bytes, by the algorithm of another digest. */
export function digestLike(model: string, bytes: Uint8Array): string {
  const algorithm = model.slice(0, model.indexOf(":"));
  return `${algorithm}:${createHash(algorithm).update(bytes).digest("hex")}`;
}

/** What a manifest holds: blobs, or, as an index, further manifests. */
export type Manifest = { kind: "blobs"; blobs: Descriptor[] } | { kind: "index"; manifests: PlatformDescriptor[] };

export interface PlatformDescriptor extends Descriptor {
  /** `linux/amd64`; undefined when it does not say */
  platform: string | undefined;
}

/** @throws SourceError `source-bad-answer`, `source-unsupported` */
export function parseManifest(where: string, bytes: Buffer): Manifest {
  let raw: Record<string, unknown>;
  try {
    raw = (JSON.parse(bytes.toString("utf8")) ?? {}) as Record<string, unknown>;
  } catch (error) {
    throw badAnswer(`${where} is no manifest`, error);
  }
  if (raw["schemaVersion"] !== 2)
    throw unsupported(`${where} is a manifest of schema version ${String(raw["schemaVersion"])}`);
  if (Array.isArray(raw["manifests"])) {
    const manifests = descriptors(where, raw["manifests"]).map(({ entry, descriptor }) => ({
      ...descriptor,
      platform: platformOf(entry["platform"]),
    }));
    return { kind: "index", manifests };
  }
  if (!Array.isArray(raw["layers"])) throw unsupported(`${where} has neither layers nor manifests`);
  return { kind: "blobs", blobs: descriptors(where, raw["layers"]).map(({ descriptor }) => descriptor) };
}

function descriptors(where: string, list: unknown[]): { entry: Record<string, unknown>; descriptor: Descriptor }[] {
  if (list.length > maxEntries) throw unsupported(`${where} lists more than ${maxEntries} things`);
  return list.map((item) => {
    const entry = (item ?? {}) as Record<string, unknown>;
    const { digest, size, mediaType, annotations } = entry;
    if (typeof digest !== "string" || !isDigest(digest) || !Number.isSafeInteger(size) || (size as number) < 0) {
      throw badAnswer(`${where} describes a blob without a digest and size`);
    }
    const title = (annotations as Record<string, unknown> | undefined)?.["org.opencontainers.image.title"];
    return {
      entry,
      descriptor: {
        digest,
        size: size as number,
        mediaType: typeof mediaType === "string" ? mediaType : "application/octet-stream",
        title: typeof title === "string" ? title : undefined,
      },
    };
  });
}

function platformOf(value: unknown): string | undefined {
  const { os, architecture } = (value ?? {}) as Record<string, unknown>;
  return typeof os === "string" && typeof architecture === "string" ? `${os}/${architecture}` : undefined;
}

/**
 * The manifest of this machine's platform, or the only one there is.
 * @param platform `linux/amd64`
 * @throws SourceError `source-ambiguous`
 */
export function choosePlatform(where: string, manifests: readonly PlatformDescriptor[], platform: string): Descriptor {
  // What describes an image (its provenance) is listed beside it, for a platform that is none.
  const real = manifests.filter((each) => each.platform !== "unknown/unknown");
  const matching = real.filter((each) => each.platform === platform);
  if (matching.length > 0) return matching[0];
  if (real.length === 1) return real[0];
  throw ambiguous(
    `${where} is for ${real.map((each) => each.platform ?? each.digest).join(", ") || "no platform"}, not ${platform}`,
    "name one of its manifests by its digest: oci://host/repository@sha256:…",
  );
}

/**
 * The blob that is the disk: the only one, or the one that was asked for by its title or digest.
 * @throws SourceError `source-ambiguous`, `source-not-found`
 */
export function chooseBlob(where: string, blobs: readonly Descriptor[], wanted: string | undefined): Descriptor {
  const candidates = blobs.filter(({ mediaType }) => mediaType !== emptyType);
  if (wanted !== undefined) {
    const named = candidates.filter(({ title, digest }) => title === wanted || digest === wanted);
    if (named.length === 1) return named[0];
    if (named.length > 1) throw ambiguous(`${where} has ${named.length} blobs called ${wanted}`, byName(candidates));
    const message = `${where} has no blob called ${wanted}`;
    throw new SourceError("source-not-found", message, { transient: false, hint: byName(candidates) });
  }
  if (candidates.length === 1) return candidates[0];
  if (candidates.length === 0) {
    throw new SourceError("source-not-found", `${where} has no blobs`, {
      transient: false,
      hint: "check the reference",
    });
  }
  throw ambiguous(`${where} has ${candidates.length} blobs, any of which may be the disk`, byName(candidates));
}

function byName(candidates: readonly Descriptor[]): string {
  const names = candidates.map(
    ({ title, digest, mediaType, size }) => `#${title ?? digest} (${mediaType}, ${size} bytes)`,
  );
  const shownNames = names.slice(0, 20).join(", ");
  return `name one behind the source: ${shownNames}${names.length > 20 ? `, and ${names.length - 20} more` : ""}`;
}

function ambiguous(message: string, hint: string): SourceError {
  return new SourceError("source-ambiguous", message, { transient: false, hint });
}

function unsupported(message: string): SourceError {
  return new SourceError("source-unsupported", message, { transient: false, hint: "push it in the OCI image format" });
}
