import { join } from "node:path";
import { CorruptionError, IoError, UllageError } from "../base/errors.ts";
import type { FileSystem } from "../base/file-system.ts";
import { replaceFile } from "../blob/durable-file.ts";
import { namePattern } from "../catalog/names.ts";
import type { RequestKey } from "../daemon/request-key.ts";
import { scopes, type Scope } from "./scopes.ts";

/** Its format: docs/FORMAT.md, section tokens.json. */
export const tokenFileName = "tokens.json";
const formatVersion = 1;

/** A token as it is kept: enough to recognise it, not enough to use it. */
export interface TokenRecord {
  /** 32 hex digits; a part of the token itself */
  id: string;
  name: string;
  scope: Scope;
  /** of the whole token's text, as hex */
  sha256: string;
  /** RFC 3339 */
  createdAt: string;
  /** RFC 3339; null: never */
  expiresAt: string | null;
  /** `Idempotency-Key` of the request that made it, with a digest of that request; absent: there was none */
  request?: RequestKey;
}

/** @returns [] when there is no file @throws CorruptionError, UllageError `tokens-version`, IoError */
export async function readTokenFile(fs: FileSystem, dir: string): Promise<TokenRecord[]> {
  const path = join(dir, tokenFileName);
  let text: string;
  try {
    text = (await fs.readFile(path)).toString();
  } catch (error) {
    if (error instanceof IoError && error.errno === "ENOENT") return [];
    throw error;
  }
  const found = parse(text, path);
  const version = found["formatVersion"];
  if (typeof version === "number" && version > formatVersion) {
    throw new UllageError("tokens-version", `${path} has format ${version}, this Ullage knows ${formatVersion}`, {
      hint: "use the newer Ullage that wrote it",
    });
  }
  const tokens: unknown = found["tokens"];
  if (version !== formatVersion || !Array.isArray(tokens) || !tokens.every(isRecord)) throw damaged(path);
  return tokens;
}

/** Durable when it resolves; after a crash at any moment the file has the old tokens or the new ones. Mode 0600. */
export async function writeTokenFile(fs: FileSystem, dir: string, tokens: readonly TokenRecord[]): Promise<void> {
  const text = JSON.stringify({ formatVersion, tokens }, null, 2);
  await replaceFile(fs, dir, tokenFileName, Buffer.from(`${text}\n`));
}

function parse(text: string, path: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {
    // said below
  }
  throw damaged(path);
}

function damaged(path: string): CorruptionError {
  return new CorruptionError(`${path} is damaged`, "move it away: all tokens are void then, and new ones can be made");
}

function isRecord(value: unknown): value is TokenRecord {
  const record = (value ?? {}) as Record<keyof TokenRecord, unknown>;
  const matches = (key: keyof TokenRecord, pattern: RegExp): boolean => pattern.test(String(record[key]));
  return (
    matches("id", /^[0-9a-f]{32}$/) &&
    matches("name", new RegExp(namePattern)) &&
    scopes.includes(record.scope as Scope) &&
    matches("sha256", /^[0-9a-f]{64}$/) &&
    isTime(record.createdAt) &&
    (record.expiresAt === null || isTime(record.expiresAt)) &&
    (record.request === undefined || isRequest(record.request))
  );
}

function isRequest(value: unknown): boolean {
  const { key, digest } = (value ?? {}) as Record<string, unknown>;
  return typeof key === "string" && typeof digest === "string";
}

/** A time that can't be read would never be over. */
function isTime(value: unknown): boolean {
  return typeof value === "string" && !Number.isNaN(Date.parse(value));
}
