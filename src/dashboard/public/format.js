/*
 * Amounts as people read and type them. Sizes are powers of 1024, as everywhere in Ullage: `512`, `64k`, `10M`, `1.5G`.
 */

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/**
 * `1536` as `1.5 KiB`
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/**
 * Exactly, in the notation that `parseSize` takes: `65536` as `64k`, `1000` as `1000`.
 * @param {number} bytes
 */
export function exactSize(bytes) {
  const suffixes = ["", "k", "M", "G", "T"];
  let value = bytes;
  let unit = 0;
  while (value !== 0 && value % 1024 === 0 && unit < suffixes.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value}${suffixes[unit]}`;
}

/** @param {number} bytesPerSecond */
export function formatRate(bytesPerSecond) {
  return `${formatBytes(bytesPerSecond)}/s`;
}

/**
 * Bytes, from `512`, `64k`, `10M`, `1.5G`, `2T` (also `10 GiB`); undefined when it is none of these.
 * @param {string} text
 * @returns {number | undefined}
 */
export function parseSize(text) {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const power = "kmgtp".indexOf((match[2] ?? "").toLowerCase()) + 1;
  const bytes = Number(match[1]) * 1024 ** (match[2] === "" ? 0 : power);
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/**
 * `95` as `1 min 35 s`
 * @param {number} seconds
 */
export function formatDuration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 === 0 ? `${minutes} min` : `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`;
  return `${Math.round(hours / 24)} days`;
}

/**
 * A share in percent that says 0 and 100 only when it is.
 * @param {number} part
 * @param {number} whole
 */
export function formatShare(part, whole) {
  if (whole === 0 || part <= 0) return "0 %";
  if (part >= whole) return "100 %";
  const percent = (100 * part) / whole;
  if (percent < 0.1) return "< 0.1 %";
  if (percent > 99.9) return "> 99.9 %";
  return `${percent < 10 ? percent.toFixed(1) : Math.min(99, Math.round(percent))} %`;
}

/**
 * A time as the reader's clock says it.
 * @param {string} rfc3339
 */
export function formatTime(rfc3339) {
  const time = new Date(rfc3339);
  if (Number.isNaN(time.getTime())) return rfc3339;
  return time.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

const counts = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** @param {number} count */
export function formatCount(count) {
  return counts.format(count);
}

/**
 * `1 volume`, `2 volumes`
 * @param {number} count
 * @param {string} noun
 */
export function plural(count, noun) {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}
