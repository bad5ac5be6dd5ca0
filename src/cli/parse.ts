import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { InvalidArgumentError } from "commander";
import { describeError, UllageError } from "../base/errors.ts";
import { parseSize } from "../base/units.ts";
import type { Settings } from "../catalog/metadata-store.ts";

/** Parsers of options and arguments; what they throw is a usage error (exit 2). */

export function sizeOption(text: string): number {
  try {
    return parseSize(text);
  } catch (error) {
    throw new InvalidArgumentError(`${describeError(error)}: sizes look like 512, 64k, 10M, 1.5G or 2T`);
  }
}

/** `off` lifts the limit. */
export function rateOption(text: string): number | null {
  if (text === "off") return null;
  const rate = rateOf(text);
  if (rate === 0) throw new InvalidArgumentError("a rate of 0 is `pause`");
  return rate;
}

function rateOf(text: string): number {
  try {
    return parseSize(text.replace(/\/s$/, ""));
  } catch {
    throw new InvalidArgumentError(`'${text}' is not a rate: 50M or 512k per second, or off`);
  }
}

export function priorityOption(text: string): number {
  const priority = Number(text);
  if (Number.isInteger(priority) && priority >= -100 && priority <= 100) return priority;
  throw new InvalidArgumentError("a priority is a whole number from -100 to 100");
}

const settingValues: { [K in keyof Settings]: readonly Settings[K][] } = {
  hydrate: ["auto", "off"],
  sync: ["normal", "always"],
  remoteAfterPowerLoss: ["refuse", "serve"],
  cache: ["shared", "none"],
};

/** `sync=always`; may be given several times. */
export function settingOption(text: string, before: Partial<Settings> = {}): Partial<Settings> {
  const [key = "", value = ""] = text.split(/=(.*)/s);
  const values = Object.hasOwn(settingValues, key) ? settingValues[key as keyof Settings] : undefined;
  if (values === undefined) {
    throw new InvalidArgumentError(`there is no setting '${key}', only ${Object.keys(settingValues).join(", ")}`);
  }
  if (!(values as readonly string[]).includes(value)) {
    throw new InvalidArgumentError(`${key} can be ${values.join(" or ")}, not '${value}'`);
  }
  return { ...before, [key]: value };
}

/** Relative paths mean the directory that the command runs in, not the daemon's. URLs stay as they are. */
export function absoluteSource(source: string): string {
  if (source === "" || (/^[a-z][a-z0-9+.-]*:/i.test(source) && !existsSync(source))) return source;
  return resolve(source);
}

/** @param name `VOL@SNAP` @throws UllageError `usage` */
export function snapshotName(name: string): { volume: string; snapshot: string } {
  const at = name.indexOf("@");
  if (at > 0 && at < name.length - 1) return { volume: name.slice(0, at), snapshot: name.slice(at + 1) };
  throw new UllageError("usage", `'${name}' names no snapshot`, { hint: "write it as VOLUME@SNAPSHOT" });
}
