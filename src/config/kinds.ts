import { execFileSync } from "node:child_process";
import { isAbsolute, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { demandReference } from "../backend/credentials.ts";
import { sourcePolicy } from "../backend/source-guard.ts";
import { describeError, UllageError } from "../base/errors.ts";
import { parseSize } from "../base/units.ts";
import { parseListenAddress } from "../export/listen-address.ts";

/** What may stand behind a key of the configuration file. */
export interface Kind {
  /** For documents and messages: `a path`. */
  readonly name: string;
  /**
   * @param directory of the file: relative paths start there
   * @returns the value as the commands use it @throws Error saying what is wrong with it
   */
  read(value: unknown, directory: string): unknown;
}

const getentTimeoutMs = 10_000;

export const boolean: Kind = {
  name: "true or false",
  read(value) {
    if (typeof value === "boolean") return value;
    throw new Error(`must be true or false, not ${describe(value)}`);
  },
};

export const path: Kind = {
  name: "a path",
  read: (value, directory) => resolve(directory, text(value, "a path")),
};

/** One address, or several in a list. */
export const addresses: Kind = {
  name: "an address, or a list of them",
  read(value, directory) {
    const given: unknown[] = Array.isArray(value) ? value : [value];
    if (given.length === 0) throw new Error("is an empty list: leave the key out to get the default");
    return given.map((each) => absolute(text(each, "an address such as 127.0.0.1:10809 or unix:PATH"), directory));
  },
};

/** Of a unix socket. */
export const unixAddress: Kind = {
  name: "unix:PATH",
  read(value, directory) {
    const address = absolute(text(value, "unix:PATH"), directory);
    if (address.startsWith("unix:")) return address;
    throw new Error(`must be unix:PATH, not ${describe(value)}`);
  },
};

function absolute(address: string, directory: string): string {
  let parsed;
  try {
    parsed = parseListenAddress(address);
  } catch (error) {
    throw new Error(describeError(error), { cause: error });
  }
  if (parsed.kind === "tcp" || isAbsolute(parsed.path)) return address;
  return `unix:${resolve(directory, parsed.path)}`;
}

export const hostNames: Kind = {
  name: "a list of host names",
  read: (value) => texts(value, "a list of host names"),
};

/** See backend/source-guard.ts. */
export const sourceEntries: Kind = {
  name: "a list of what is let in",
  read(value) {
    const entries = texts(value, "a list of what is let in");
    try {
      sourcePolicy(entries);
    } catch (error) {
      if (!(error instanceof UllageError)) throw error;
      throw new Error(`is not right: ${error.message}${error.hint === undefined ? "" : `; ${error.hint}`}`, {
        cause: error,
      });
    }
    return entries;
  },
};

export const byteSize: Kind = {
  name: 'a size such as "100G"',
  read(value) {
    if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return value;
    try {
      return parseSize(text(value, 'a size such as "100G"'));
    } catch (error) {
      throw new Error(`must be a size such as "100G", not ${describe(value)}`, { cause: error });
    }
  },
};

/** What the addresses of sources begin with: see backend/source-settings.ts. */
export const sourcePrefix: Kind = {
  name: "the beginning of addresses",
  read(value) {
    const given = text(value, "the beginning of addresses");
    if (isFilePrefix(given)) return filePrefix(given);
    return prefix(given, "http://, https://, s3://, oss://, oci://, nbd:// or, for files, /");
  },
};

/** Whether it is about files of this host. */
export const isFilePrefix = (value: unknown): boolean => typeof value === "string" && /^(?:\/|file:\/\/)/i.test(value);

/** As paths are written in sources: without `.`, `..` and doubled slashes; the one at its end says that a directory is meant. */
function filePrefix(value: string): string {
  let named: string;
  try {
    named = resolve(value.startsWith("/") ? value : fileURLToPath(value));
  } catch (error) {
    throw new Error("names no files of this host: write /path, or file:///path", { cause: error });
  }
  return value.endsWith("/") && named !== "/" ? `${named}/` : named;
}

export const filePrefixes: Kind = {
  name: "a list of paths",
  read: (value) =>
    texts(value, "a list of paths").map((each) => {
      if (!isFilePrefix(each)) throw new Error("must be paths that begin with /");
      return filePrefix(each);
    }),
};

export const sourcePrefixes: Kind = {
  name: "a list of beginnings of addresses",
  read: (value) => texts(value, "a list of beginnings of addresses").map((each) => prefix(each)),
};

/** Host names have one spelling in addresses: lower case. */
function prefix(value: string, wanted = "http://, https://, s3://, oss://, oci:// or nbd://"): string {
  const [, scheme, host, rest] = /^(https?|s3|oss|oci|nbds?(?:\+unix)?):\/\/([^/]*)(.*)$/is.exec(value) ?? [];
  if (scheme === undefined) throw new Error(`must begin with ${wanted}`);
  if (host.includes("@")) throw new Error("must not hold credentials: name them in 'credentials'");
  const isName = /^(s3|oss)$/i.test(scheme);
  return `${scheme.toLowerCase()}://${isName ? host : host.toLowerCase()}${rest}`;
}

export const endpoint: Kind = {
  name: "an http(s) address",
  read(value) {
    const url = URL.parse(text(value, "an http(s) address"));
    if (url === null || !/^https?:$/.test(url.protocol) || url.search !== "" || url.hash !== "") {
      throw new Error("must be an address that begins with http:// or https://");
    }
    if (url.username !== "" || url.password !== "") {
      throw new Error("must not hold credentials: name them in 'credentials'");
    }
    return url.href.replace(/\/$/, "");
  },
};

export const proxyAddress: Kind = {
  name: 'an http(s) address, or "none"',
  read(value) {
    if (value === "none") return value;
    const url = URL.parse(text(value, 'an http(s) address, or "none"'));
    if (url === null || !/^https?:$/.test(url.protocol)) throw new Error("must begin with http:// or https://");
    return url.href;
  },
};

/** See backend/credentials.ts. What is wrong is not repeated: it may be a secret. */
export const credentialReference: Kind = {
  name: "a reference to credentials",
  read(value) {
    try {
      const reference = text(value, "a reference to credentials");
      demandReference(reference);
      return reference;
    } catch (error) {
      const hint = error instanceof UllageError && error.hint !== undefined ? `: ${error.hint}` : "";
      throw new Error(`is no reference to credentials${hint}`, { cause: error });
    }
  },
};

export const percentage: Kind = {
  name: "a percentage, 0 to 100",
  read(value) {
    if (typeof value === "number" && value >= 0 && value <= 100) return value;
    throw new Error(`must be a percentage, 0 to 100, not ${describe(value)}`);
  },
};

export const word: Kind = {
  name: "a word",
  read(value) {
    const given = text(value, "a word");
    if (/^[\w.-]{1,64}$/.test(given)) return given;
    throw new Error(`must be a word, not ${describe(value)}`);
  },
};

export const seconds: Kind = {
  name: "seconds",
  read(value) {
    if (typeof value === "number" && value >= 1 && value <= 86_400) return value;
    throw new Error(`must be a number of seconds, 1 to 86400, not ${describe(value)}`);
  },
};

/** Bytes per second; read as a number. */
export const rate: Kind = {
  name: 'bytes per second, such as "50M"',
  read(value) {
    const bytes = parseSize(text(value, 'bytes per second, such as "50M"'));
    if (bytes > 0) return bytes;
    throw new Error("must be more than nothing: leave the key out for no limit");
  },
};

export function oneOf(...choices: readonly string[]): Kind {
  const quoted = choices.map((each) => `"${each}"`);
  const name = `${quoted.slice(0, -1).join(", ")} or ${quoted.at(-1)}`;
  return {
    name,
    read(value) {
      if (typeof value === "string" && choices.includes(value)) return value;
      throw new Error(`must be ${name}, not ${describe(value)}`);
    },
  };
}

/** Permissions of a file, as chmod takes them. A number would be read as decimal, so it is refused. */
export const fileMode: Kind = {
  name: 'an octal mode such as "0660"',
  read(value) {
    if (typeof value === "string" && /^0?[0-7]{3}$/.test(value)) return Number.parseInt(value, 8);
    throw new Error(`must be an octal mode in quotes, such as "0660", not ${describe(value)}`);
  },
};

/** The name or number of a group; read as its number. */
export const group: Kind = {
  name: "the name or number of a group",
  read(value) {
    if (typeof value === "number" && Number.isInteger(value) && value >= 0) return value;
    const name = text(value, "the name or number of a group");
    if (/^\d+$/.test(name)) return Number(name);
    if (name.startsWith("-")) throw new Error(`names the group '${name}', which does not exist`);
    try {
      // Groups may come from LDAP and the like: only the C library knows them all.
      const output = execFileSync("getent", ["group", name], {
        encoding: "utf8",
        timeout: getentTimeoutMs,
        stdio: ["ignore", "pipe", "ignore"],
      });
      return Number(output.split(":")[2]);
    } catch (error) {
      const missing = (error as { status?: number }).status === 2;
      const why = missing ? "which does not exist" : `and getent can't look it up: ${describeError(error)}`;
      throw new Error(`names the group '${name}', ${why}`, { cause: error });
    }
  },
};

function texts(value: unknown, wanted: string): string[] {
  if (!Array.isArray(value)) throw new Error(`must be ${wanted}, not ${describe(value)}`);
  return (value as unknown[]).map((each) => text(each, wanted));
}

function text(value: unknown, wanted: string): string {
  if (typeof value !== "string") throw new Error(`must be ${wanted} in quotes, not ${describe(value)}`);
  if (value === "") throw new Error(`must be ${wanted}, not an empty text`);
  return value;
}

function describe(value: unknown): string {
  if (Array.isArray(value)) return "a list";
  if (typeof value === "bigint") return "a large number";
  if (typeof value === "object") return value instanceof Date ? "a date" : "a table";
  return JSON.stringify(value);
}
