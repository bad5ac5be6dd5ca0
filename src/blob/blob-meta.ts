import { createHash } from "node:crypto";
import type { Identity } from "../backend/backend.ts";
import { isSameIdentity } from "../backend/file/file-identity.ts";
import { CorruptionError, UllageError, describeError } from "../base/errors.ts";
import { isId } from "../base/ids.ts";

/**
 * What a blob is: the content of <data>/blobs/<id>/meta.json. Written once, durably, as the last step of the blob's
 * creation, and never changed: a directory without it was never handed to anybody.
 */
export interface BlobMeta {
  /** 32 hex digits */
  readonly id: string;
  /** The source, without credentials. */
  readonly url: string;
  /** Name of the image format that maps the object's bytes to the blob's. */
  readonly imageFormat: string;
  /** What pins the object's content (durability rule 31). */
  readonly identity: Identity;
  /** bytes of the blob */
  readonly size: number;
  /** bytes of a unit, a power of two */
  readonly unitBytes: number;
  /** RFC 3339, for people */
  readonly createdAt: string;
  /** The images that this one lies on, the nearest one first: they decide its bytes as well. Absent: none. */
  readonly backing?: readonly BackingMeta[];
  /** The source was named over the network: it is read only as far as `sources.allow` lets it. Absent: no. */
  readonly guarded?: boolean;
  /** The image was unpacked as a whole when the blob was made: what is lost can't be fetched again. Absent: no. */
  readonly unpacked?: boolean;
  /** Nothing that is read of it is kept on disk: its data file stays empty. Absent: no. */
  readonly uncached?: boolean;
}

/** An image that another one lies on. */
export type BackingMeta = Pick<BlobMeta, "url" | "imageFormat" | "identity">;

const FORMAT = "ullage-blob";
const VERSION = 1;

/** Bounds of a unit: a page at least (cache files are filled in whole pages), and one request at most. */
export const MIN_UNIT_BYTES = 4096;
export const MAX_UNIT_BYTES = 8 * 1024 * 1024;
const LEAST_USUAL_UNIT_BYTES = 64 * 1024;
const MOST_USUAL_UNITS = 2 ** 24;

export function encodeBlobMeta(meta: BlobMeta): Buffer {
  return Buffer.from(`${JSON.stringify({ format: FORMAT, version: VERSION, ...meta }, null, 2)}\n`);
}

/**
 * @param path where the bytes came from, for messages
 * @throws CorruptionError when it is not what `encodeBlobMeta` wrote, UllageError `newer-format` for a later version
 */
export function decodeBlobMeta(bytes: Uint8Array, path: string): BlobMeta {
  let raw: unknown;
  try {
    raw = JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (error) {
    throw new CorruptionError(`${path} is not JSON: ${describeError(error)}`);
  }
  if (typeof raw !== "object" || raw === null) throw new CorruptionError(`${path} holds no object`);
  const { format, version } = raw as Record<string, unknown>;
  if (format !== FORMAT) throw new CorruptionError(`${path} has format '${String(format)}', not '${FORMAT}'`);
  if (typeof version === "number" && version > VERSION) throw newerFormat(path, version, VERSION);
  if (version !== VERSION) throw new CorruptionError(`${path} has format version ${String(version)}`);
  return blobMetaOf(raw, path);
}

/** @throws CorruptionError when a field is missing or out of range */
export function blobMetaOf(raw: unknown, path: string): BlobMeta {
  const { id, url, imageFormat, identity, size, unitBytes, createdAt, backing, guarded, unpacked, uncached } = (raw ??
    {}) as Record<string, unknown>;
  const valid =
    typeof id === "string" &&
    isId(id) &&
    typeof url === "string" &&
    typeof imageFormat === "string" &&
    isIdentity(identity) &&
    isLength(size) &&
    isUnit(unitBytes) &&
    typeof createdAt === "string" &&
    (backing === undefined || (Array.isArray(backing) && backing.length > 0 && backing.every(isBacking))) &&
    (guarded === undefined || typeof guarded === "boolean") &&
    (unpacked === undefined || typeof unpacked === "boolean") &&
    (uncached === undefined || typeof uncached === "boolean");
  if (!valid) throw new CorruptionError(`${path} has a field that is missing or out of range`);
  const flags = {
    ...(backing === undefined ? {} : { backing: backing.map(backingOf) }),
    ...(guarded === true ? { guarded } : {}),
    ...(unpacked === true ? { unpacked } : {}),
    ...(uncached === true ? { uncached } : {}),
  };
  return { id, url, imageFormat, identity, size, unitBytes, createdAt, ...flags };
}

/**
 * The unit of a new blob of so many bytes: small enough that little is fetched beside what is wanted, and of 1 TiB and more
 * large enough for a range map of 2 MiB, of which some are in memory.
 */
export function usualUnit(size: number): number {
  let unit = LEAST_USUAL_UNIT_BYTES;
  while (size / unit > MOST_USUAL_UNITS && unit < MAX_UNIT_BYTES) unit *= 2;
  return unit;
}

export function isUnit(value: unknown): value is number {
  return isLength(value) && value >= MIN_UNIT_BYTES && value <= MAX_UNIT_BYTES && Number.isInteger(Math.log2(value));
}

const isLength = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

function isBacking(value: unknown): value is BackingMeta {
  const { url, imageFormat, identity } = (value ?? {}) as Record<string, unknown>;
  return typeof url === "string" && typeof imageFormat === "string" && isIdentity(identity);
}

const backingOf = ({ url, imageFormat, identity }: BackingMeta): BackingMeta => ({ url, imageFormat, identity });

/** Whether the same surely pinned images are below both. */
export function isSameBacking(one: readonly BackingMeta[], other: readonly BackingMeta[]): boolean {
  const isSame = (each: BackingMeta, at: number): boolean => {
    const { url, imageFormat, identity } = other[at];
    const pinned = each.identity.strong && identity.strong && isSameIdentity(each.identity, identity);
    return pinned && each.url === url && each.imageFormat === imageFormat;
  };
  return one.length === other.length && one.every(isSame);
}

function isIdentity(value: unknown): value is Identity {
  if (typeof value !== "object" || value === null) return false;
  const { size, version, strong } = value as Record<string, unknown>;
  return isLength(size) && typeof version === "string" && typeof strong === "boolean";
}

export function newerFormat(path: string, found: number, known: number): UllageError {
  return new UllageError("newer-format", `${path} has format version ${found}, this Ullage knows up to ${known}`, {
    hint: "open it with the newer Ullage that wrote it",
  });
}

/** SHA-256 over everything that decides the blob's bytes; binds a range map to them. */
export function identityHash(meta: BlobMeta): Buffer {
  const parts = [meta, ...(meta.backing ?? [])].flatMap(({ url, imageFormat, identity }) => {
    return [url, imageFormat, identity.size, identity.version, identity.strong];
  });
  return createHash("sha256").update(JSON.stringify(parts)).digest();
}
