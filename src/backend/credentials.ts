import { open, stat } from "node:fs/promises";
import { SourceError, UllageError } from "../base/errors.ts";
import { runHelper } from "./helper-process.ts";

/*
 * Credentials are never kept on disk, logged or shown: what is configured is a *reference*, and this is what reads it.
 *
 *     env:PREFIX_      PREFIX_ACCESS_KEY_ID, PREFIX_SECRET_ACCESS_KEY, PREFIX_SESSION_TOKEN; or PREFIX_USERNAME,
 *                      PREFIX_PASSWORD; or PREFIX_TOKEN
 *     file:/path       a JSON object, or lines `name = value`, of the same names in any of their usual spellings
 *     helper:/path     a program that prints the same; asked again before `Expiration`, or after five minutes
 *     profile:NAME     of the files that AWS tools share
 *     anonymous        none
 *
 *     nothing --get--> loading --> known --changed, stale--> loading (what is known serves on while it has not expired)
 *
 * A load that fails fails who asked only when nothing usable is known, and as something that may work later.
 */

/** What opens a source; which of it is there depends on the source. */
export interface Credentials {
  accessKeyId?: string;
  secretAccessKey?: string;
  sessionToken?: string;
  username?: string;
  password?: string;
  /** Sent as a bearer token. */
  token?: string;
  /** Traded for bearer tokens (the identity tokens of registries). */
  refreshToken?: string;
  /** Wall time in ms; absent: they do not expire. */
  expiresAt?: number;
}

/** Where credentials come from. */
export interface CredentialLoader {
  /** @returns undefined: there are none, the source is asked without. @throws Error that names no secret */
  load(): Promise<Credentials | undefined>;
  /** Changes when `load` would find something else; absent: only time tells. */
  stamp?(): Promise<string>;
  /** What was loaded is looked at again after so long, ms. */
  keepMs: number;
}

/** Renewed this long before they expire, ... */
const renewAheadMs = 5 * 60_000;
/** ... or, when they live for less than twice that, at half of what is left. */
const shortestLifeMs = 10_000;
const stampEveryMs = 1000;
/** After a failure, or a renewal that a refusal led to, the next attempt waits this long. */
const retryMs = 5_000;
const maxFileBytes = 64 * 1024;
const forMinutes = 5 * 60_000;

export class CredentialSource {
  /** As configured; names no secret. */
  readonly reference: string;
  readonly #loader: CredentialLoader;
  readonly #now: () => number;
  #known: { value: Credentials | undefined } | undefined;
  #stamp = "";
  #stampCheckedAt = -Infinity;
  #staleAt = -Infinity;
  #loadedAt = -Infinity;
  #failedAt = -Infinity;
  #loading: Promise<void> | undefined;
  /** Counts loads that brought something else. */
  #changes = 0;

  /** @param now wall time, ms */
  constructor(reference: string, loader: CredentialLoader, now: () => number = Date.now) {
    this.reference = reference;
    this.#loader = loader;
    this.#now = now;
  }

  /** What is valid now; undefined: none are given. @throws SourceError `source-credentials` */
  async get(): Promise<Credentials | undefined> {
    const stale = this.#now() >= this.#staleAt || (await this.#hasChanged());
    if (this.#known === undefined || (stale && this.#expired())) await this.#load();
    else if (stale && this.#now() - this.#failedAt > retryMs) {
      const loading = this.#load();
      // What changed in a file is meant to hold at once; what only grows old is renewed beside the reads.
      if (this.#loader.stamp !== undefined) await loading.catch(() => undefined);
      else loading.catch(() => undefined);
    }
    return this.#known!.value;
  }

  /** They were refused: looks whether there are others by now. @returns whether there are */
  async renew(): Promise<boolean> {
    const before = this.#changes;
    if (this.#now() - this.#loadedAt < retryMs && this.#loader.stamp === undefined) return false;
    await this.#load();
    return this.#changes !== before;
  }

  /** The next `get` looks again. */
  forget(): void {
    this.#staleAt = -Infinity;
    this.#failedAt = -Infinity;
  }

  #expired(): boolean {
    const { expiresAt } = this.#known?.value ?? {};
    return expiresAt !== undefined && this.#now() >= expiresAt;
  }

  async #hasChanged(): Promise<boolean> {
    if (this.#loader.stamp === undefined || this.#now() - this.#stampCheckedAt < stampEveryMs) return false;
    this.#stampCheckedAt = this.#now();
    return (await this.#loader.stamp().catch(() => "")) !== this.#stamp;
  }

  #load(): Promise<void> {
    this.#loading ??= this.#loadOnce().finally(() => (this.#loading = undefined));
    return this.#loading;
  }

  async #loadOnce(): Promise<void> {
    try {
      const stamp = (await this.#loader.stamp?.().catch(() => "")) ?? "";
      const value = await this.#loader.load();
      const now = this.#now();
      if (this.#known === undefined || !same(this.#known.value, value)) this.#changes++;
      this.#known = { value };
      this.#stamp = stamp;
      this.#loadedAt = now;
      this.#stampCheckedAt = now;
      this.#staleAt =
        now + Math.min(this.#loader.keepMs, value?.expiresAt === undefined ? Infinity : ahead(value.expiresAt - now));
    } catch (error) {
      this.#failedAt = this.#now();
      throw new SourceError("source-credentials", `no credentials from ${this.reference}`, {
        transient: true,
        hint: "what was configured as `credentials` must be there and readable",
        cause: error,
      });
    }
  }
}

/** How long credentials that are valid for `leftMs` are used without a look at newer ones. */
function ahead(leftMs: number): number {
  return Math.max(leftMs - renewAheadMs, Math.min(leftMs / 2, renewAheadMs), Math.min(leftMs, shortestLifeMs) / 2);
}

function same(a: Credentials | undefined, b: Credentials | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

/** Whether a reference is one; for the configuration file. @throws UllageError `credentials` */
export function demandReference(reference: string): void {
  if (reference === "anonymous" || /^(env:[A-Za-z_][A-Za-z0-9_]*|(file|helper):\/.+|profile:.+)$/.test(reference))
    return;
  // What was meant may be a secret: it is not repeated.
  throw new UllageError("credentials", "is no reference to credentials", {
    hint: "write env:PREFIX_, file:/path, helper:/path, profile:NAME or anonymous; secrets themselves do not belong here",
  });
}

/**
 * What reads a configured reference.
 * @param profile reads a profile that AWS tools share
 */
export function loaderOf(
  reference: string,
  env: Readonly<Record<string, string | undefined>>,
  profile: (name: string) => CredentialLoader,
): CredentialLoader {
  const [, kind, rest] = /^(\w+):?(.*)$/s.exec(reference)!;
  if (kind === "env") return { keepMs: 0, load: () => Promise.resolve(fromEnvironment(rest, env)) };
  if (kind === "file") return fileLoader(rest);
  if (kind === "helper") {
    return { keepMs: forMinutes, load: async () => parseCredentials(await runHelper(rest, [], ""), "it") };
  }
  if (kind === "profile") return profile(rest);
  return { keepMs: Infinity, load: () => Promise.resolve(undefined) };
}

function fromEnvironment(prefix: string, env: Readonly<Record<string, string | undefined>>): Credentials {
  const fields = Object.entries(env).flatMap(([name, value]) =>
    name.startsWith(prefix) && value !== undefined && value !== "" ? [[name.slice(prefix.length), value] as const] : [],
  );
  return credentialsOf(fields, `the environment, ${prefix}…,`);
}

function fileLoader(path: string): CredentialLoader {
  return {
    keepMs: Infinity,
    stamp: async () => {
      const { mtimeNs, ctimeNs, size, ino } = await stat(path, { bigint: true });
      return [mtimeNs, ctimeNs, size, ino].join(" ");
    },
    load: async () => parseCredentials(await readSmallFile(path), path),
  };
}

/** @throws Error when it can't be read or has more than 64 KiB */
export async function readSmallFile(path: string): Promise<string> {
  await using file = await open(path);
  const buffer = Buffer.alloc(maxFileBytes + 1);
  const { bytesRead } = await file.read(buffer, 0, buffer.length, 0);
  if (bytesRead > maxFileBytes) throw new Error(`${path} has more than ${maxFileBytes} bytes`);
  return buffer.toString("utf8", 0, bytesRead);
}

/** @throws Error that quotes nothing of the text */
function parseCredentials(text: string, where: string): Credentials {
  if (!text.trimStart().startsWith("{")) {
    const lines = text.split("\n").flatMap((line) => {
      const [, name, value] = /^\s*([A-Za-z][\w-]*)\s*[=:]\s*(.*?)\s*$/.exec(line) ?? [];
      return name === undefined ? [] : [[name, value.replace(/^(["'])(.*)\1$/, "$2")] as const];
    });
    return credentialsOf(lines, where);
  }
  let fields: object;
  try {
    fields = JSON.parse(text) as object;
  } catch {
    throw new Error(`${where} holds no JSON object`); // the parser's message would quote it
  }
  return credentialsOf(
    Object.entries(fields).filter((entry): entry is [string, string] => typeof entry[1] === "string"),
    where,
  );
}

const spellings: Record<string, keyof Credentials> = {
  accesskeyid: "accessKeyId",
  accesskey: "accessKeyId",
  secretaccesskey: "secretAccessKey",
  accesskeysecret: "secretAccessKey",
  secretkey: "secretAccessKey",
  sessiontoken: "sessionToken",
  securitytoken: "sessionToken",
  username: "username",
  user: "username",
  password: "password",
  secret: "password",
  token: "token",
};

function credentialsOf(fields: readonly (readonly [string, string])[], where: string): Credentials {
  const found: Credentials = {};
  for (const [name, value] of fields) {
    const plain = name
      .toLowerCase()
      .replace(/[_-]/g, "")
      .replace(/^(aws|oss|alibabacloud)/, "");
    const key = spellings[plain];
    if (key !== undefined && key !== "expiresAt") found[key] = value;
    if (plain === "expiration" && !Number.isNaN(Date.parse(value))) found.expiresAt = Date.parse(value);
  }
  const { accessKeyId, secretAccessKey, username, token } = found;
  if ((accessKeyId !== undefined && secretAccessKey !== undefined) || username !== undefined || token !== undefined) {
    return found;
  }
  throw new Error(`${where} has neither an access key with its secret, nor a user name, nor a token`);
}
