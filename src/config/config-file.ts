import { dirname, resolve } from "node:path";
import { open } from "node:fs/promises";
import { parse, TomlError, type TomlTable, type TomlValue } from "smol-toml";
import { UllageError } from "../base/errors.ts";
import { didYouMean } from "../base/similar.ts";
import { isFilePrefix } from "./kinds.ts";
import { configKeys, type ConfigKey } from "./schema.ts";

/*
 * The configuration file: TOML, whose keys are those of schema.ts and no others. Everything that is wrong with a file is
 * found in one go, with its line.
 */

/** More is no configuration; keeps the search for lines short, too. */
const maxFileBytes = 64 * 1024;

/** Values by the attribute of the options of `serve` that they set. */
export type ConfigValues = Record<string, unknown>;

export interface ConfigProblem {
  /** Counted from 1. */
  line: number;
  /** `tls.mode`; "" when the file is no TOML */
  key: string;
  message: string;
  /** what to do, when it can be guessed */
  hint?: string;
}

/** @throws UllageError `config` with the first problem @returns the values that the file sets */
export async function readConfig(file: string): Promise<ConfigValues> {
  const { values, problems } = await checkConfig(file);
  const [first, ...more] = problems;
  if (first === undefined) return values;
  const others = more.length === 0 ? [] : [`${more.length} more: \`ullage config check ${file}\` lists all`];
  const hints = [...(first.hint === undefined ? [] : [first.hint]), ...others].join("; ");
  throw new UllageError("config", `${file}:${first.line}: ${first.message}`, hints === "" ? {} : { hint: hints });
}

/** @throws UllageError `config` when the file can't be read */
export async function checkConfig(file: string): Promise<{ values: ConfigValues; problems: ConfigProblem[] }> {
  return parseConfig(await readText(file), dirname(resolve(file)));
}

/** @param directory where relative paths start */
export function parseConfig(text: string, directory: string): { values: ConfigValues; problems: ConfigProblem[] } {
  const values: ConfigValues = {};
  const problems: ConfigProblem[] = [];
  let table: TomlTable;
  try {
    table = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    return { values, problems: [{ line: error.line, key: "", message: firstLine(error.message) }] };
  }
  for (const { path, value, beside } of leaves(table)) {
    const key = shownPath(path);
    const pattern = patternOf(path);
    const known = configKeys.find((each) => each.key === pattern);
    const wrong = (message: string, hint?: string): void => {
      const place = value === undefined ? path.slice(0, -1) : path;
      problems.push({ line: lineOf(text, place), key, message, ...(hint === undefined ? {} : { hint }) });
    };
    if (known === undefined) {
      wrong(`there is no key '${key}'`, suggest(pattern));
      continue;
    }
    if (known.required === true && value === undefined) {
      wrong(`'${key}' is missing: ${known.meaning}`);
      continue;
    }
    if (known.forFiles === undefined && isFilePrefix(beside["prefix"])) {
      const ofFiles = configKeys.filter(({ forFiles }) => forFiles).map((each) => `'${lastName(each.key)}'`);
      wrong(`'${key}' means nothing for files`, `for them there are ${ofFiles.slice(1).join(", ")}`);
      continue;
    }
    if (known.forFiles === "only" && typeof beside["prefix"] === "string" && !isFilePrefix(beside["prefix"])) {
      wrong(`'${key}' is about files`, "other sources have 'mirrors'");
      continue;
    }
    try {
      const read = known.kind.read(value, directory);
      const place = path.findLast((name) => typeof name === "number");
      if (place === undefined) values[known.option] = read;
      else entryOf(values, known.option, place)[lastName(pattern)] = read;
    } catch (error) {
      wrong(`'${key}' ${(error as Error).message}`);
    }
  }
  problems.sort((a, b) => a.line - b.line);
  return { values, problems };
}

async function readText(file: string): Promise<string> {
  try {
    await using handle = await open(file);
    const buffer = Buffer.alloc(maxFileBytes + 1);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0);
    if (bytesRead > maxFileBytes) throw new Error(`it has more than ${maxFileBytes} bytes`);
    return new TextDecoder("utf-8", { fatal: true }).decode(buffer.subarray(0, bytesRead));
  } catch (error) {
    throw new UllageError("config", `the configuration file ${file} can't be read`, {
      cause: error,
      hint: "`ullage help config` shows what one looks like",
    });
  }
}

/** Names of tables and keys, and places in lists. */
type Path = readonly (string | number)[];

interface Leaf {
  path: Path;
  value: TomlValue | undefined;
  /** The table that it is in. */
  beside: TomlTable;
}

/**
 * Everything in the file that is a known key, or a value of an unknown one; empty unknown tables included. Required keys
 * that a table in a list lacks come without a value.
 */
function* leaves(table: TomlTable, above: Path = []): Generator<Leaf> {
  for (const [name, value] of Object.entries(table)) {
    const path = [...above, name];
    const isBelow = (prefix: string): boolean => configKeys.some(({ key }) => key.startsWith(prefix));
    if (isTable(value) && isBelow(`${patternOf(path)}.`)) yield* leaves(value, path);
    else if (Array.isArray(value) && value.every(isTable) && isBelow(`${patternOf(path)}[].`)) {
      for (const [place, entry] of value.entries()) {
        yield* leaves(entry, [...path, place]);
        for (const { key, required } of configKeys) {
          const last = lastName(key);
          const isOfEntry = key === `${patternOf([...path, place])}.${last}`;
          if (required === true && isOfEntry && !(last in entry))
            yield { path: [...path, place, last], value: undefined, beside: entry };
        }
      }
    } else yield { path, value, beside: table };
  }
}

/** `sources.match[0].prefix` */
function shownPath(path: Path): string {
  return path
    .map((name) => (typeof name === "number" ? `[${name}]` : `.${name}`))
    .join("")
    .slice(1);
}

/** `sources.match[].prefix`: as the schema has it */
function patternOf(path: Path): string {
  return path
    .map((name) => (typeof name === "number" ? "[]" : `.${name}`))
    .join("")
    .slice(1);
}

function entryOf(values: ConfigValues, option: string, place: number): Record<string, unknown> {
  const list = (values[option] ??= []) as Record<string, unknown>[];
  return (list[place] ??= {});
}

function isTable(value: TomlValue): value is TomlTable {
  return typeof value === "object" && !Array.isArray(value) && !(value instanceof Date);
}

/** By the whole path, and by the last name, for keys that were put into the wrong table. */
function suggest(key: string): string | undefined {
  const last = lastName(key);
  const nested = configKeys.filter((known) => known.key.startsWith(`${key}.`));
  if (nested.length > 0) return `it is a table: ${listKeys(nested)}`;
  const listed = configKeys.filter((known) => known.key.startsWith(`${key}[].`));
  if (listed.length > 0) return `it is a list of tables, [[${key}]], with ${listKeys(listed)}`;
  const sameName = configKeys.filter((known) => lastName(known.key) === last);
  if (sameName.length > 0) return `did you mean ${listKeys(sameName)}?`;
  const inList = key.slice(0, key.lastIndexOf("].") + 2);
  if (inList !== "") {
    const near = didYouMean(
      last,
      configKeys.filter((known) => known.key.startsWith(inList)).map((known) => lastName(known.key)),
    );
    if (near !== undefined) return near;
  }
  const names = configKeys.map((known) => known.key);
  return didYouMean(key, names) ?? "`ullage help config` lists all keys";
}

function lastName(key: string): string {
  return key.slice(key.lastIndexOf(".") + 1);
}

function listKeys(keys: readonly ConfigKey[]): string {
  return keys.map(({ key }) => `'${key}'`).join(", ");
}

function firstLine(message: string): string {
  return message.split("\n")[0].replace(/^Invalid TOML document: /, "is not TOML: ");
}

/**
 * The line on which a key begins. The parser does not tell, but every beginning of a file that ends between two
 * statements parses: the key stands behind the longest one that does not have it yet.
 */
function lineOf(text: string, path: Path): number {
  const lines = text.split("\n");
  let begins = 1;
  for (let count = 1; count <= lines.length; count++) {
    let table: TomlTable;
    try {
      table = parse(lines.slice(0, count).join("\n"));
    } catch {
      continue; // in the middle of a value of several lines
    }
    if (has(table, path)) return begins;
    begins = count + 1;
  }
  return begins;
}

function has(table: TomlTable, path: Path): boolean {
  let value: TomlValue | undefined = table;
  for (const name of path) {
    if (typeof value !== "object" || !Object.hasOwn(value, name)) return false;
    value = (value as Record<string | number, TomlValue | undefined>)[name];
  }
  return true;
}
