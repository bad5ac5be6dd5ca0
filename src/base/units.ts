import { UllageError } from "./errors.ts";

/**
 * Sizes as people type them: `512`, `64k`, `10M`, `1.5G`, `2T`; units are powers of 1024. The same spelling is printed,
 * so that what one command shows another one takes.
 */
const units = ["", "k", "M", "G", "T", "P"] as const;

/** @returns bytes @throws UllageError `bad-size` */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)([kmgtp]?)$/i.exec(text.trim());
  if (match === null) throw badSize(text, "is not a size");
  const exponent = units.findIndex((unit) => unit.toLowerCase() === match[2].toLowerCase());
  const bytes = Number(match[1]) * 1024 ** exponent;
  if (!Number.isInteger(bytes)) throw badSize(text, "is not a whole number of bytes");
  if (!Number.isSafeInteger(bytes)) throw badSize(text, "is more than 8P bytes");
  return bytes;
}

function badSize(text: string, what: string): UllageError {
  return new UllageError("bad-size", `'${text}' ${what}`, { hint: "sizes look like 512, 64k, 10M, 1.5G or 2T" });
}

/** `1 layer`, `3 layers`. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** Three digits or so, for people: `1.5G`. */
export function formatSize(bytes: number): string {
  let exponent = 0;
  let value = bytes;
  while (value >= 1023.95 && exponent < units.length - 1) {
    value /= 1024;
    exponent++;
  }
  const digits = exponent === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits).replace(/\.0$/, "")}${units[exponent]}`;
}

/** The shortest spelling that `parseSize` turns back into exactly this many bytes. */
export function formatExactSize(bytes: number): string {
  let exponent = 0;
  let value = bytes;
  while (value > 0 && value % 1024 === 0 && exponent < units.length - 1) {
    value /= 1024;
    exponent++;
  }
  return `${value}${units[exponent]}`;
}

/** `4s`, `3m 20s`, `2h 5m`, `3d 4h` */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const parts: [number, string][] = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3_600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "m"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  if (first === -1) return "0s";
  return parts
    .slice(first, first + 2)
    .filter(([value], index) => index === 0 || value > 0)
    .map(([value, unit]) => `${value}${unit}`)
    .join(" ");
}
